"""Serving the application: Hypercorn's Trio worker on a socket that we bind.

Hypercorn opens its own nursery inside ours; on `shutdown` it stops accepting, lets requests
under way finish for `GRACE` seconds, and returns.

Fails with OperatorError at bind, and with nothing else that is not a bug.
"""

import logging
from typing import cast

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from primeflowd.api import malformed
from primeflowd.api.listener import GRACE, IDLE, listen
from primeflowd.api.request_rules import MAX_HEAD


async def serve(
    app: QuartTrio,
    bind: tuple[str, int],
    shutdown: trio.Event,
    *,
    idle_timeout: float = IDLE,
    reuse_port: bool = False,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set. Reports the URLs it listens on, as `http://127.0.0.1:8081`.

    Args:
        idle_timeout: seconds that a connection without a request is kept; also the longest that
            the head of a request may take.
        reuse_port: share the port with other processes that ask for the same.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    malformed.install()
    listener = await listen(*bind, reuse_port=reuse_port)
    try:
        await worker_serve(
            wrap_app(cast("ASGIFramework", app), 0, "asgi"),
            _hypercorn_config(idle_timeout),
            sockets=Sockets([], [listener], []),
            shutdown_trigger=shutdown.wait,
            task_status=task_status,
        )
    finally:
        listener.close()


def _hypercorn_config(idle_timeout: float) -> HypercornConfig:
    config = HypercornConfig()
    # Loggers rather than the names of files: nothing of the server writes to stdout or stderr.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = GRACE
    config.keep_alive_timeout = idle_timeout
    config.h11_max_incomplete_size = MAX_HEAD
    return config
