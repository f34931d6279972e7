"""Write the manual page primeflowd(8) to standard output.

Its frame is primeflowd.8.in; the commands and their options are what `--help` shows, asked from the
command line itself, so that the page cannot lack one. The date is $SOURCE_DATE_EPOCH, else today.
"""

import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import click

from primeflowd import __version__
from primeflowd.cli import primeflowd

FRAME = Path(__file__).with_suffix("").with_name("primeflowd.8.in")

Option: TypeAlias = tuple[str, str]
"""As people type it, and what it means."""


def page() -> str:
    """The whole page, in man(7)."""
    commands = list(leaves(click.Context(primeflowd, info_name="primeflowd")))
    # What several commands have is described once: else that would be half of the page.
    counts = Counter(option for context in commands for option in options(context))
    common = {option for option, count in counts.items() if count > 2 and option[0][0] == "-"}
    date = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", _now())), UTC)
    text = FRAME.read_text(encoding="utf-8")
    for name, value in {
        "@DATE@": f"{date:%Y-%m-%d}",
        "@VERSION@": __version__,
        '.\\" @OPTIONS@\n': "".join(map(described, options(click.Context(primeflowd)))),
        '.\\" @COMMANDS@\n': "".join(section(context, common) for context in commands),
        '.\\" @COMMON@\n': "".join(described(option) for option in sorted(common)),
    }.items():
        text = text.replace(name, value)
    return text


def leaves(context: click.Context) -> Iterator[click.Context]:
    """The commands below this one that do something, in the order of `--help`."""
    group = context.command
    if not isinstance(group, click.Group):
        yield context
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from leaves(click.Context(command, parent=context, info_name=name))


def options(context: click.Context) -> list[Option]:
    """Of one command, but for --help."""
    records = (parameter.get_help_record(context) for parameter in context.command.params)
    return [record for record in records if record is not None]


def section(context: click.Context, common: set[Option]) -> str:
    own = [option for option in options(context) if option not in common]
    shared = [option[0].split()[0] for option in options(context) if option in common]
    arguments = " ".join(context.command.collect_usage_pieces(context)[1:])
    text = f'.SS "{escaped(context.command_path)} {escaped(arguments)}'.rstrip() + '"\n'
    text += paragraphs(context.command.help or "")
    text += "".join(map(described, own))
    if shared:
        text += ".PP\nCommon options: " + ", ".join(map(bold, shared)) + ".\n"
    return text


def paragraphs(help_text: str) -> str:
    """As click wraps them: a blank line between two."""
    found = (" ".join(part.split()) for part in inspect.cleandoc(help_text).split("\n\n"))
    return "\n.PP\n".join(map(escaped, found)) + "\n"


def described(option: Option) -> str:
    name, meaning = option
    return f".TP\n{bold(name)}\n{escaped(meaning)}\n"


def bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def escaped(text: str) -> str:
    """Plain text, for troff: a hyphen is one that can be pasted; no line is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _now() -> float:
    return datetime.now(UTC).timestamp()


if __name__ == "__main__":
    sys.stdout.write(page())
