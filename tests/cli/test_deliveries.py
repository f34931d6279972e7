"""`deliveries`, `batches` and `why` beside a daemon and its receivers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from primeflowd.cli.deliveries import instant
from primeflowd.errors import OperatorError
from primeflowd.instants import HOUR, rfc3339
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.factories import NOW
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.cli.api_commands import Desk

CLOSED = "http://127.0.0.1:1/hook"
FORBIDDEN = "http://10.0.0.1/hook"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    """It answers 503 once, and 200 from then on."""
    with ReceiverProcess(tmp_path / "arrivals", [{"status": 503}, {}]) as process:
        yield process


def attempted(desk: Desk, delivery: str, count: int) -> None:
    path = f"/v1/deliveries/{delivery}"
    eventually(lambda: desk.client.get(path).json()["attempt_count"] == count)


def test_the_life_of_a_delivery(desk: Desk, receiver: ReceiverProcess) -> None:
    """5.4: waiting, attempted now by request, succeeded, and sent again only if insisted on."""
    batch, delivery = desk.ended_batch(receiver.url)
    attempted(desk, delivery, 1)
    told = desk.told("why", delivery)
    assert "waiting" in told
    assert "attempt 2: it is due at" in told
    assert f"primeflowd deliveries retry {delivery}" in told
    assert desk.told("deliveries", "retry", delivery) == f"attempt 2 of {delivery} is due now\n"
    attempted(desk, delivery, 2)

    explained = desk.json("why", delivery)
    assert [step["hastened"] for step in explained["schedule"]] == [False, True]
    assert "15m (hastened)" in desk.told("why", delivery)
    assert "succeeded at" in explained["summary"]
    shown = desk.told("deliveries", "show", delivery)
    assert "status_code:         succeeded" in shown
    assert "is_automatic:        true" in shown
    assert "503" in shown
    assert desk.json("deliveries", "show", delivery)["id"] == delivery

    assert "--again" in desk.refused("deliveries", "retry", delivery)
    again = desk.json("deliveries", "retry", delivery, "--again")["id"]
    attempted(desk, again, 1)
    history = desk.json("batches", "show", batch)
    assert [each["id"] for each in history["deliveries"]] == [again, delivery]
    told = desk.told("batches", "show", batch)
    assert again in told
    assert f"callback_url:        {receiver.url}" in told


def test_numbers_keep_their_spelling(desk: Desk) -> None:
    """4.4: what a client gave is shown as it gave it, also by `--json`."""
    output = b'{"status":"succeeded","output":[1.0,1e5,12345678901234567890]}'
    made = desk.client.post(
        "/v1/batches", content=output, headers={"Content-Type": "application/json"}
    ).json()
    assert "output:              [1.0,1e5,12345678901234567890]" in desk.told(
        "batches", "show", made["id"]
    )
    assert "1e5" in desk.told("batches", "show", made["id"], "--json")


def test_cancelled(desk: Desk) -> None:
    """5.4: once; what was cancelled says so."""
    _, delivery = desk.ended_batch(CLOSED)
    attempted(desk, delivery, 1)
    assert desk.told("deliveries", "cancel", delivery) == f"cancelled {delivery}\n"
    assert "422 invalid_state" in desk.refused("deliveries", "cancel", delivery)
    assert "it was cancelled" in desk.told("why", delivery)
    again = desk.told("deliveries", "retry", delivery).split()[-1]
    assert desk.json("why", delivery)["would_go"][0].startswith(
        f"nothing is needed: delivery {again}"
    )
    desk.told("deliveries", "cancel", again)


def test_list_and_its_filters(desk: Desk) -> None:
    """2.9, 5.4: newest first, over as many pages as asked for."""
    plan = "cli-list"
    made = [desk.ended_batch(FORBIDDEN, plan_id=plan)[1] for _ in range(3)]
    for delivery in made:
        attempted(desk, delivery, 1)
    asked = ("deliveries", "list", "--destination", "http://10.0.0.1", "--status", "failed")
    found = desk.json(*asked, "--limit", "2")
    assert [each["id"] for each in found] == [made[2], made[1]]
    assert desk.json(*asked, "--since", "1h", "--reason", "url_not_allowed")[0]["id"] == made[2]
    assert desk.json(*asked, "--until", "1h") == []
    lines = desk.told(*asked).splitlines()
    assert lines[0].split()[:2] == ["ID", "STATUS"]
    assert lines[1].startswith(made[2])
    assert "url_not_allowed" in lines[1]
    assert desk.run("deliveries", "list", "--status", "lost").exit_code == 2


def test_recover(desk: Desk) -> None:
    """5.4: at once with its id; with `--wait` until all are redelivered."""
    _, delivery = desk.ended_batch(FORBIDDEN + "/recover")
    attempted(desk, delivery, 1)
    words = ("deliveries", "recover", "--since", "1h", "--destination", "http://10.0.0.1")
    assert "matched" in desk.json(*words)
    told = desk.told(*words, "--wait", "--reason", "url_not_allowed")
    assert " redelivered, " in told.splitlines()[-1]
    done = desk.run(*words, "--wait", "--json")
    assert json.loads(done.stdout)["status"] == "completed"
    assert "expected a time" in desk.refused("deliveries", "recover", "--since", "yesterday")


def test_instants_as_people_write_them() -> None:
    """A time, or how long ago; without a zone it would mean another time elsewhere."""
    assert instant(None, NOW) is None
    assert instant("1h", NOW) == rfc3339(NOW - HOUR)
    assert instant("2026-05-06T12:00:00+02:00", NOW) == "2026-05-06T10:00:00Z"
    for text in ("2026-05-06T10:00:00", "2026-05-06", "-1h", ""):
        with pytest.raises(OperatorError, match="expected a time"):
            instant(text, NOW)
