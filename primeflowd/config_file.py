"""The commented configuration file: every setting of config/ with its meaning and default.

`config.example.toml` in the repository and what `primeflowd init` writes are this text. Every
setting is commented out, so the file as it stands changes nothing, and uncommenting a line sets
the default.
"""

import textwrap
from typing import Final

import tomli_w

from primeflowd import config
from primeflowd.durations import Duration

_HEAD: Final = """\
# Configuration of primeflowd.
#
# Every setting is shown with its default, commented out. Durations are text: a number with a unit
# (ns, us, ms, s, m, h or d), several of them in a row if need be, as "1h30m". Sizes are whole
# numbers of bytes. An unknown key is an error. `primeflowd check-config` checks a file.
"""

_TAIL: Final = """
# What a plugin asks for stands in a table of its own and is checked by the plugin:
# [plugins.NAME]
"""


def render() -> str:
    """The whole file as TOML text."""
    parts = [_HEAD]
    current = ""
    for table, key, default, description in config.settings():
        if table != current:
            current = table
            parts.append(f"\n[{table}]\n")
        parts.append("\n" + _setting(key, default, description))
    parts.append(_TAIL)
    return "".join(parts)


def _setting(key: str, default: object, description: str) -> str:
    prose = textwrap.fill(
        description,
        width=98,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if default is None:
        # TOML has no null: a setting without a default can only be left out.
        return f"{prose}\n# {key} is left out by default\n"
    return f"{prose}\n# {key} = {_value(default)}\n"


def _value(default: object) -> str:
    """As TOML, an array on one line."""
    if isinstance(default, tuple):
        return f"[{', '.join(map(_value, default))}]"
    if isinstance(default, dict):
        # None has anything in it by default.
        return "{}"
    plain = default.text if isinstance(default, Duration) else default
    return tomli_w.dumps({"value": plain}).partition(" = ")[2].rstrip("\n")
