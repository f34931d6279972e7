"""The socket that the API listens on, whichever server answers on it.

It is bound here so that an address in use is one line for the operator, and so that port 0 works.
Fails with OperatorError.
"""

import socket
from typing import Final

import trio

from primeflowd.errors import OperatorError

GRACE: Final = 3.0
"""Seconds that requests under way have left once a server is told to shut down."""

IDLE: Final = 60.0
"""Seconds that a connection without a request is kept, unless told otherwise."""

_BACKLOG: Final = 1024


async def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening, non-blocking socket; the caller closes it.

    Args:
        reuse_port: share the port with other processes that ask for the same.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    # A name such as localhost means one address here, the same every time: with port 0, two
    # addresses would get two ports.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(found[0][4])
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OperatorError(f"cannot listen on {_shown(host, port)}: {error.strerror}") from error
    except BaseException:
        # Cancelled during the lookup, or a bug: either way nobody else knows of the socket.
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where it listens, as `http://127.0.0.1:8081`."""
    host, port = listener.getsockname()[:2]
    return f"http://{_shown(host, port)}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
