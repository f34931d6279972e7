"""A short visit to the storage, while a daemon has it open or before one ever did."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from primeflowd.config import Config
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Storage
from primeflowd.plugins import Plugins

T = TypeVar("T")


def visit(
    config: Config, use: Callable[[Storage], Awaitable[T]], plugins: Plugins | None = None
) -> T:
    """Open the configured storage, which is made if it is missing, and return what `use` does.

    `plugins` are those of this process, if it has loaded them already.

    Raises:
        OperatorError: it cannot be opened, or no other process could see what is done to it.
    """
    if config.storage_url.startswith("memory:"):
        raise OperatorError("storage.url is memory://, which no other process can see")

    async def come_and_go() -> T:
        async with (plugins or Plugins(config)).open_storage(config, None) as storage:
            return await use(storage)

    return trio.run(come_and_go)
