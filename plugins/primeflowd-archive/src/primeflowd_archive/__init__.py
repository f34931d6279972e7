"""Archives the attempts that primeflowd has made: one JSON object a line, in rotated files.

Owns one directory, see files.py for what is promised of it. What a line holds is in lines.py.

Blocks on the disk, in the thread in which primeflowd calls `attempts_recorded`; an error of the
disk is raised there, and primeflowd logs it under this plugin's name. The attempts of that call
may then be missing from the archive; they are on record in primeflowd all the same.
"""

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from primeflowd.clock import SystemClock
from primeflowd.hookspecs import RecordedAttempt, hookimpl
from primeflowd.instants import Micros
from primeflowd_archive.files import Files
from primeflowd_archive.lines import line
from primeflowd_archive.settings import Settings, read

_TICK: Final = 5.0
_LAST_WORDS: Final = 5.0


class Archive:
    """The plugin; `HOOK_API` is the version of primeflowd's hooks that it was written for.

    Args:
        tick: how often, in seconds, it is looked whether a file is to be finished although nothing
            more comes to be written.
        now: the time; the system's by default.
    """

    HOOK_API: Final = 1

    def __init__(self, tick: float = _TICK, now: Callable[[], Micros] | None = None) -> None:
        self._tick = tick
        self._now = now or SystemClock().now
        self._settings: Settings | None = None
        self._files: Files | None = None
        # Held while the files are touched: by a call of the host, by a tick, or at the exit.
        self._lock = threading.Lock()

    @hookimpl
    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the `[plugins.archive]` table. Touches no file: `check-config` calls it too.

        Raises:
            ConfigError: something in it is unknown, missing or not allowed.
        """
        self._settings = read(settings)

    @hookimpl
    def attempts_recorded(self, records: Sequence[RecordedAttempt]) -> None:
        """Append a line for each attempt.

        Raises:
            OSError: of the disk.
        """
        with self._lock:
            assert self._settings is not None, "configured before any other hook"
            if self._files is None:
                self._files = Files(self._settings, self._now)
                self._watch()
            with_body = self._settings.response_body
            self._files.append([line(record, with_body=with_body) for record in records])

    def _watch(self) -> None:
        """See to it that the open file is finished when its time is over, or the process ends."""
        threading.Thread(target=self._turn, name="archive", daemon=True).start()
        atexit.register(self.close)

    def _turn(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._tick):
            with self._lock:
                if self._files is None:
                    return
                # Nobody listens here. What failed is tried again when attempts are recorded, and
                # raised there.
                with suppress(OSError):
                    self._files.turn()

    def close(self) -> None:
        """Finish the open file; what cannot be finished is left to the next start."""
        atexit.unregister(self.close)
        # A disk that hangs must not keep the process from ending.
        if not self._lock.acquire(timeout=_LAST_WORDS):
            return
        try:
            files, self._files = self._files, None
            if files is not None:
                with suppress(OSError):
                    files.close()
        finally:
            self._lock.release()


plugin: Final = Archive()
"""What the entry point names."""
