"""API keys: how they look, how they are made, and what their scopes allow (contract 2.1, 2.2).

Pure but for the random source. A key is `pfk_` and 40 lower-case letters and digits, 206 bits of
chance, which is why a single SHA-256 of it is enough to store: nobody can search that space. Used
by the API and by the `keys` commands.

Fails with InvalidRequest, whose message is fit for a client and for a command line.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from primeflowd.errors import InvalidRequest
from primeflowd.instants import Micros
from primeflowd.model import OPERATOR_ORG, ApiKey, new_id

ADMIN: Final = "admin"
RESOURCES: Final = ("policies", "batches", "deliveries", "secrets", "keys")
ACTIONS: Final = ("read", "write")

_PREFIX: Final = "pfk_"
_ALPHABET: Final = string.ascii_lowercase + string.digits
_LENGTH: Final = 40
_SHOWN: Final = len(_PREFIX) + 6
_PATTERN: Final = re.compile(r"pfk_[a-z0-9]{40}")
MAX_LABEL: Final = 128
_MAX_ORG_ID: Final = 128
# Everything that one scope can grant, spelt out; `admin` stands for itself and all of these.
_GRANTS: Final = {
    ADMIN: frozenset({ADMIN, *(f"{r}:{a}" for r in RESOURCES for a in ACTIONS)}),
    **{f"{r}:*": frozenset(f"{r}:{a}" for a in ACTIONS) for r in RESOURCES},
    **{f"{r}:{a}": frozenset({f"{r}:{a}"}) for r in RESOURCES for a in ACTIONS},
}


def new_key(
    org_id: str, scopes: Iterable[str], label: str | None, now: Micros
) -> tuple[ApiKey, str]:
    """A fresh key as it is stored, and the key itself, which is nowhere else.

    Raises:
        InvalidRequest: `invalid_org_id`, `invalid_scope` or `invalid_label`.
    """
    if org_id != OPERATOR_ORG:
        check_org_id(org_id)
    if label is not None and (len(label) > MAX_LABEL or not label.isprintable()):
        raise InvalidRequest(
            "invalid_label", f"a label has at most {MAX_LABEL} characters, all printable"
        )
    plain = _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    key = ApiKey(
        id=new_id(),
        org_id=org_id,
        digest=digest(plain),
        key_prefix=plain[:_SHOWN],
        scopes=check_scopes(scopes),
        label=label,
        revoked_at=None,
        created_at=now,
    )
    return key, plain


def looks_like_key(text: str) -> bool:
    """Whether `text` is spelt as a key is; says nothing about whether there is such a key."""
    return _PATTERN.fullmatch(text) is not None


def digest(key: str) -> str:
    """The SHA-256 of a key in hex, which is what storage knows it by."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_org_id(org_id: str) -> None:
    """Contract 2.3.

    Raises:
        InvalidRequest: `invalid_org_id`: not 1 to 128 printable characters, or `*`, which is what
            operator keys have and no org is called.
    """
    if not 1 <= len(org_id) <= _MAX_ORG_ID or not org_id.isprintable() or org_id == OPERATOR_ORG:
        raise InvalidRequest(
            "invalid_org_id", f"an org id has 1 to {_MAX_ORG_ID} printable characters"
        )


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes in the order given, each once.

    Raises:
        InvalidRequest: `invalid_scope`: one is unknown, or there are none.
    """
    unique = tuple(dict.fromkeys(scopes))
    if not unique:
        raise InvalidRequest("invalid_scope", "a key needs at least one scope")
    for scope in unique:
        if scope not in _GRANTS:
            raise InvalidRequest(
                "invalid_scope",
                f"no such scope: {scope[:64]!r}; there are admin, and read, write and * of "
                + ", ".join(RESOURCES),
                {"scope": scope[:64]},
            )
    return unique


@lru_cache(maxsize=256)
def grants(scopes: tuple[str, ...]) -> frozenset[str]:
    """All that `scopes` allow, as `resource:action`; with `admin` if they include it.

    A scope of a newer version grants nothing here.
    """
    return frozenset().union(*(_GRANTS.get(scope, ()) for scope in scopes))
