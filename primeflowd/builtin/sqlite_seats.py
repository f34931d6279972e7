"""Seats: which nodes of this machine have a SQLite file open, and which of those are dead.

A seat is a lock that a node holds for as long as its process lives. So a node that was killed need
not be waited for until its lease expires: who finds its seat free ends the lease, and the claims
are anybody's at once.

The storage remembers who sat where last, in notes `seat:1`, `seat:2` and so on. A note is written
only by who sits there, and no node leaves its seat alive: a note whose seat is free names a node
that is dead.

Blocks on: nothing but the storage; a seat that is taken is passed over.
"""

from typing import Final

from primeflowd.builtin.sqlite_locks import LockFile
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Storage, Tx

COUNT: Final = 64
"""As many nodes can have one file open. Their locks are numbered from 1, as the seats are."""


class Seats:
    """The seats of one storage, seen by one that has it open."""

    def __init__(self, locks: LockFile) -> None:
        self._locks = locks
        self._own: int | None = None

    def sit_down(self) -> None:
        """Take the first free seat, for as long as the lock file is open.

        Raises:
            OperatorError: there is none.
        """
        self._own = next((seat for seat in _all() if self._locks.take(seat)), None)
        if self._own is None:
            raise OperatorError(f"{COUNT} nodes use the storage already, and it takes no more")

    async def settle(self, storage: Storage, node_id: str | None) -> None:
        """End the leases of the dead. A node leaves a note of who sits here now.

        Raises:
            StorageUnavailable: nothing was done.
        """
        if node_id is not None or await storage.read(self._has_dead):
            await storage.write(lambda tx: self._settle(tx, node_id))

    def _has_dead(self, tx: Tx) -> bool:
        # Most of the time nobody is, and a visitor need not write.
        living = tx.nodes()
        return bool(living) and any(
            _is_lease_of(last, lease) for last in self._dead(tx) for lease in living
        )

    def _settle(self, tx: Tx, node_id: str | None) -> None:
        living = tx.nodes()
        for last in self._dead(tx):
            for lease in {last, *(each for each in living if _is_lease_of(last, each))}:
                tx.end_lease(lease)
        if node_id is not None:
            tx.put_note(_note(self._own), node_id)

    def _dead(self, tx: Tx) -> list[str]:
        """Those who sat last on a seat that nobody else sits on now.

        First the note, then the lock: who takes a seat later writes its note later. Our own seat
        was free before we came; its note is our predecessor's until we write ours.
        """
        notes = ((seat, tx.note(_note(seat))) for seat in _all())
        return [last for seat, last in notes if last is not None and self._locks.is_free(seat)]


def _all() -> range:
    return range(1, COUNT + 1)


def _note(seat: int | None) -> str:
    return f"seat:{seat}"


def _is_lease_of(node_id: str, lease: str) -> bool:
    """A node that lost its lease goes on under its id with a number, `ID/2`."""
    return lease == node_id or lease.startswith(f"{node_id}/")
