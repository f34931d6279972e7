"""The plugin in a real daemon that is killed and started again: no attempt is missing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver import Answer, Receiver, open_receiver

SETTINGS = """
[delivery.default_policy]
delays = ["100ms"]

[plugins]
enable = ["archive"]

[plugins.archive]
directory = "{}"
rotate_bytes = 1024
"""


def finished(directory: Path) -> list[dict[str, Any]]:
    """All lines of the finished files, in the order of their names; fails if one is torn."""
    return [
        json.loads(line)
        for path in sorted(directory.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


def written(directory: Path) -> int:
    """How many whole lines there are, in open files too."""
    try:
        return sum(path.read_bytes().count(b"\n") for path in directory.glob("*"))
    except FileNotFoundError:
        return 0  # finished, and so renamed, while we looked


def story(directory: Path, receiver: Receiver) -> tuple[list[Any], list[dict[str, Any]]]:
    """Deliver, kill -9 in the middle of a line, deliver again; (attempts on record, archive)."""
    archive = directory / "archive"
    daemon = DaemonProcess(directory / "state", SETTINGS.format(archive))
    key = daemon.create_key()
    batches: list[str] = []

    def deliver(count: int) -> None:
        with daemon.client(key) as client:
            for _ in range(count):
                callback = {
                    "status": "succeeded",
                    "callback_url": receiver.url("/hook?token=t0k3n"),
                }
                batches.append(client.post("/v1/batches", json=callback).json()["id"])
        # Each takes two attempts.
        eventually(lambda: written(archive) == 2 * len(batches))

    with daemon:
        deliver(5)
        daemon.kill()
        # The latest: the one before may have been full, and not renamed yet.
        part = max(archive.glob("*.part"))
        with part.open("ab") as file:
            file.write(b'{"attempt_id":"0192')
        before = finished(archive)
        daemon.start()
        deliver(1)
        # With the first lines of this process the file of the one before was finished.
        eventually(lambda: len(list(archive.glob("*.part"))) == 1)
        with daemon.client(key) as client:
            recorded = [
                attempt["id"]
                for batch_id in batches
                for delivery in client.get(f"/v1/batches/{batch_id}/callback").json()
                for attempt in delivery["attempts"]
            ]
        assert daemon.terminate() == 0
    assert list(archive.glob("*.part")) == []
    archived = finished(archive)
    assert archived[: len(before)] == before, "a finished file never changes"
    assert daemon.events("plugin_failed") == []
    return recorded, archived


async def test_every_attempt_is_archived_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    def fail_first(request: Any) -> Answer:
        return Answer(status=503 if request.header("Primeflow-Attempt") == "1" else 200)

    async with open_receiver(nursery, fail_first) as receiver:
        recorded, archived = await trio.to_thread.run_sync(story, tmp_path, receiver)
    assert sorted(line["attempt_id"] for line in archived) == sorted(recorded)
    assert len(recorded) == 12
    for line in archived:
        assert line["org_id"] == "acme"
        assert line["url"] == receiver.url("/hook")
        assert line["destination"] == receiver.url("")
        first = line["attempt_number"] == 1
        assert line["status_code"] == (503 if first else 200)
        assert line["delivery_status"] == ("pending" if first else "succeeded")
        assert (line["next_attempt_at"] is not None) == first
    text = json.dumps(archived)
    assert "t0k3n" not in text
    assert "batch.succeeded" not in text


def deliver_without_archive(directory: Path, receiver: Receiver) -> list[dict[str, Any]]:
    """What the daemon logs when its archive cannot be written."""
    (directory / "file").touch()
    daemon = DaemonProcess(directory / "state", SETTINGS.format(directory / "file" / "archive"))
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        callback = {"status": "succeeded", "callback_url": receiver.url()}
        batch = client.post("/v1/batches", json=callback).json()
        path = f"/v1/batches/{batch['id']}/callback"
        eventually(lambda: client.get(path).json()[0]["status_code"] == "succeeded")
        eventually(lambda: daemon.events("plugin_failed"))
        assert daemon.terminate() == 0
    return daemon.events("plugin_failed")


async def test_an_archive_that_cannot_be_written_stops_nothing(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with open_receiver(nursery) as receiver:
        failures = await trio.to_thread.run_sync(deliver_without_archive, tmp_path, receiver)
    assert {(line["plugin"], line["hook"]) for line in failures} == {
        ("archive", "attempts_recorded")
    }
    assert "NotADirectoryError" in str(failures[0])


def test_a_wrong_setting_stops_the_start(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, SETTINGS.format("relative/path"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        daemon.command("run")
    assert "plugins.archive: directory: expected an absolute path" in caught.value.stderr
