"""systemd, as far as it and this process talk: what it passed on, and what it is told.

Owns the variables of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3). They are read once
and removed, so that no child process takes for its own what was meant for this one. Where they are
absent, there is nobody to tell and nothing was passed.

Blocks on: the service manager's queue of messages, for a second at most. A message that does not
get there is logged and otherwise missed. Fails with OperatorError, at the start, for variables that
make no sense.
"""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from primeflowd.errors import OperatorError

log = structlog.get_logger()

FIRST_DESCRIPTOR: Final = 3
"""The number of the first descriptor that is passed; the others follow."""

_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """What the environment said.

    Attributes:
        address: where messages go, as connect() takes it; empty if nobody is listening.
        watchdog: seconds after which a silent process is killed, None if it is not watched.
        listener: the descriptor of the socket that the API shall listen on, if one was passed.
    """

    address: str = ""
    watchdog: float | None = None
    listener: int | None = None

    async def tell(self, *assignments: str) -> None:
        """Send `NAME=value` lines, in one message. Never raises for what is not ours to mend."""
        if not self.address:
            return
        message = "\n".join(assignments).encode()
        try:
            # A socket for each message: the one at the other end may be replaced while we live.
            with (
                trio.fail_after(_PATIENCE),
                trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
            ):
                await sock.connect(self.address)
                await sock.send(message)
        except (OSError, trio.TooSlowError) as error:
            log.warning(
                "service_manager_not_told", message=assignments[0], error=str(error) or "timeout"
            )


def take(environment: MutableMapping[str, str]) -> ServiceManager:
    """What the service manager passed to this process; its variables are removed.

    Raises:
        OperatorError: a variable is malformed, or what was passed cannot be used.
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    if address and address[0] not in "/@":
        raise OperatorError(f"NOTIFY_SOCKET: expected a path or an abstract name, not {address!r}")
    if address.startswith("@"):
        address = "\0" + address[1:]
    return ServiceManager(address, _watchdog(environment), _listener(environment))


def _watchdog(environment: MutableMapping[str, str]) -> float | None:
    micros = _number(environment, "WATCHDOG_USEC")
    watched = _number(environment, "WATCHDOG_PID")
    # Without a PID whoever has the variable is meant.
    if not micros or watched not in (None, os.getpid()):
        return None
    return micros / 1_000_000


def _listener(environment: MutableMapping[str, str]) -> int | None:
    count, owner = _number(environment, "LISTEN_FDS"), _number(environment, "LISTEN_PID")
    names = environment.pop("LISTEN_FDNAMES", "")
    if not count or owner != os.getpid():
        return None
    if count > 1:
        raise OperatorError(
            f"the service manager passed {count} sockets ({names or 'unnamed'}), and the API "
            "listens on one: ListenStream=PORT alone takes IPv4 and IPv6"
        )
    try:
        os.set_inheritable(FIRST_DESCRIPTOR, False)
    except OSError as error:
        raise OperatorError(
            f"LISTEN_FDS: descriptor {FIRST_DESCRIPTOR}: {error.strerror}"
        ) from error
    return FIRST_DESCRIPTOR


def _number(environment: MutableMapping[str, str], name: str) -> int | None:
    text = environment.pop(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise OperatorError(f"{name}: expected a whole number, not {text!r}")
    return int(text)
