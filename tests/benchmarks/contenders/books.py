"""What primeflowd has written down, counted from outside, by SQL."""

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import func, select

from primeflowd.sql.tables import attempts, deliveries


class Rows(NamedTuple):
    """How many there are."""

    deliveries: int
    succeeded: int
    """and no longer held by a node"""
    attempts: int


class Books:
    """The rows of one database, from the newest delivery on that it has now."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url)
        self._since = ""
        self.turn_page()

    def turn_page(self) -> None:
        """Count from here on: ids of deliveries made later sort later."""
        with self._engine.connect() as connection:
            self._since = connection.scalar(select(func.max(deliveries.c.id))) or ""

    def rows(self) -> Rows:
        made = deliveries.c.id > self._since
        done = (deliveries.c.status == "succeeded", deliveries.c.claimed_by.is_(None))
        count = select(func.count()).select_from(deliveries)
        attempted = select(func.count()).select_from(attempts)
        with self._engine.connect() as connection:
            return Rows(
                connection.scalar(count.where(made)) or 0,
                connection.scalar(count.where(made, *done)) or 0,
                connection.scalar(attempted.where(attempts.c.delivery_id > self._since)) or 0,
            )

    def answered_attempts(self) -> int:
        """Attempts that met an answer, whatever its status."""
        answered = (attempts.c.delivery_id > self._since, attempts.c.status_code.is_not(None))
        with self._engine.connect() as connection:
            query = select(func.count()).select_from(attempts).where(*answered)
            return connection.scalar(query) or 0

    def close(self) -> None:
        self._engine.dispose()


def complaint(books: Sequence[Books], accepted: int) -> str | None:
    """Against `accepted` callbacks having been delivered in one attempt each."""
    found = Rows(*map(sum, zip(*(each.rows() for each in books), strict=True)))
    if found == (accepted, accepted, accepted):
        return None
    return (
        f"{accepted} accepted, but the database has {found.deliveries} deliveries, "
        f"{found.succeeded} of them succeeded, and {found.attempts} attempts"
    )
