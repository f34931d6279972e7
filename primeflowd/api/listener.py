"""The socket that the API listens on, whichever server answers on it.

It is bound here so that an address in use is one line for the operator, and so that port 0 works;
or it listens already and was passed to this process. Then it belongs to others, too: it is closed
in the end like any other, and never shut down. Fails with OperatorError.
"""

import socket
from contextlib import ExitStack
from typing import Final

import trio

from primeflowd.errors import OperatorError

GRACE: Final = 3.0
"""Seconds that requests under way have left once a server is told to shut down."""

IDLE: Final = 60.0
"""Seconds that a connection without a request is kept, unless told otherwise."""

INHERITED: Final = "fd://"
"""In the place of a host: what stands for the port is the descriptor of a listening socket."""

_BACKLOG: Final = 1024


async def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening, non-blocking socket; the caller closes it.

    Args:
        host: a name or an address, or INHERITED.
        reuse_port: share the port with other processes that ask for the same.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    if host == INHERITED:
        return _take_over(port)
    # A name such as localhost means one address here, the same every time: with port 0, two
    # addresses would get two ports.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as unless_it_listens:
        listener = unless_it_listens.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(found[0][4])
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            raise OperatorError(
                f"cannot listen on {_shown(host, port)}: {error.strerror}"
            ) from error
        unless_it_listens.pop_all()
    return listener


def _take_over(descriptor: int) -> socket.socket:
    """The socket behind a descriptor that was passed to this process."""
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OperatorError(f"the descriptor passed is not a socket: {error.strerror}") from error
    internet = listener.family in (socket.AF_INET, socket.AF_INET6)
    stream = listener.type == socket.SOCK_STREAM
    if not (internet and stream and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        listener.close()
        raise OperatorError(
            "the socket passed does not listen for TCP; ListenStream=PORT makes one"
        )
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where it listens, as `http://127.0.0.1:8081`."""
    host, port = listener.getsockname()[:2]
    return f"http://{_shown(host, port)}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
