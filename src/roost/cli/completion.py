"""`roost completion`: what a shell reads to complete commands, options and names of both programs, roost and mags."""

import click

PROGRAMS = ("roost", "mags")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, jobs and workspaces, for roost and mags.

    \b
    bash  add to ~/.bashrc:                 eval "$(roost completion bash)"
    zsh   add to ~/.zshrc, after compinit:  eval "$(roost completion zsh)"
    fish  add to ~/.config/fish/config.fish:
          roost completion fish | source
    """
    for program in PROGRAMS:
        click.echo(script(shell, program))


def script(shell: str, program: str) -> str:
    """Click's own for this program. It asks the program itself, by the variable that click looks for."""
    from click.shell_completion import get_completion_class

    from roost.cli.main import main

    kind = get_completion_class(shell)
    assert kind is not None, shell
    words = kind(main, {}, program, f"_{program.upper()}_COMPLETE")
    return words.source_template % words.source_vars()  # source() would also start bash to ask for its version
