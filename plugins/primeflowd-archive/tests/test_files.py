"""The files: rotation, crashes, a full disk, and that a reader never sees half a file."""

import gzip
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.durations import Duration
from primeflowd.instants import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Micros
from primeflowd.testing.factories import NOW  # 2026-05-06T10:00:00Z
from primeflowd_archive.files import Files
from primeflowd_archive.settings import Settings


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now: Micros = NOW

    def __call__(self) -> Micros:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet"


def make(directory: Path, clock: Clock, **settings: Any) -> Files:
    return Files(Settings(directory=str(directory), **settings), clock)


def names(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def finished(directory: Path) -> list[bytes]:
    """The contents of the finished files, in the order of their names."""
    return [content(path) for path in sorted(directory.iterdir()) if path.suffix != ".part"]


def die(directory: Path) -> None:
    """Close what this process has open there, as its death would, without a word to Files."""
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and str(entry.readlink()).startswith(f"{directory}/"):
            os.close(int(entry.name))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size`: the write that crosses it is cut short, the next fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Open and finished


def test_nothing_is_made_before_there_is_something_to_write(directory: Path, clock: Clock) -> None:
    files = make(directory, clock)
    files.turn()
    files.append([])
    files.close()
    assert not directory.exists()


def test_an_open_file_has_a_name_of_its_own(directory: Path, clock: Clock) -> None:
    files = make(directory, clock)
    files.append([b"1\n"])
    files.append([b"2\n"])
    (path,) = directory.iterdir()
    assert path.name.startswith("attempts-20260506T100000-000000-")
    assert path.name.endswith(".jsonl.part")
    assert path.read_bytes() == b"1\n2\n"
    files.close()
    assert names(directory) == [path.name.removesuffix(".part")]
    assert finished(directory) == [b"1\n2\n"]


def test_files_are_private(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, compress=True)
    files.append([b"1\n"])
    (path,) = directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files.close()
    (path,) = directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("rotate", "length"), [("day", DAY), ("hour", HOUR)])
def test_a_file_ends_with_its_period(
    directory: Path, clock: Clock, rotate: str, length: Micros
) -> None:
    """UTC's, not so long after the first line."""
    files = make(directory, clock, rotate=rotate)
    clock.now = NOW // length * length + length - 1
    files.append([b"1\n"])
    assert finished(directory) == []
    clock.now += 1
    files.append([b"2\n"])
    assert finished(directory) == [b"1\n"]
    files.turn()
    assert finished(directory) == [b"1\n"]
    clock.now += length
    files.turn()
    assert finished(directory) == [b"1\n", b"2\n"]
    files.turn()
    assert len(names(directory)) == 2


def test_a_file_ends_before_it_grows_too_large(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, rotate_bytes=1024)
    lines = [b"%d" % n * 299 + b"\n" for n in range(8)]
    files.append(lines[:7])
    assert finished(directory) == [b"".join(lines[:3]), b"".join(lines[3:6])]
    files.append(lines[7:])
    large = b"x" * 2000 + b"\n"
    files.append([large, large])
    files.close()
    assert finished(directory)[2:] == [b"".join(lines[6:]), large, large]


def test_compressed(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, compress=True, fsync=True)
    files.append([b"1\n", b"2\n"])
    files.close()
    assert len(names(directory, "attempts-*.jsonl.gz")) == len(names(directory)) == 1
    assert finished(directory) == [b"1\n2\n"]


def test_a_removed_file_is_begun_anew(directory: Path, clock: Clock) -> None:
    files = make(directory, clock)
    files.append([b"1\n"])
    for path in directory.iterdir():
        path.unlink()
    files.append([b"2\n"])
    files.close()
    assert finished(directory) == [b"2\n"]


# After a crash


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("torn", [b"", b'{"attempt', b"x" * 200_000])
def test_what_a_dead_process_left_is_finished(
    directory: Path, clock: Clock, compress: bool, torn: bytes
) -> None:
    """The torn line is cut off; the whole ones before it are kept."""
    make(directory, clock, compress=compress).append([b"1\n", b"2\n"])
    die(directory)
    (part,) = directory.iterdir()
    with part.open("ab") as file:
        file.write(torn)
    (directory / part.name.replace(".part", ".gz.part")).write_bytes(b"half")
    clock.now += SECOND
    files = make(directory, clock, compress=compress)
    files.append([b"3\n"])
    assert finished(directory) == [b"1\n2\n"]
    assert len(names(directory, "*.part")) == 1
    files.close()
    assert finished(directory) == [b"1\n2\n", b"3\n"]
    assert names(directory, "*.part") == []


def test_a_file_of_nothing_but_a_torn_line_is_removed(directory: Path, clock: Clock) -> None:
    directory.mkdir(parents=True)
    (directory / "attempts-20260101T000000-000000-00000000.jsonl.part").write_bytes(b"{")
    make(directory, clock).turn()
    assert names(directory) == []


@pytest.mark.parametrize("compress", [False, True])
def test_a_crash_after_the_renaming_leaves_no_second_copy(
    directory: Path, clock: Clock, compress: bool
) -> None:
    directory.mkdir(parents=True)
    part = directory / "attempts-20260101T000000-000000-00000000.jsonl.part"
    part.write_bytes(b"1\n")
    packed = directory / part.name.replace(".part", ".gz")
    packed.write_bytes(gzip.compress(b"1\n"))
    make(directory, clock, compress=compress).turn()
    assert names(directory) == [packed.name]


def test_an_open_file_of_a_living_process_is_left_alone(directory: Path, clock: Clock) -> None:
    """Two daemons may share a directory."""
    ours, theirs = make(directory, clock), make(directory, clock)
    theirs.append([b"a1\n"])
    ours.append([b"b1\n"])
    ours.close()
    theirs.append([b"a2\n"])
    assert finished(directory) == [b"b1\n"]
    theirs.close()
    assert sorted(finished(directory)) == [b"a1\na2\n", b"b1\n"]


def test_foreign_files_are_left_alone(directory: Path, clock: Clock) -> None:
    directory.mkdir(parents=True)
    foreign = ["attempts.jsonl", "notes.part", "attempts-copy.jsonl.gz"]
    for name in foreign:
        (directory / name).write_text("mine")
    files = make(directory, clock, keep_files=1, keep_for=Duration("1s"))
    files.append([b"1\n"])
    files.close()
    assert set(foreign) < set(names(directory))


# A disk that fails


def test_a_full_disk_leaves_whole_lines(directory: Path, clock: Clock) -> None:
    files = make(directory, clock)
    files.append([b"1\n"])
    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        files.append([b"2\n", b"x" * 5000 + b"\n"])
    (path,) = directory.iterdir()
    assert path.read_bytes() == b"1\n"
    files.append([b"3\n"])
    files.close()
    assert finished(directory) == [b"1\n3\n"]


def test_what_cannot_be_finished_is_told_and_tried_again(directory: Path, clock: Clock) -> None:
    """And does not keep what follows from being written, or other files from being finished."""
    files = make(directory, clock, compress=True)
    files.append([b"1\n"])
    (part,) = directory.iterdir()
    obstacle = directory / part.name.replace(".part", ".gz.part")
    obstacle.mkdir()
    (directory / "attempts-20260506T100001-000000-00000000.jsonl.part").write_bytes(b"2\n")
    clock.now += DAY
    with pytest.raises(IsADirectoryError):
        files.append([b"3\n"])
    assert names(directory, "*.gz") == ["attempts-20260506T100001-000000-00000000.jsonl.gz"]
    obstacle.rmdir()
    files.append([b"4\n"])
    assert len(names(directory, "*.gz")) == 1, "too soon to try again"
    clock.now += MINUTE
    files.append([b"5\n"])
    assert finished(directory) == [b"1\n", b"2\n"]
    files.close()
    assert finished(directory) == [b"1\n", b"2\n", b"3\n4\n5\n"]


def test_a_directory_that_cannot_be_made(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    files = make(tmp_path / "file" / "archive", clock)
    with pytest.raises(NotADirectoryError):
        files.append([b"1\n"])
    (tmp_path / "file").unlink()
    files.append([b"2\n"])
    files.close()
    assert finished(tmp_path / "file" / "archive") == [b"2\n"]


# What is kept


def test_so_many_files_are_kept(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, keep_files=2)
    for n in range(5):
        files.append([b"%d\n" % n])
        clock.now += DAY
    assert finished(directory) == [b"2\n", b"3\n"]
    files.close()
    assert finished(directory) == [b"3\n", b"4\n"]


def test_many_files_of_one_instant_keep_their_order(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, rotate_bytes=1024)
    lines = [b"%d" % n * 1023 + b"\n" for n in range(10)]
    files.append(lines)
    files.close()
    assert finished(directory) == lines


def test_files_are_kept_so_long(directory: Path, clock: Clock) -> None:
    files = make(directory, clock, keep_for=Duration("30d"))
    for n in range(3):
        files.append([b"%d\n" % n])
        files.close()
        for path in directory.iterdir():
            if content(path) == b"%d\n" % n:
                os.utime(path, (0, clock.now / SECOND))
        clock.now += 15 * DAY
    files.append([b"3\n"])
    files.close()
    assert finished(directory) == [b"2\n", b"3\n"]


# All of it at once

steps = st.lists(
    st.one_of(
        st.lists(st.integers(0, 1500), min_size=1, max_size=6),  # append lines of these lengths
        st.just("crash"),
        st.just("restart"),
        st.integers(1, 3 * HOUR),  # time passes
    ),
    max_size=25,
)


@given(steps=steps, compress=st.booleans(), torn=st.binary(max_size=100))
def test_no_line_is_lost_doubled_or_torn(
    steps: list[list[int] | str | int], compress: bool, torn: bytes
) -> None:
    torn = torn.replace(b"\n", b"")
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        settings: dict[str, Any] = {"rotate": "hour", "rotate_bytes": 2048, "compress": compress}
        files = make(directory, clock, **settings)
        written: list[bytes] = []
        for step in steps:
            clock.now += MILLISECOND  # more than there are files in one step
            if isinstance(step, list):
                lines = [b"%d:%b\n" % (len(written) + n, b"x" * s) for n, s in enumerate(step)]
                files.append(lines)
                written += lines
            elif isinstance(step, int):
                clock.now += step
                files.turn()
            elif step == "restart":
                files.close()
            else:
                die(directory)
                for part in directory.glob("*.jsonl.part"):
                    with part.open("ab") as file:
                        file.write(torn)
                files = make(directory, clock, **settings)
            for data in finished(directory):
                assert data.endswith(b"\n")
                assert len(data) <= 2048 or data.count(b"\n") == 1
        files.close()
        files.turn()
        assert names(directory, "*.part") == []
        assert b"".join(finished(directory)) == b"".join(written)
