"""`drover completion SHELL`: what a shell has to know to complete `drover`."""

from typing import Final

import click

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_DROVER_COMPLETE"  # by which the shell asks, as click has it


@click.command
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script by which a shell completes the words of drover, with names of instances, devices and jobs.

    `make install` puts it where the shell finds it. Else, in ~/.bashrc: eval "$(drover completion bash)"; the same with
    zsh, behind compinit; and in fish: drover completion fish | source
    """
    click.echo(script(shell), nl=False)


def script(shell: str) -> str:
    """The script for a shell."""
    from click.shell_completion import ShellComplete, get_completion_class  # every start imports this module, few ask

    kind = get_completion_class(shell)
    assert kind is not None
    asked = kind(click.Group("drover"), {}, "drover", VARIABLE)
    # not the class's own, which starts a bash to see how old that is
    return ShellComplete.source(asked).strip() + "\n"
