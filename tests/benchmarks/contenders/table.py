"""Who takes part. To add a row, add a definition; a missing part is reported in its row."""

from tests.benchmarks.contenders.bullmq import BullMQ
from tests.benchmarks.contenders.celery_redis import Celery
from tests.benchmarks.contenders.contender import Definition
from tests.benchmarks.contenders.direct import ReceiverAlone
from tests.benchmarks.contenders.primeflowd import Primeflowd
from tests.benchmarks.machine import Cores

_HYPERCORN = '[api]\nserver = "hypercorn"\n'


def named() -> tuple[Definition, ...]:
    """All rows, to look them up: which cores they would have here does not matter."""
    one, both = frozenset({0}), frozenset({0, 1})
    return contenders(Cores(one, both - one), Cores(both, both))


def contenders(one: Cores, both: Cores) -> tuple[Definition, ...]:
    """All rows, in the order of the table: most have one core, some share both with the load.

    The first row of primeflowd of each size is what others of that size are compared with.
    """
    return (
        ReceiverAlone(one),
        Primeflowd("primeflowd, single POST", 1, one),
        Primeflowd("primeflowd, single POST, Hypercorn", 1, one, settings=_HYPERCORN),
        Primeflowd("primeflowd, bulk of 100", 100, one),
        Primeflowd("primeflowd, bulk of 100, all on both cores", 100, both),
        *(
            Primeflowd(
                f"primeflowd, bulk of 100, {what}, {where}",
                *(100, both),
                nodes=2,
                shared=shared,
                pinned=pinned,
            )
            for what, shared in (("two SQLite nodes", False), ("two nodes on one file", True))
            for where, pinned in (("a core each", True), ("both cores", False))
        ),
        *(
            Primeflowd(f"primeflowd, bulk of 100, PostgreSQL, {text}", 100, one, n, "postgresql")
            for n, text in ((1, "1 node"), (2, "2 nodes"), (3, "3 nodes"))
        ),
        Celery("Celery + Redis + requests", one),
        BullMQ("BullMQ + Redis + undici, add", 1, one),
        BullMQ("BullMQ + Redis + undici, addBulk(100)", 100, one),
        BullMQ("BullMQ + Redis + undici, addBulk(100), Unix socket", 100, one, unix=True),
    )
