"""The plugin itself: hooks, and the open file that is finished without further attempts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import DAY
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.factories import NOW, make_attempt, make_delivery
from primeflowd_archive import Archive


def test_configure_touches_no_file(tmp_path: Path) -> None:
    Archive().configure({"directory": str(tmp_path / "archive")})
    assert not (tmp_path / "archive").exists()


def test_attempts_become_lines_in_order(tmp_path: Path) -> None:
    archive = Archive()
    archive.configure({"directory": str(tmp_path)})
    records = [RecordedAttempt(make_attempt(), make_delivery()) for _ in range(3)]
    archive.attempts_recorded(records[:2])
    archive.attempts_recorded(records[2:])
    archive.close()
    (path,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["attempt_id"] for line in lines] == [record.attempt.id for record in records]


def test_a_failing_disk_is_told_to_the_host(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    archive = Archive()
    archive.configure({"directory": str(tmp_path / "file")})
    with pytest.raises(FileExistsError):
        archive.attempts_recorded([RecordedAttempt(make_attempt(), make_delivery())])
    archive.close()


def test_a_file_is_finished_although_nothing_more_comes(tmp_path: Path) -> None:
    now = [NOW]
    archive = Archive(tick=0.01, now=lambda: now[0])
    archive.configure({"directory": str(tmp_path)})
    archive.attempts_recorded([RecordedAttempt(make_attempt(), make_delivery())])
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    now[0] += DAY
    eventually(lambda: [path.suffix for path in tmp_path.iterdir()] == [".jsonl"])
    archive.close()


def test_the_end_of_the_process_finishes_the_file(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from primeflowd.hookspecs import RecordedAttempt
        from primeflowd.testing.factories import NOW, make_attempt, make_delivery
        from primeflowd_archive import plugin

        plugin.configure({"directory": sys.argv[1], "compress": True})
        plugin.attempts_recorded([RecordedAttempt(make_attempt(), make_delivery())])
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".gz"]
