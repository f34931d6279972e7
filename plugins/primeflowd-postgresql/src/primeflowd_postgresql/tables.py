"""The tables as PostgreSQL has them: those of primeflowd.sql.tables, fit for growth.

The columns, their order and the indexes are the shared ones; queries are the same. Here they get

- `COLLATE "C"` for every text: order and comparison are bytewise, as in SQLite, whatever the
  locale of the database, and stay so when the host's C library changes;
- the org in every primary key and unique index of a table that belongs to orgs, so that a table
  can be hash-partitioned or distributed by org without a change of a key. The id stands first, so
  that one index answers questions with and without the org;
- a vacuum that keeps up with how it changes.

Attempts are not partitioned by time. They are only ever found by their delivery, live exactly as
long as it does, and leave with it, in batches that a vacuum keeps up with; dropping a month would
drop the history of deliveries that are still there. And the instant would have to be in the
primary key, so that "one attempt of this number" would hold within a month only, and every lookup
by delivery would probe every partition.
"""

from typing import Any, Final

from sqlalchemy import Column, Index, MetaData, PrimaryKeyConstraint, Table, Text

from primeflowd.sql import tables as shared

metadata: Final = MetaData()

_GROWING: Final = {
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_insert_scale_factor": 0.05,
    "autovacuum_analyze_scale_factor": 0.02,
    "autovacuum_vacuum_cost_limit": 2000,
}
_IN_PLACE: Final = {"autovacuum_vacuum_scale_factor": 0.0, "autovacuum_vacuum_threshold": 200}

STORAGE: Final[dict[str, dict[str, Any]]] = {
    "deliveries": _GROWING,
    "attempts": _GROWING,
    # The payload and the output lie beside the table (TOAST).
    "batches": {
        **_GROWING,
        "toast.autovacuum_vacuum_scale_factor": 0.02,
        "toast.autovacuum_vacuum_cost_limit": 2000,
    },
    "items": _GROWING,
    "answers": _GROWING,
    # A handful of rows that change every few seconds for as long as the system lives.
    "nodes": {**_IN_PLACE, "fillfactor": 50},
    "orders": _IN_PLACE,
}
"""Storage parameters by table.

Of a growing table a fiftieth is let die before it is vacuumed, not a fifth, and the vacuum may take
ten times its usual share of the disk: what retention deletes today is room for what comes
tomorrow. Its pages are filled. An update of a delivery changes what the predicates of indexes ask
for, so every index gets a new entry wherever the row lies; with 30 % of each page left free for
new versions the table was 30 % larger, its indexes as large as before.
"""


def _declare(table: Table) -> None:
    key = [column.name for column in table.primary_key]
    declared = Table(
        table.name,
        metadata,
        *(_column(column) for column in table.columns),
        # Its name is PostgreSQL's own; upserts name it.
        PrimaryKeyConstraint(*_with_org(table, key), name=f"{table.name}_pkey"),
        postgresql_with=STORAGE.get(table.name, {}),
    )
    for index in table.indexes:
        names = [column.name for column in index.columns]
        Index(
            index.name,
            *(declared.c[name] for name in (_with_org(table, names) if index.unique else names)),
            unique=index.unique,
            postgresql_where=index.dialect_options["postgresql"]["where"],
        )


def _column(column: Column[Any]) -> Column[Any]:
    kind = Text(collation="C") if isinstance(column.type, Text) else column.type
    # Defaults of the shared tables are there for SQLite's migrations.
    return Column(column.name, kind, nullable=column.nullable, autoincrement=False)


def _with_org(table: Table, names: list[str]) -> list[str]:
    of_org = "org_id" in table.columns and "org_id" not in names
    return [*names, "org_id"] if of_org else names


for _table in shared.metadata.sorted_tables:
    _declare(_table)
