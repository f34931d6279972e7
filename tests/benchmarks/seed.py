"""A database with many waiting deliveries, written through the storage itself."""

from functools import partial
from pathlib import Path

import trio

from primeflowd.clock import SystemClock
from primeflowd.config import Config, StorageSettings
from primeflowd.hookspecs import Tx
from primeflowd.instants import DAY
from primeflowd.lifecycle import NewBatch, create_batch
from primeflowd.plugins import Plugins
from primeflowd.unit import Unit

_AT_ONCE = 5_000


def seed_waiting(database: Path, count: int) -> None:
    """Fill `database` with `count` ended batches whose first retry is due tomorrow."""
    trio.run(_seed, database, count)


async def _seed(database: Path, count: int) -> None:
    config = Config(storage=StorageSettings(url=f"sqlite:///{database}"))
    async with Plugins(config).open_storage(config, None) as storage:
        for start in range(0, count, _AT_ONCE):
            await storage.write(partial(_insert, config, start, min(_AT_ONCE, count - start)))


def _insert(config: Config, start: int, count: int, tx: Tx) -> None:
    tomorrow = SystemClock().now() + DAY
    unit = Unit(tx, tomorrow, config.delivery.default_policy, lambda _: None)
    for k in range(start, start + count):
        create_batch(
            unit,
            "bench",
            NewBatch(
                callback_url=f"http://127.0.0.{k % 50 + 1}:9/callback",
                status="succeeded",
                output=b'{"rows":1234,"note":"' + b"x" * 260 + b'"}',
            ),
        )
