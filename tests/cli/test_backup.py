"""`backup` and `restore`: all of it is there again, and what must not be is refused."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.load import Load
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.cli.conftest import Run, private_environment

EGRESS = '[delivery.egress]\nallow = ["127.0.0.0/8"]\n'


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `storage` copies."""
    directory = tmp_path_factory.mktemp("left")
    for words in (["init"], ["keys", "create", "--org", "acme"]):
        subprocess.run(
            [sys.executable, "-m", "primeflowd", *words],
            cwd=directory,
            env=private_environment(directory),
            capture_output=True,
            check=True,
        )
    return directory


@pytest.fixture
def storage(tmp_path: Path, pristine: Path) -> Path:
    """A storage that a daemon could have left, and its master key."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return tmp_path / "state" / "primeflowd" / "primeflowd.db"


def count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found


def ids(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM batches")}


# The drill


def test_a_backup_of_a_busy_daemon_is_complete(tmp_path: Path) -> None:
    """4.5, 5.6: what was accepted before it began is in it, and a daemon goes on from there."""
    file = tmp_path / "copy.db"
    with (
        ReceiverProcess(tmp_path / "received.jsonl") as receiver,
        DaemonProcess(tmp_path / "daemon") as daemon,
    ):
        key = daemon.create_key("acme")
        with daemon.client(key) as client:
            assert client.post("/v1/callback-secrets", json={}).status_code == 201
        with Load(lambda: [daemon.url], key, [receiver.url], 300) as load:
            eventually(lambda: len(load.accepted) > 300)
            before = set(load.accepted)
            said = daemon.command("backup", str(file))
            slowest, during = load.slowest, len(load.accepted)
            eventually(lambda: len(load.accepted) > during + 100)
        assert "master key" in said
        assert slowest < 2
        assert daemon.terminate() == 0
        with DaemonProcess(tmp_path / "drill") as drill:
            drill.terminate()
        (tmp_path / "drill" / "master.key").write_bytes(
            (tmp_path / "daemon" / "master.key").read_bytes()
        )
        restored = drill.command("restore", str(file))
        assert "batches" in restored
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert before <= ids(tmp_path / "drill" / "primeflowd.db")
        arrivals = len(receiver.arrivals())
        with drill:
            with drill.client(key) as client:
                for batch_id in list(before)[:20]:
                    history = client.get(f"/v1/batches/{batch_id}/callback").json()
                    assert history[0]["batch_id"] == batch_id
                batch_id = next(iter(before))
                again = client.post(f"/v1/batches/{batch_id}/callback-redeliveries")
                assert again.status_code == 201, again.text
            eventually(lambda: len(receiver.arrivals()) > arrivals)
            assert drill.terminate() == 0
        assert (tmp_path / "drill" / "primeflowd.db.before-restore").exists()


def test_a_backup_is_of_one_instant(tmp_path: Path, storage: Path, primeflowd: Run) -> None:
    """Whoever writes all the time, page by page over, neither spoils nor stops it."""
    stop = threading.Event()
    with closing(sqlite3.connect(storage)) as connection:
        connection.executemany(
            "INSERT INTO notes VALUES (?, ?)", ((f"n{k}", "x" * 3_000) for k in range(20_000))
        )
        connection.execute("INSERT INTO notes VALUES ('round', '0')")
        connection.commit()

    rounds = 0

    def write() -> None:
        nonlocal rounds
        with closing(sqlite3.connect(storage)) as connection:
            while not stop.is_set():
                rounds += 1
                text = f"{rounds}".rjust(3_000)
                connection.execute(
                    "UPDATE notes SET value = ? WHERE name IN ('n0', 'n19999')", (text,)
                )
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = primeflowd("backup", "copy.db")
    finally:
        stop.set()
        writer.join()
    assert result.returncode == 0, result.stderr
    assert "copying primeflowd.db: " in result.stderr
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        values = copy.execute("SELECT value FROM notes WHERE name IN ('n0', 'n19999')").fetchall()
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert len(set(values)) == 1
    assert rounds > 10
    assert not list(tmp_path.glob("*.partial"))


# Refusals of backup


def test_a_backup_replaces_nothing_unasked(tmp_path: Path, storage: Path, primeflowd: Run) -> None:
    file = tmp_path / "copy.db"
    file.write_text("precious")
    refused = primeflowd("backup", "copy.db")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert file.read_text() == "precious"
    assert primeflowd("backup", "copy.db", "--force").returncode == 0
    assert count(file, "keys") == 1
    assert "storage itself" in primeflowd("backup", str(storage), "--force").stderr
    assert count(storage, "keys") == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://host/db", "pg_dump"),
        ("memory://", "memory:// is no SQLite file"),
        ("sqlite:///nowhere.db", "nowhere.db: there is no such file"),
    ],
)
def test_what_cannot_be_backed_up(tmp_path: Path, primeflowd: Run, url: str, says: str) -> None:
    (tmp_path / "primeflowd.toml").write_text(f'[storage]\nurl = "{url}"\n')
    result = primeflowd("backup", "copy.db")
    assert result.returncode == 1
    assert says in result.stderr
    assert not (tmp_path / "copy.db").exists()
    assert not (tmp_path / "nowhere.db").exists()


def test_a_place_that_cannot_be_written_to(storage: Path, primeflowd: Run) -> None:
    result = primeflowd("backup", "no/such/place.db")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "place.db cannot be written: No such file or directory" in result.stderr


# Restore


def test_a_restore_puts_the_old_one_aside(tmp_path: Path, storage: Path, primeflowd: Run) -> None:
    assert primeflowd("backup", "copy.db").returncode == 0
    assert primeflowd("keys", "create", "--org", "later").returncode == 0
    result = primeflowd("restore", "copy.db")
    assert result.returncode == 0, result.stderr
    assert "1 keys" in result.stdout
    assert "checking batches: " in result.stderr
    aside = storage.with_name("primeflowd.db.before-restore")
    assert (count(storage, "keys"), count(aside, "keys")) == (1, 2)
    assert stat.S_IMODE(storage.stat().st_mode) == 0o600
    refused = primeflowd("restore", "copy.db")
    assert refused.returncode == 1
    assert "before-restore is there already" in refused.stderr
    assert primeflowd("restore", "copy.db", "--force").returncode == 0
    assert count(aside, "keys") == 1
    left = {file.name for file in storage.parent.iterdir()}
    assert not [name for name in left if "restoring" in name or "partial" in name]
    assert count(tmp_path / "copy.db", "keys") == 1


def test_a_restore_makes_a_file_that_gives_space_back(
    tmp_path: Path, storage: Path, primeflowd: Run
) -> None:
    """One of an older version gave none."""
    with closing(sqlite3.connect(storage, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    assert primeflowd("backup", "copy.db").returncode == 0
    result = primeflowd("restore", "copy.db")
    assert result.returncode == 0, result.stderr
    assert "made anew" in result.stderr
    with closing(sqlite3.connect(storage)) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert primeflowd("keys", "list").returncode == 0


def test_a_restore_where_nothing_was(tmp_path: Path, storage: Path, primeflowd: Run) -> None:
    assert primeflowd("backup", "copy.db").returncode == 0
    storage.unlink()
    assert primeflowd("restore", "copy.db").returncode == 0
    assert count(storage, "keys") == 1
    assert not storage.with_name("primeflowd.db.before-restore").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_restore_leaves_the_file_to_whose_it_was(storage: Path, primeflowd: Run) -> None:
    """Root restores, the daemon runs as somebody else."""
    assert primeflowd("backup", "copy.db").returncode == 0
    os.chown(storage.parent, 12_345, 12_345)
    os.chown(storage, 12_346, 12_346)
    assert primeflowd("restore", "copy.db").returncode == 0
    assert storage.stat().st_uid == storage.stat().st_gid == 12_346
    storage.unlink()
    assert primeflowd("restore", "copy.db", "--force").returncode == 0
    assert storage.stat().st_uid == storage.stat().st_gid == 12_345


def unchanged(storage: Path, result: object, says: str) -> None:
    assert getattr(result, "returncode", None) == 1
    assert says in getattr(result, "stderr", "")
    assert count(storage, "keys") == 1
    assert not list(storage.parent.glob("*restor*"))


def test_a_damaged_backup_is_refused(tmp_path: Path, storage: Path, primeflowd: Run) -> None:
    with closing(sqlite3.connect(storage)) as connection:
        connection.executemany(
            "INSERT INTO notes VALUES (?, ?)", ((f"n{k}", "x" * 100) for k in range(5_000))
        )
        connection.commit()
    file = tmp_path / "copy.db"
    assert primeflowd("backup", "copy.db").returncode == 0
    whole = file.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    file.write_bytes(whole[:middle] + os.urandom(40_960) + whole[middle + 40_960 :])
    unchanged(storage, primeflowd("restore", "copy.db"), "is damaged: notes")
    file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'org_id', 'label')"
            " WHERE name = 'keys_by_org'"
        )
        connection.commit()
    unchanged(storage, primeflowd("restore", "copy.db"), "is damaged: keys: row 1 missing")
    file.write_bytes(b"SQLite format 3\0 not really")
    unchanged(storage, primeflowd("restore", "copy.db"), "copy.db")
    file.write_bytes(b"")
    unchanged(storage, primeflowd("restore", "copy.db"), "no storage of primeflowd")
    file.unlink()
    unchanged(storage, primeflowd("restore", "copy.db"), "there is no such file")


def test_a_backup_of_a_newer_primeflowd_is_refused(
    tmp_path: Path, storage: Path, primeflowd: Run
) -> None:
    assert primeflowd("backup", "copy.db").returncode == 0
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    unchanged(storage, primeflowd("restore", "copy.db"), "newer primeflowd")


@pytest.mark.parametrize("has_secret", [True, False])
def test_another_master_key_is_refused(tmp_path: Path, has_secret: bool) -> None:
    """6.1: better now than when the first callback is to be signed."""
    with DaemonProcess(tmp_path / "daemon") as daemon:
        key = daemon.create_key("acme")
        with daemon.client(key) as client:
            if has_secret:
                assert client.post("/v1/callback-secrets", json={}).status_code == 201
        daemon.command("backup", str(tmp_path / "copy.db"))
        assert daemon.terminate() == 0
    with DaemonProcess(tmp_path / "other") as other:
        assert other.terminate() == 0
    with pytest.raises(Exception, match="exit status 1") as caught:
        other.command("restore", str(tmp_path / "copy.db"))
    assert "another master key" in caught.value.stderr  # type: ignore[attr-defined]  # a CalledProcessError
    assert not list((tmp_path / "other").glob("*restor*"))


def test_a_running_daemon_is_not_restored_under(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon") as daemon:
        daemon.command("backup", str(tmp_path / "copy.db"))
        with pytest.raises(Exception, match="exit status 1") as caught:
            daemon.command("restore", str(tmp_path / "copy.db"))
        assert "a daemon uses" in caught.value.stderr  # type: ignore[attr-defined]  # a CalledProcessError
        assert daemon.terminate() == 0
        daemon.command("restore", str(tmp_path / "copy.db"))
        daemon.start()


def test_a_storage_that_somebody_has_open_stays(
    tmp_path: Path, storage: Path, primeflowd: Run
) -> None:
    assert primeflowd("backup", "copy.db").returncode == 0
    with closing(sqlite3.connect(storage)) as visitor:
        visitor.execute("SELECT count(*) FROM batches").fetchone()
        refused = primeflowd("restore", "copy.db")
        assert "another process has" in refused.stderr
    assert primeflowd("restore", "copy.db").returncode == 0
