"""Locks between the processes that share a SQLite file: each on one byte of `PATH.lock`.

They belong to the open file (OFD locks), not to the process, whose locks end with any descriptor of
the file that it closes. The kernel takes them away at the moment that the last descriptor is gone,
however its process ended; they do not outlive it, and cannot be left behind.
"""

import fcntl
import os
import struct
from functools import cache
from pathlib import Path
from typing import Final, Self

from primeflowd.errors import OperatorError

_FLOCK: Final = "hhqqi0q"
"""struct flock: type, whence, start, length, and a process id, which has to be 0 here."""


def leave_to_owner_of_directory(descriptor: int, path: Path) -> None:
    """Give root's file to whom its directory belongs.

    An administrator makes an API key before the daemon was ever started: the daemon, which runs as
    a user of its own, must be able to open what that made.
    """
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0:
        owner = path.absolute().parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


class LockFile:
    """One opening of the file: what one of them has locked, another cannot, in this process too."""

    def __init__(self, path: Path) -> None:
        """Raises OSError: the file cannot be made or opened."""
        self._path = Path(f"{path}.lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        leave_to_owner_of_directory(self._descriptor, self._path)

    def close(self) -> None:
        """Give back all locks. The file stays: were it removed, two processes could hold the same
        lock, on two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def take(self, byte: int, count: int = 1) -> bool:
        """Lock a byte, if it is free; or `count` of them from that one on, if all are.

        Raises:
            OperatorError: the file system has no such locks.
        """
        try:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte, count)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise OperatorError(
                f"{self._path} cannot be locked ({error.strerror}): use a local file system"
            ) from error
        return True

    def give_back(self, byte: int) -> None:
        """Unlock a byte, if it is ours."""
        self._call(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def is_free(self, byte: int) -> bool:
        """Whether nobody else has locked a byte."""
        (kind, *_) = struct.unpack(_FLOCK, self._call(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte))
        return bool(kind == fcntl.F_UNLCK)

    def _call(self, command: int, kind: int, byte: int, count: int = 1) -> bytes:
        return fcntl.fcntl(self._descriptor, command, _lock(kind, byte, count))


@cache
def _lock(kind: int, byte: int, count: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, count, 0)
