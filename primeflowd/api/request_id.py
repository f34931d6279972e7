"""The id of a request: in every answer, and on every log line about it (contract 2.7)."""

import re
from typing import Final

from primeflowd.model import new_id

HEADER: Final = "X-Request-Id"

# What can stand in any log format and any header unescaped; anything else is replaced, not cut,
# so that nobody takes a mangled id for their own.
_SANE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def choose(offered: str | None) -> str:
    """The client's id if it sent a sane one, else a fresh one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered
    return new_id()
