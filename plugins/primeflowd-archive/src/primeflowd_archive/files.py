"""The files of the archive: appended to, finished, compressed, removed.

A file is open, as `attempts-TIME-ID.jsonl.part`, and then finished, as `attempts-TIME-ID.jsonl` or
`attempts-TIME-ID.jsonl.gz`. Guarantees:

- A finished name appears at once, with all of the file, on the disk; the file never changes again.
- A file holds whole lines. A line that a crash or a full disk cut short is cut off: at once, or
  when the next process finishes the file.
- An open file belongs to the process that holds a lock on it. What a dead process left open is
  finished by the next one that writes here; several may share a directory.

Blocks on the disk. Raises OSError, after which it may be used on: lines of the call that raised
may be missing, lines written before are not touched. Not for several threads at once.
"""

import fcntl
import gzip
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from primeflowd.instants import MINUTE, SECOND, Micros, to_datetime
from primeflowd_archive.settings import Settings

_FINISHED: Final = re.compile(r"attempts-\d{8}T\d{6}-\d{6}-[0-9a-f]{8}\.jsonl(\.gz)?")
_OPEN: Final = "attempts-*.jsonl.part"
_NAME: Final = "attempts-%Y%m%dT%H%M%S-%f"
_PERIODS: Final = {"day": "%Y%m%d", "hour": "%Y%m%d%H"}
_BLOCK: Final = 65_536
# What cannot be finished, on a full disk say, is not tried again with every write.
_RETRY: Final = MINUTE


class _Open(msgspec.Struct):
    """The file being written; `size` is that of its whole lines."""

    descriptor: int
    period: str
    size: int = 0


class Files:
    """The files in one directory, which is made when there is something to write."""

    def __init__(self, settings: Settings, now: Callable[[], Micros]) -> None:
        self._settings = settings
        self._directory = Path(settings.directory)
        self._now = now
        self._open: _Open | None = None
        self._last_created: Micros = 0
        # When files are to be finished; None if there are none. At first, a dead process's.
        self._tidy_at: Micros | None = 0

    def append(self, lines: Sequence[bytes]) -> None:
        """Append `lines`, each with its end, to as many files as it takes.

        Raises:
            OSError: some of them may be missing; or they are not, and the files before could not
                be finished.
        """
        now = self._now()
        self._end_period(now)
        ready: list[bytes] = []
        size = self._open.size if self._open else 0
        for line in lines:
            if size and size + len(line) > self._settings.rotate_bytes:
                self._write(ready, now)
                self._close()
                ready, size = [], 0
            ready.append(line)
            size += len(line)
        self._write(ready, now)
        self._tidy(now)

    def turn(self) -> None:
        """Finish the open file if its time is over.

        Raises:
            OSError: it could not be finished.
        """
        now = self._now()
        self._end_period(now)
        self._tidy(now)

    def close(self) -> None:
        """Finish the open file.

        Raises:
            OSError: it could not be finished.
        """
        self._close()
        self._tidy(self._now())

    def _period(self, now: Micros) -> str:
        return to_datetime(now).strftime(_PERIODS[self._settings.rotate])

    def _end_period(self, now: Micros) -> None:
        open_ = self._open
        if open_ is None:
            return
        # Somebody may have removed the file, and nobody would ever read what follows.
        removed = os.fstat(open_.descriptor).st_nlink == 0
        if removed or open_.period != self._period(now):
            self._close()

    def _write(self, lines: Sequence[bytes], now: Micros) -> None:
        if not lines:
            return
        open_ = self._open = self._open or self._create(now)
        data = memoryview(b"".join(lines))
        size = open_.size + len(data)
        try:
            while data:
                data = data[os.write(open_.descriptor, data) :]
            if self._settings.fsync:
                os.fsync(open_.descriptor)
        except OSError:
            self._undo(open_)
            raise
        open_.size = size

    def _undo(self, open_: _Open) -> None:
        """Cut off what a failed write left, or the next line would be glued to it."""
        try:
            os.ftruncate(open_.descriptor, open_.size)
        except OSError:
            # Then it is cut off when the file is finished.
            self._close()

    def _create(self, now: Micros) -> _Open:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Names sort in the order in which the files were begun, however fast that was.
        self._last_created = max(now, self._last_created + 1)
        time = to_datetime(self._last_created).strftime(_NAME)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        while True:
            name = f"{time}-{secrets.token_hex(4)}.jsonl.part"
            descriptor = os.open(self._directory / name, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Another process may have found the file before it was locked, and taken it for
                # one that a dead process left empty.
                if os.fstat(descriptor).st_nlink:
                    if self._settings.fsync:
                        self._sync_directory()
                    return _Open(descriptor, self._period(now))
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open.descriptor)  # and with it goes the lock
            self._open = None
            self._tidy_at = 0

    def _tidy(self, now: Micros) -> None:
        """Finish what nobody writes to any more, and remove what is kept no longer.

        One file that cannot be finished does not keep the others from it.
        """
        if self._tidy_at is None or now < self._tidy_at or not self._directory.exists():
            return
        self._tidy_at = now + _RETRY
        failure: OSError | None = None
        for part in sorted(self._directory.glob(_OPEN)):
            try:
                self._finish(part)
            except OSError as error:
                failure = failure or error
        self._prune(now)
        if failure is not None:
            raise failure
        self._tidy_at = None

    def _finish(self, part: Path) -> None:
        try:
            file = part.open("r+b")
        except FileNotFoundError:
            return  # another process has finished it
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Or finished it just now, and the file has its final name by now, or none.
                if not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    return
            except (BlockingIOError, FileNotFoundError):
                return  # it is being written to, or finished, by somebody else
            self._settle(part, file)
        self._sync_directory()

    def _settle(self, part: Path, file: IO[bytes]) -> None:
        """Give a file, which is ours now, its final form and name."""
        plain = part.with_suffix("")
        packed = plain.with_name(f"{plain.name}.gz")
        half_packed = plain.with_name(f"{plain.name}.gz.part")
        size = _whole_lines(file)
        # Finished but for the removal of this, when its process died.
        if not size or packed.exists():
            half_packed.unlink(missing_ok=True)
            part.unlink()
            return
        file.truncate(size)
        os.fsync(file.fileno())
        if not self._settings.compress:
            part.rename(plain)
            half_packed.unlink(missing_ok=True)
            return
        file.seek(0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(half_packed, flags, 0o600), "wb") as raw:
            with gzip.GzipFile("", "wb", fileobj=raw) as target:
                shutil.copyfileobj(file, target, _BLOCK)
            raw.flush()
            os.fsync(raw.fileno())
        half_packed.rename(packed)
        part.unlink()

    def _prune(self, now: Micros) -> None:
        settings = self._settings
        if settings.keep_files is None and settings.keep_for is None:
            return
        # The names begin with the time: the oldest comes first.
        files = sorted(f for f in self._directory.iterdir() if _FINISHED.fullmatch(f.name))
        if settings.keep_files is not None:
            for file in files[: -settings.keep_files]:
                file.unlink(missing_ok=True)
            files = files[-settings.keep_files :]
        if settings.keep_for is not None:
            for file in files:
                # Another process may remove the same.
                with suppress(FileNotFoundError):
                    if file.stat().st_mtime * SECOND <= now - settings.keep_for.micros:
                        file.unlink()

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _whole_lines(file: IO[bytes]) -> int:
    """How many bytes there are up to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
