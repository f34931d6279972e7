"""What `--help` says of the commands of a group: whole sentences, folded where click cuts them."""

from typing import Final

import click

_SENTENCE: Final = 500


class WholeHelp(click.Group):
    """A group that shows the first sentence of each of its commands whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(_SENTENCE))
                    for name, command in commands
                    if command is not None
                ]
            )
