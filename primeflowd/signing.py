"""What a sender needs to sign a callback: the org's secrets, and what the signers make of them.

The plain secrets of recently used orgs are held in memory for a second, so that signing costs no
storage read in the rule. A change made through this process is seen at once (`forget`), one made
by another node within that second.

Blocks on: one storage read per org and second, shared by all senders that wait for it.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from primeflowd.clock import Clock
from primeflowd.errors import MasterKeyError, PrimeflowdError, StorageUnavailable
from primeflowd.hookspecs import Signer, SigningRequest, Storage, Tx
from primeflowd.instants import MINUTE, SECOND, Micros
from primeflowd.keyring import Keyring
from primeflowd.model import Delivery, SigningSecret
from primeflowd.signed_headers import SigningFailed, lines_by
from primeflowd.signing_secrets import plain_text

MAX_ORGS: Final = 4096
"""Orgs whose secrets are held; the one that was not used for longest makes room."""

# In the last part of their time secrets are read anew by one attempt; at the end of it, all would
# wait for that.
_READ_AHEAD: Final = 0.3


class Signed(msgspec.Struct, frozen=True, gc=False):
    """Header lines to add, and the secret that they were made with first; none for an unsigned
    one."""

    lines: str = ""
    secret_id: str | None = None


_UNSIGNED: Final = Signed()


class _Secret(msgspec.Struct, frozen=True):
    id: str
    plain: str

    def __repr__(self) -> str:
        return f"_Secret(id={self.id})"


class _Order:
    """The secrets of an org in the order for deliveries that are pinned to one of them.

    Attributes:
        plain: as signers are given them.
        first: the id of the first.
    """

    __slots__ = ("first", "plain")

    def __init__(self, secrets: Sequence[_Secret]) -> None:
        self.plain = tuple(secret.plain for secret in secrets)
        self.first = secrets[0].id


class _Secrets(dict[str | None, _Order | None]):
    """An org's enabled secrets: the pinned one first, then the current one and the others; None if
    there are none. Each order is made when it is first asked for."""

    def __init__(self, ordered: Sequence[_Secret]) -> None:
        """`ordered`: the current one first."""
        super().__init__()
        self._enabled = ordered

    def __missing__(self, pinned: str | None) -> _Order | None:
        if not self._enabled:
            return None
        # Stable.
        order = _Order(sorted(self._enabled, key=lambda one: one.id != pinned))
        self[pinned] = order
        return order


class _Held(msgspec.Struct, frozen=True):
    """An org's secrets. On Trio's clock: until when they may be used, and from when on whoever
    comes first shall read them anew while others use these."""

    secrets: _Secrets
    until: float
    read_from: float


class _Reading:
    """A storage read under way for one org, and what became of it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.secrets: _Secrets | None = None
        self.failure: PrimeflowdError | None = None


class Signatures:
    """Signs callbacks. For use in Trio tasks only."""

    def __init__(
        self,
        storage: Storage,
        keyring: Keyring,
        signers: Sequence[Signer],
        clock: Clock,
        ttl: float = 1.0,
        max_orgs: int = MAX_ORGS,
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._signers = tuple(signers)
        self._clock = clock
        self._ttl = ttl
        self._max_orgs = max_orgs
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._readings: dict[str, _Reading] = {}
        self._used: dict[tuple[str, str], Micros] = {}

    async def sign(self, delivery: Delivery, attempt_id: str, body: bytes) -> Signed:
        """What this attempt is signed with; unsigned where the org has no enabled secret (6.3).

        A checkpoint only if the org's secrets are not held.

        Raises:
            SigningFailed: a signer raised or gave unusable headers, or a secret does not open.
            StorageUnavailable: the secrets cannot be read; nothing was decided.
        """
        if not self._signers:
            return _UNSIGNED
        secrets = await self._secrets_of(delivery.org_id)
        return self._sign(delivery, attempt_id, body, secrets, self._clock.now())

    def sign_now(
        self, delivery: Delivery, attempt_id: str, body: bytes, now: float, instant: Micros
    ) -> Signed | None:
        """As `sign`; None if the org's secrets are not held. `now`: Trio's time; `instant`: the
        time of day.

        Raises:
            SigningFailed: as `sign`.
        """
        if not self._signers:
            return _UNSIGNED
        held = self._held.get(delivery.org_id)
        if (
            held is None
            or now >= held.until
            or (now >= held.read_from and delivery.org_id not in self._readings)
        ):
            return None
        return self._sign(delivery, attempt_id, body, held.secrets, instant)

    def _sign(
        self, delivery: Delivery, attempt_id: str, body: bytes, secrets: _Secrets, instant: Micros
    ) -> Signed:
        order = secrets[delivery.signing_secret_id]
        if order is None:
            return _UNSIGNED
        request = SigningRequest(
            batch_id=delivery.batch_id,
            delivery_id=delivery.id,
            attempt_id=attempt_id,
            timestamp=instant // SECOND,
            body=body,
            secrets=order.plain,
            url=delivery.callback_url,
        )
        lines = lines_by(self._signers, request)
        self._used[delivery.org_id, order.first] = instant
        return Signed(lines, order.first)

    def reconfigure(self, signers: Sequence[Signer]) -> None:
        """Sign with these from the next attempt on."""
        self._signers = tuple(signers)

    def forget(self, org_id: str) -> None:
        """Read this org's secrets anew at the next attempt; call it once a change is committed."""
        self._held.pop(org_id, None)
        # A read under way may have begun before the change: those who wait for it may have its
        # answer, but it must not be held.
        self._readings.pop(org_id, None)

    async def flush_last_used(self) -> None:
        """Write down when secrets were last used, each at most once a minute, in one transaction.

        What is not written, for that reason or because the storage fails, is kept for next time.

        Raises:
            StorageUnavailable: nothing was written.
        """
        used, now = dict(self._used), self._clock.now()
        if not used:
            return

        def write(tx: Tx) -> list[tuple[str, str]]:
            settled = []
            for (org_id, secret_id), instant in used.items():
                secret = tx.secret(org_id, secret_id)
                last = secret.last_used_at if secret is not None else None
                if last is not None and last < instant and now < last + MINUTE:
                    continue
                if secret is not None and (last is None or last < instant):
                    tx.put_secret(msgspec.structs.replace(secret, last_used_at=instant))
                settled.append((org_id, secret_id))
            return settled

        for key in await self._storage.write(write):
            # Used again meanwhile: stays for the next time.
            if self._used.get(key) == used[key]:
                del self._used[key]

    async def _secrets_of(self, org_id: str) -> _Secrets:
        while True:
            held, now = self._held.get(org_id), trio.current_time()
            reading = self._readings.get(org_id)
            if held is not None and now < (held.until if reading else held.read_from):
                self._held.move_to_end(org_id)
                return held.secrets
            if reading is None:
                return await self._read(org_id)
            await reading.done.wait()
            if reading.secrets is not None:
                return reading.secrets
            if reading.failure is not None:
                # A copy: one exception raised in many tasks would mix up their tracebacks.
                raise copy.copy(reading.failure) from reading.failure
            # Else the task that read was cancelled, and one of us takes over.

    async def _read(self, org_id: str) -> _Secrets:
        reading = self._readings[org_id] = _Reading()
        # From the start of the read on: the snapshot may be as old as that.
        until = trio.current_time() + self._ttl
        try:
            rows = await self._storage.read(lambda tx: tx.secrets(org_id))
            secrets = reading.secrets = self._open(rows)
        except (StorageUnavailable, SigningFailed) as error:
            reading.failure = error
            raise
        finally:
            reading.done.set()
            wanted = self._readings.get(org_id) is reading
            if wanted:
                del self._readings[org_id]
        if wanted:
            self._held[org_id] = _Held(secrets, until, until - _READ_AHEAD * self._ttl)
            self._held.move_to_end(org_id)
            if len(self._held) > self._max_orgs:
                self._held.popitem(last=False)
        return secrets

    def _open(self, rows: Sequence[SigningSecret]) -> _Secrets:
        enabled = [row for row in rows if row.disabled_at is None]
        enabled.sort(key=lambda row: not row.is_current)
        try:
            return _Secrets([_Secret(row.id, plain_text(self._keyring, row)) for row in enabled])
        except MasterKeyError as error:
            # One damaged row must cost its org's attempts, not the daemon.
            raise SigningFailed("keyring", str(error)) from error
