"""Help that fits a screen of 24 lines: a command of class `Screen` explains the options that are used most, and names
the others, which `--help-all` explains.
"""

from typing import Any

import click

ALL = "roost.help-all"  # in a context's meta: whether everything is to be shown
NAMED = 10  # options that are named where they are not explained
EVERYWHERE = {"--json", "--help", "--api-url"}


class ServerOption(click.Option):
    """How to reach the server; all of these are one line of each command's help, and explained by `roost --help`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return ("--api-url URL ...", "The server, and who you are: see `roost --help`.") if self.name == "url" else None


class Screen(click.Command):
    """`brief`: the options that are explained. One that is added later is not, so that the screen stays as it is."""

    def __init__(self, *arguments: Any, brief: tuple[str, ...], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._brief = EVERYWHERE.union(brief)
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show_all, hidden=True
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if ctx.meta.get(ALL):
            return super().format_options(ctx, formatter)
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = [(one, one.get_help_record(ctx)) for one in options]
        explained = [record for one, record in records if record and self._brief.intersection(one.opts)]
        others = [one for one, record in records if record and not self._brief.intersection(one.opts)]
        with formatter.section("Options"):
            formatter.write_dl(explained)
        formatter.write_paragraph()
        named = ", ".join(one.opts[-1] for one in others) if len(others) <= NAMED else f"{len(others)} options"
        return formatter.write_text(f"Also (see --help-all): {named}.")


def show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()
