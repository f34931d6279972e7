"""The hot statements, compiled once per database from the tables to text.

SQLAlchemy Core costs 1.4 times the driver alone, most of it for finding the compiled form of a
statement again; these few run for every callback. They take tuples, so an engine must use a
positional parameter style.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Dialect,
    MetaData,
    Select,
    Table,
    TextClause,
    and_,
    bindparam,
    column,
    func,
    insert,
    literal_column,
    null,
    select,
    table,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ValuesBase

from primeflowd.sql import rows, tables
from primeflowd.sql.given_rows import Given

CHANGING_DELIVERY: Final = (
    "status",
    "attempt_count",
    "interruptions",
    "due_at",
    "claimed_by",
    "updated_at",
    "completed_at",
    "failure_reason",
    "signing_secret_id",
    "failure_detail",
)
"""Columns of a delivery that may change, in the order of the table."""

CHANGING_BATCH: Final = (
    "status",
    "items_total",
    "items_succeeded",
    "items_failed",
    "items_cancelled",
    "cancellation_reason",
    "started_at",
    "completed_at",
    "updated_at",
    "output",
    "payload",
)
"""Columns of a batch that may change, in the order of the table."""

delivery_update: Final = attrgetter(*CHANGING_DELIVERY, "id", "org_id")
batch_update: Final = attrgetter(*CHANGING_BATCH, "id", "org_id")
"""What `update_delivery` and `update_batch` take, and the beginning of what `record` takes."""

CHANGED_BY_SUCCESS: Final = (
    "attempt_count",
    "interruptions",
    "updated_at",
    "completed_at",
    "signing_secret_id",
)
"""Columns that `record_success` is given; the rest of CHANGING_DELIVERY is always the same."""

_OR_FAIL: Final = "OR FAIL"
"""How statements over several rows end on SQLite where one of these may not be: with those before
it written. The transaction is rolled back anyway, see session.py. To take back one statement by
itself SQLite would first copy each page that it changes: for groups of a hundred that is a quarter
of what SQLite does for them, and half for groups of a dozen."""


def upsert(dialect: Dialect, table: Table) -> ValuesBase:
    """Insert a row, or replace the one with the same primary key."""
    keys = [column.name for column in table.primary_key]
    rest = [column.name for column in table.columns if column.name not in keys]
    if dialect.name == "postgresql":
        into = postgresql.insert(table)
        return into.on_conflict_do_update(
            # By its name: there the key has the org in it, too.
            constraint=f"{table.name}_pkey",
            # The org of a row is where it is kept; a database that is distributed by it forbids to
            # set it, even to what it is.
            set_={name: into.excluded[name] for name in rest if name != "org_id"},
        )
    statement = sqlite.insert(table)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in rest}
    )


def hidden(column: Column[str]) -> ColumnElement[str]:
    """A column, for statements that find a row by its key and ask something else of it.

    An expression that has a value for a null too cannot use an index on the column, nor a partial
    one. Without statistics, or with those of a quiet time, a planner takes one of them for as short
    a way as the key, and reads all that is claimed, in flight or an org's to find one row.
    """
    return func.coalesce(column, literal_column("''"))


class Statements:
    """SQL text for one dialect; what each takes is a tuple in the order stated."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect: Final = dialect
        self.insert_batch = self._insert(rows.BATCHES)
        self.insert_delivery = self._insert(rows.DELIVERIES)
        self.insert_attempt = self._insert(rows.ATTEMPTS)
        self.insert_answer = self._insert(rows.ANSWERS)
        # CHANGING_DELIVERY, then the id and the org
        delivery = update(tables.deliveries).where(
            tables.deliveries.c.id == bindparam("of_id"),
            hidden(tables.deliveries.c.org_id) == bindparam("of_org"),
        )
        self.update_delivery = self._text(delivery, CHANGING_DELIVERY, ("of_id", "of_org"))
        # CHANGING_DELIVERY, then the id, the org and the node
        owned = and_(
            hidden(tables.deliveries.c.claimed_by) == bindparam("of_node"),
            hidden(tables.deliveries.c.status) == literal_column("'pending'"),
        )
        self.record = self._text(
            delivery.where(owned), CHANGING_DELIVERY, ("of_id", "of_org", "of_node")
        )
        self.record_success = self._success()
        # CHANGING_BATCH, then the id and the org
        batch = update(tables.batches).where(
            tables.batches.c.id == bindparam("of_id"),
            hidden(tables.batches.c.org_id) == bindparam("of_org"),
        )
        self.update_batch = self._text(batch, CHANGING_BATCH, ("of_id", "of_org"))
        # What is asked for each new batch; what each takes is the values of the columns it names.
        self.taken_batch_id = self._by([tables.batches.c.id], ("id",))
        self.policy = self._by(rows.POLICIES.columns, ("org_id", "plan_id"))
        self.current_secret = self._by(rows.SECRETS.columns, ("org_id",), tables.CURRENT)
        self.answer = self._by(rows.ANSWERS.columns, ("org_id", "method", "path", "key"))

    def _insert(self, of: rows.Rows[Any]) -> Given:
        # SQLAlchemy names columns in the order of the table that it is given: one in our order.
        columns = [Column(each.name, each.type) for each in of.columns]
        one = self._text(insert(Table(of.table.name, MetaData(), *columns)), of.names)
        into = f"INSERT {_OR_FAIL} INTO {of.table.name}"
        return self._given(one, of.names, into + " ({names}) VALUES {rows}")

    def _success(self) -> Given:
        """`record` for a success, which is most of them: what is always so need not be given."""
        stored = tables.deliveries.c

        def statement(given: Callable[[str], ColumnElement[Any]]) -> ValuesBase:
            always = {
                "status": literal_column("'succeeded'"),
                "due_at": null(),
                "claimed_by": null(),
                "failure_reason": null(),
                "failure_detail": null(),
            }
            changes = {name: given(name) for name in CHANGED_BY_SUCCESS}
            return (
                update(tables.deliveries)
                .values(always | changes)
                .where(
                    stored.id == given("of_id"),
                    hidden(stored.org_id) == given("of_org"),
                    hidden(stored.claimed_by) == given("of_node"),
                    hidden(stored.status) == literal_column("'pending'"),
                )
            )

        names = (*CHANGED_BY_SUCCESS, "of_id", "of_org", "of_node")
        from_rows = statement(table("given", *map(column, names)).c.__getitem__)
        from_rows = from_rows.prefix_with(_OR_FAIL, dialect="sqlite")
        # Not in front: only of a statement that begins with UPDATE does sqlite3 tell the row count.
        rows_given = "FROM (WITH given ({names}) AS (VALUES {rows}) SELECT * FROM given) AS given"
        several = self._text(from_rows, ()).replace("FROM given", rows_given)
        return self._given(self._text(statement(bindparam), names), names, several)

    def _given(self, one: str, names: Sequence[str], several: str) -> Given:
        quote = self.dialect.identifier_preparer.quote
        on_sqlite = self.dialect.name == "sqlite"
        return Given(one, [quote(name) for name in names], several if on_sqlite else None)

    def _by(
        self, columns: Sequence[Column[Any]], names: Sequence[str], *further: TextClause
    ) -> str:
        """The rows in which the columns of these names have the values that are given."""
        known = columns[0].table.c
        query = select(*columns).where(*(known[name] == bindparam(name) for name in names))
        return self._text(query.where(*further), (), names)

    def _text(
        self,
        statement: ValuesBase | Select[Any],
        values: Sequence[str],
        conditions: Sequence[str] = (),
    ) -> str:
        compiled: Any = statement.compile(dialect=self.dialect, column_keys=list(values))
        if compiled.positiontup != [*values, *conditions]:
            raise AssertionError(f"parameters out of order: {compiled.positiontup}")
        return str(compiled)
