"""Who is asking, what they may do, and for which org (contract 2.1 to 2.4).

Keys are looked up by their digest. One that was found is trusted for a second without asking
storage again, so a revoked key works for at most that long; a miss is never remembered, so a new
key works at once. Memory is bounded: the oldest entries make room.

Blocks on storage for a key not seen in the last second. Fails with Rejected (401, 403) and
InvalidRequest.
"""

import hmac
from functools import partial
from typing import Final

import trio

from primeflowd.access_keys import check_org_id, digest, grants, looks_like_key
from primeflowd.api.errors import Rejected
from primeflowd.api.incoming import Fields
from primeflowd.errors import InvalidRequest
from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import OPERATOR_ORG, ApiKey

KEY_HEADER: Final = "X-Reevit-Key"
ORG_HEADERS: Final = ("X-Org-Id", "X-Organization-Id")

_TRUSTED_FOR: Final = 1.0
_REMEMBERED: Final = 4096
_CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="primeflowd"'),)


class Authenticator:
    """Finds the key of a request, with a small memory of those found lately."""

    def __init__(self, storage: Storage, remembered: int = _REMEMBERED) -> None:
        self._storage = storage
        self._remembered = remembered
        # By digest: the key, and when to ask storage again. In the order of being found.
        self._found: dict[str, tuple[ApiKey, float]] = {}
        # By digest: set when storage has answered.
        self._asking: dict[str, trio.Event] = {}

    async def authenticate(self, headers: Fields) -> ApiKey:
        """The key that the request carries.

        Raises:
            Rejected: 401; there is none, it is not valid, or two differ.
        """
        plain = _offered_key(headers)
        offered = digest(plain)
        key = self._remembered_key(offered)
        if key is None and (asking := self._asking.get(offered)) is not None:
            # All that a busy client has under way would ask at the same moment, each in a thread.
            await asking.wait()
            key = self._remembered_key(offered)
        return key or await self._ask(plain, offered)

    def known(self, headers: Fields) -> ApiKey | None:
        """As `authenticate`, but None for a key that storage must be asked about."""
        return self._remembered_key(digest(_offered_key(headers)))

    def trusts(self, key: ApiKey) -> bool:
        """Whether a request that carries this key, which `authenticate` gave for an earlier one,
        need not be asked about."""
        return self._remembered_key(key.digest) is key

    def forget(self, key_id: str) -> None:
        """Ask storage the next time; a key revoked through this node stops working at once."""
        for offered, (key, _) in list(self._found.items()):
            if key.id == key_id:
                del self._found[offered]

    def _remembered_key(self, offered: str) -> ApiKey | None:
        remembered = self._found.get(offered)
        if remembered is None or trio.current_time() >= remembered[1]:
            return None
        return remembered[0]

    async def _ask(self, plain: str, offered: str) -> ApiKey:
        """As `authenticate`, without memory."""
        former = self._found.pop(offered, None)
        if not looks_like_key(plain):
            raise _unknown()
        asking = self._asking[offered] = trio.Event()
        try:
            key = await self._storage.read(partial(_key, offered))
            if key is None or not hmac.compare_digest(key.digest, offered) or key.revoked_at:
                raise _unknown()
            if former is not None and former[0] == key:
                # Else what was found out about requests with the former one is out of use.
                key = former[0]
            while len(self._found) >= self._remembered:
                del self._found[next(iter(self._found))]
            self._found[offered] = key, trio.current_time() + _TRUSTED_FOR
        finally:
            asking.set()
            if self._asking.get(offered) is asking:
                del self._asking[offered]
        return key


def authorise(key: ApiKey, needed: str) -> None:
    """Check that a key's scopes allow `needed` (as `batches:write`, or `admin`).

    Raises:
        Rejected: 403.
    """
    if needed not in grants(key.scopes):
        raise Rejected(403, "forbidden", f"this needs the scope {needed}", {"scope": needed})


def org_of(key: ApiKey, headers: Fields, *, must_be_named: bool = False) -> str:
    """The org that the request is about.

    Args:
        must_be_named: whether X-Org-Id is required whatever the key, as on retry policies.

    Raises:
        InvalidRequest: `org_id_required`, `invalid_org_id`, `conflicting_org_ids`.
        Rejected: 403, the org is not the key's.
    """
    values = headers.getlist(ORG_HEADERS[0]) + headers.getlist(ORG_HEADERS[1])
    named = {_decoded(value) for value in values}
    if (must_be_named and ORG_HEADERS[0] not in headers) or (
        not named and key.org_id == OPERATOR_ORG
    ):
        own = None if key.org_id == OPERATOR_ORG else {"org_id": key.org_id}
        raise InvalidRequest("org_id_required", "name the org in the header X-Org-Id", own)
    if not named:
        return key.org_id
    if len(named) > 1:
        raise InvalidRequest("conflicting_org_ids", "the headers name different orgs")
    org_id = named.pop()
    check_org_id(org_id)
    if key.org_id not in (OPERATOR_ORG, org_id):
        raise Rejected(403, "forbidden", "this key belongs to another org")
    return org_id


def _key(wanted: str, tx: Tx) -> ApiKey | None:
    return tx.key_by_digest(wanted)


def _offered_key(headers: Fields) -> str:
    offered = [value.strip() for value in headers.getlist(KEY_HEADER)]
    for value in headers.getlist("Authorization"):
        scheme, _, credentials = value.partition(" ")
        # Another scheme beside X-Reevit-Key is another identity: we do not guess which is meant.
        offered.append(credentials.strip() if scheme.lower() == "bearer" else "")
    if not offered:
        raise _unauthorized("missing_api_key", f"send an API key, as Bearer token or {KEY_HEADER}")
    if offered.count(offered[0]) < len(offered):
        raise _unauthorized("conflicting_api_keys", "the request carries different API keys")
    return offered[0]


def _unknown() -> Rejected:
    return _unauthorized("invalid_api_key", "this API key is unknown or revoked")


def _unauthorized(code: str, message: str) -> Rejected:
    return Rejected(401, code, message, headers=_CHALLENGE)


def _decoded(value: str) -> str:
    """A header's text; the framework reads its bytes as Latin-1, people send UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise InvalidRequest("invalid_org_id", "the org id is not UTF-8") from error
