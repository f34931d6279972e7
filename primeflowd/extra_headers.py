"""Headers that an operator adds to every attempt to a destination: which may be set, and to what.

Pure. What the exchange itself, contract 6.4 and the signatures need is not to be replaced: a header
of one of those names is refused when it is set.
"""

import re
from collections.abc import Mapping
from typing import Final

MAX_HEADERS: Final = 32
"""Of one destination."""

MAX_VALUE: Final = 4096
"""Most characters that a value may have."""

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
RESERVED: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
RESERVED_PREFIXES: Final = ("primeflow-", "webhook-")


def check(headers: Mapping[str, str]) -> None:
    """See that these headers may be added.

    Raises:
        ValueError: one may not be set, or not to this; the message names it, but not its value.
    """
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"at most {MAX_HEADERS} headers")
    seen = set()
    for name, value in headers.items():
        key = name.lower()
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"not the name of a header: {name[:128]!a}")
        if key in RESERVED or key.startswith(RESERVED_PREFIXES):
            raise ValueError(f"the header {name} is primeflowd's to set")
        if key in seen:
            raise ValueError(f"the header {name} is there twice")
        seen.add(key)
        if not (value.isascii() and value.isprintable() and len(value) <= MAX_VALUE):
            raise ValueError(f"the value of {name} is not printable ASCII, or too long")
        if value != value.strip():
            raise ValueError(f"the value of {name} begins or ends with a space")
