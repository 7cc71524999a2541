"""Help that fits a screen of 24 lines: rarely used options are named by `--help` and explained by `--help-all`.

`Screen` is the class of a command that has such options, `Rare` that of such an option.
"""

from typing import Any

import click

ALL = "roost.help-all"  # in a context's meta: whether everything is to be shown
NAMED = 10  # options that are named where they are not explained


class Rare(click.Option):
    """An option whose explanation only `--help-all` shows."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return super().get_help_record(ctx) if ctx.meta.get(ALL) else None


class ServerOption(Rare):
    """How to reach the server; all of these are one line of the short help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self.name == "url" and not ctx.meta.get(ALL):
            return "--api-url URL ...", "The server, and who you are: see `roost --help`."
        return super().get_help_record(ctx)


class Screen(click.Command):
    """A command with more options than a screen has room for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show_all,
                help="Show all options.", hidden=True,
            )
        )  # fmt: skip

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        rare = [one for one in self.params if type(one) is Rare]
        if rare and not ctx.meta.get(ALL):
            formatter.write_paragraph()
            named = ", ".join(one.opts[-1] for one in rare) if len(rare) <= NAMED else f"{len(rare)} options"
            formatter.write_text(f"Also (see --help-all): {named}.")


def show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()
