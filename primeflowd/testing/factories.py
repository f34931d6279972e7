"""Valid values of model.py with defaults for everything: what tests start from.

Each call makes fresh ids. Instants are fixed, so that tests state the ones that matter to them.
"""

from typing import Any, Final

from primeflowd.instants import DAY, SECOND, Micros
from primeflowd.model import (
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    DestinationPolicy,
    Item,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
    new_id,
)

NOW: Final[Micros] = 1_778_061_600 * SECOND
"""2026-05-06T10:00:00Z."""

ORG: Final = "org-1"
URL: Final = "https://receiver.example/hook"
DESTINATION: Final = "https://receiver.example:443"


def make_batch(**changes: Any) -> Batch:
    """A batch that succeeded and whose payload is frozen."""
    values: dict[str, Any] = {
        "id": new_id(),
        "org_id": ORG,
        "plan_id": "",
        "callback_url": URL,
        "metadata": None,
        "status": "succeeded",
        "output": b'{"answer":42}',
        "items_total": None,
        "items_succeeded": 0,
        "items_failed": 0,
        "items_cancelled": 0,
        "cancellation_reason": None,
        "payload": b'{"event":"batch.succeeded"}',
        "created_at": NOW,
        "started_at": None,
        "completed_at": NOW,
        "updated_at": NOW,
    }
    return Batch(**values | changes)


def make_item(**changes: Any) -> Item:
    """The first item of a batch, queued."""
    values: dict[str, Any] = {
        "org_id": ORG,
        "batch_id": new_id(),
        "sequence_index": 0,
        "client_ref": None,
        "status": "queued",
        "input": None,
        "output": None,
        "error": None,
        "updated_at": NOW,
    }
    return Item(**values | changes)


def make_delivery(**changes: Any) -> Delivery:
    """A pending delivery that is due at NOW, unclaimed and without attempts."""
    values: dict[str, Any] = {
        "id": new_id(),
        "batch_id": new_id(),
        "org_id": ORG,
        "callback_url": URL,
        "destination": DESTINATION,
        "is_automatic": True,
        "status": "pending",
        "failure_reason": None,
        "failure_detail": None,
        "attempt_count": 0,
        "interruptions": 0,
        "delays": ("15m", "1h", "24h"),
        "max_retries": 3,
        "policy_source": "default",
        "policy_plan_id": "",
        "signing_secret_id": None,
        "due_at": NOW,
        "claimed_by": None,
        "created_at": NOW,
        "updated_at": NOW,
        "completed_at": None,
    }
    return Delivery(**values | changes)


def make_attempt(**changes: Any) -> Attempt:
    """A first attempt that was answered 200."""
    values: dict[str, Any] = {
        "id": new_id(),
        "org_id": ORG,
        "delivery_id": new_id(),
        "attempt_number": 1,
        "status_code": 200,
        "response_body": "ok",
        "response_time": 12,
        "error_message": None,
        "failure_reason": None,
        "signing_secret_id": None,
        "created_at": NOW,
    }
    return Attempt(**values | changes)


def make_policy(**changes: Any) -> RetryPolicy:
    """An org-wide retry policy."""
    values: dict[str, Any] = {
        "org_id": ORG,
        "plan_id": "",
        "delays": ("1m", "1h30m"),
        "max_retries": 2,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return RetryPolicy(**values | changes)


def make_destination_policy(**changes: Any) -> DestinationPolicy:
    """The policy of a destination for which nothing is set."""
    values: dict[str, Any] = {
        "destination": "https://example.com:443",
        "settings": None,
        "sealed_headers": None,
        "disabled_reason": None,
        "disabled_at": None,
        "failing_since": None,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return DestinationPolicy(**values | changes)


def make_secret(**changes: Any) -> SigningSecret:
    """A current signing secret; what is sealed in it is no real ciphertext."""
    values: dict[str, Any] = {
        "id": new_id(),
        "org_id": ORG,
        "key_prefix": "whsec_abcd",
        "sealed": b"\x00\xff sealed",
        "is_current": True,
        "label": None,
        "disabled_at": None,
        "last_used_at": None,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return SigningSecret(**values | changes)


def make_key(**changes: Any) -> ApiKey:
    """An API key with all rights in its org; its digest is no key's."""
    key_id = new_id()
    values: dict[str, Any] = {
        "id": key_id,
        "org_id": ORG,
        "digest": key_id.replace("-", "") * 2,
        "key_prefix": "pfk_abcd",
        "scopes": ("admin",),
        "label": None,
        "revoked_at": None,
        "created_at": NOW,
    }
    return ApiKey(**values | changes)


def make_answer(**changes: Any) -> StoredAnswer:
    """The stored answer to a POST."""
    values: dict[str, Any] = {
        "org_id": ORG,
        "method": "POST",
        "path": "/v1/batches",
        "key": "key-1",
        "body_digest": "00" * 32,
        "status": 201,
        "body": b'{"id":"x"}',
        "sealed": False,
        "created_at": NOW,
    }
    return StoredAnswer(**values | changes)


def make_recovery(**changes: Any) -> Recovery:
    """A running recovery of everything that failed in a day."""
    values: dict[str, Any] = {
        "id": new_id(),
        "org_id": ORG,
        "since": NOW - DAY,
        "until": NOW,
        "destination": None,
        "failure_reason": None,
        "status": "running",
        "matched": 0,
        "redelivered": 0,
        "skipped": 0,
        "position": None,
        "created_at": NOW,
        "completed_at": None,
    }
    return Recovery(**values | changes)
