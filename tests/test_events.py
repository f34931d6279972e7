"""What events say, and that the README says the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from primeflowd import events
from primeflowd.events import KINDS, Event
from primeflowd.instants import SECOND
from primeflowd.model import new_id
from primeflowd.testing.factories import NOW, make_delivery, make_secret
from tests.api.documented import validator_of

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

FAILED = make_delivery(status="failed", failure_reason="gone", failure_detail="HTTP 410 “weg”")
ALL = {
    event.kind: event
    for event in (
        events.delivery_failed(FAILED),
        events.destination_turned(FAILED, "suspended", NOW),
        events.destination_turned(FAILED, "recovered", NOW),
        events.destination_disabled("https://receiver.example:443", "it answered 410", NOW),
        events.secret_rotated(make_secret(), make_secret(), NOW),
        events.secret_disabled_in_use(make_delivery(signing_secret_id="old"), None),
        events.storage_recovered(NOW, NOW + 1_234_567, "disk full"),
    )
}


def examples() -> list[dict[str, Any]]:
    _, section = README.split("\n## Events\n")
    section, _ = section.split("\n## ", 1)
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]


def test_there_is_one_of_every_kind() -> None:
    assert tuple(ALL) == KINDS


def test_the_payload_is_compact_and_in_order() -> None:
    """4.3, 4.4: as payloads of batches are."""
    event = ALL["delivery.failed"]
    payload = events.freeze("id-1", "node-1", event, event.subject, 3, NOW + SECOND // 2)
    assert payload.decode() == (
        '{"event":"delivery.failed","event_id":"id-1","node_id":"node-1",'
        '"subject":"https://receiver.example:443","count":3,'
        '"first_at":"2026-05-06T10:00:00+00:00","last_at":"2026-05-06T10:00:00.500000+00:00",'
        f'"data":{{"org_id":"org-1","batch_id":"{FAILED.batch_id}","delivery_id":"{FAILED.id}",'
        '"destination":"https://receiver.example:443","failure_reason_code":"gone",'
        '"failure_detail":"HTTP 410 “weg”","attempt_count":0}}'
    )


@pytest.mark.parametrize("event", ALL.values(), ids=ALL)
def test_the_openapi_document_knows_the_payload(event: Event) -> None:
    """8: as that of a delivery."""
    payload = json.loads(events.freeze(new_id(), "node-1", event, event.subject, 1, NOW))
    schema = "#/components/schemas/Delivery/properties/payload"
    assert validator_of({"$ref": schema}).is_valid(payload)
    assert not validator_of({"$ref": schema}).is_valid({**payload, "count": 0})


def test_storage_says_for_how_long() -> None:
    assert ALL["storage.recovered"].data == {
        "since": "2026-05-06T10:00:00+00:00",
        "lasted_ms": 1234,
        "cause": "disk full",
    }
    # A clock that was set back.
    assert events.storage_recovered(NOW, NOW - SECOND, None).data["lasted_ms"] == 0


def test_the_table_of_the_readme_is_true() -> None:
    """Its names are those of the payload and of the log; see also acceptance/test_events.py."""
    _, section = README.split("\n## Events\n")
    rows = re.findall(r"^\| `([a-z._]+)` \| `([a-z_]+)` \|", section, re.MULTILINE)
    assert rows == [(kind, ALL[kind].log_name) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_has_an_example(kind: str) -> None:
    """With the keys that there are, in their order, and values of their types."""
    whole, others = examples()
    event = ALL[kind]
    data = dict(event.data)
    if kind == "destination.recovered":
        data["suspended_at"] = events.spelt(NOW)  # added where the suspension is known
    shown = whole["data"] if kind == whole["event"] else others[kind]
    assert list(shown) == list(data)
    for key, value in data.items():
        assert value is None or type(shown[key]) is type(value), key
    payload = json.loads(events.freeze("id", "node", event, event.subject, 1, NOW))
    assert list(payload) == list(whole)
    assert len(others) == len(KINDS) - 1


@pytest.mark.parametrize("event", ALL.values(), ids=ALL)
def test_an_event_can_be_logged(event: Event) -> None:
    """No field of the log is hidden for its name, and none is the event's own."""
    assert not set(event.data) & {"event", "level", "timestamp", "key", "secret", "payload", "body"}
