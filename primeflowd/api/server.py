"""Serving the application: Hypercorn's Trio worker on a socket that we bind.

The socket is bound here so that an address in use is one line for the operator, and so that port 0
works. Hypercorn opens its own nursery inside ours; on `shutdown` it stops accepting, lets requests
under way finish for `GRACE` seconds, and returns.

Fails with OperatorError at bind, and with nothing else that is not a bug.
"""

import logging
import socket
from typing import Final, cast

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from primeflowd.api import malformed
from primeflowd.errors import OperatorError

GRACE: Final = 3.0
_BACKLOG: Final = 1024
_IDLE: Final = 60.0


async def serve(
    app: QuartTrio,
    bind: tuple[str, int],
    shutdown: trio.Event,
    *,
    idle_timeout: float = _IDLE,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set. Reports the URLs it listens on, as `http://127.0.0.1:8081`.

    Args:
        idle_timeout: seconds that a connection without a request is kept; also the longest that
            the head of a request may take.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    malformed.install()
    listener = await _listen(*bind)
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


async def _listen(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # A name such as localhost means one address here, the same every time: with port 0, two
    # addresses would get two ports.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OperatorError(f"cannot listen on {shown}: {error.strerror}") from error
    except BaseException:
        # Cancelled during the lookup, or a bug: either way nobody else knows of the socket.
        listener.close()
        raise
    return listener


def _hypercorn_config(idle_timeout: float) -> HypercornConfig:
    config = HypercornConfig()
    # Loggers rather than the names of files: nothing of the server writes to stdout or stderr.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = GRACE
    config.keep_alive_timeout = idle_timeout
    return config
