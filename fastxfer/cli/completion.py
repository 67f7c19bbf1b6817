"""`fastxfer completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands and options with the tab key.

    \b
    Examples:
      eval "$(fastxfer completion bash)"      # in ~/.bashrc
      eval "$(fastxfer completion zsh)"       # in ~/.zshrc
      fastxfer completion fish > ~/.config/fish/completions/fastxfer.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "fastxfer", "_FASTXFER_COMPLETE").source())
