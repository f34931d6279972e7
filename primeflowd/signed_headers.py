"""The headers that the signers add to a callback: asked for, checked, and made into lines.

A signer may be a third party's: what it gives is checked before it gets into a request. Where the
signers give what they always give, that is one look at all of it; only where anything is different
is each header looked at by itself.

Pure, as signers are.
"""

import traceback
from bisect import bisect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Final

from primeflowd.errors import PrimeflowdError
from primeflowd.hookspecs import Signer, SigningRequest
from primeflowd.request_head import OWN_HEADERS, header_lines, is_name, is_value

_JOINED: Final = "webhook-signature"
# Contract 6.4: a signer that set one of these would change what is sent.
_RESERVED: Final = OWN_HEADERS | {
    "content-encoding",
    "content-type",
    "primeflow-attempt",
    "primeflow-delivery-id",
    "primeflow-request-id",
    "user-agent",
}


class SigningFailed(PrimeflowdError):
    """A signer, or the secret it was to use, is broken; the operator mends the plugin it names.

    Ends an attempt with `internal_error`. The message does not repeat what a plugin's exception
    said, because that may hold the secret; it says where it was raised.
    """

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"


def lines_by(signers: Sequence[Signer], request: SigningRequest) -> str:
    """The header lines that these signers add to a callback.

    Raises:
        SigningFailed: a signer raised, or gave headers that cannot be used.
    """
    # Of text, if the signers keep to their contract.
    names: list[object] = []
    values: list[str] = []
    # How many there were when each had signed.
    counts: list[int] = []
    for signer in signers:
        try:
            for name, value in signer.sign(request):
                names.append(name)
                values.append(value)
        except Exception as error:  # noqa: BLE001 - a plugin's code: whatever it raises is its fault
            where = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__} at {PurePath(where.filename).name}:{where.lineno}"
            # Not chained: what it says may hold a secret, and would be logged with the traceback.
            raise SigningFailed(signer.name, cause) from None
        counts.append(len(names))
    try:
        template, together = _template(tuple(names)), "".join(values)
    except TypeError:  # not of text
        template, together = None, ""
    if template is None or not is_value(together):
        givers = (signers[bisect(counts, at)].name for at in range(len(names)))
        return _one_by_one(givers, names, values)
    return template % tuple(values)


# The names are few and always the same.
@lru_cache(maxsize=256)
def _template(names: tuple[object, ...]) -> str | None:
    """Header lines to be filled in with values; None where the names are not all different, or
    one is not a signer's to set."""
    keys = [_key(name) for name in names if isinstance(name, str)]
    if not all(keys) or len(set(keys)) < len(names):
        return None
    return "".join(f"{str(name).replace('%', '%%')}: %s\r\n" for name in names)


def _one_by_one(givers: Iterable[str], names: Sequence[object], values: Sequence[object]) -> str:
    """As `lines_by`, once they have signed."""
    headers: dict[str, tuple[str, str]] = {}
    for signer, name, value in zip(givers, names, values, strict=True):
        _add(headers, signer, name, value)
    return header_lines(headers.values())


def _add(headers: dict[str, tuple[str, str]], signer: str, name: object, value: object) -> None:
    """Put a signer's header to those of the signers before it.

    Standard Webhooks lists the signatures of all schemes in one header, so these are joined.
    """
    if not (
        isinstance(name, str)
        and isinstance(value, str)
        and (key := _key(name)) is not None
        and is_value(value)
    ):
        raise SigningFailed(signer, "gave a header that is not printable ASCII")
    if not key:
        raise SigningFailed(signer, f"gave the header {name}, which is not a signer's to set")
    former = headers.get(key)
    if former is None:
        headers[key] = (name, value)
    elif former[1] == value:
        pass
    elif key == _JOINED:
        headers[key] = (former[0], f"{former[1]} {value}")
    else:
        raise SigningFailed(signer, f"gave the header {name}, which another signer has set")


@lru_cache(maxsize=256)
def _key(name: str) -> str | None:
    """What tells header names apart: empty for one that is not a signer's, None if it is none."""
    if not is_name(name):
        return None
    key = name.lower()
    return "" if key in _RESERVED else key
