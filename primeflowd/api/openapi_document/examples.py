"""Answers and refusals as the document of the API shows them.

tests/api/test_openapi.py checks every one of them against the schema it stands beside.
"""

import json
from typing import Any, Final

from primeflowd.api import (
    batches,
    destinations,
    explain,
    keys,
    policies,
    queue_shape,
    recoveries,
    secrets,
    shapes,
)
from primeflowd.api.services import NodeStatistics
from primeflowd.reload import Reloaded

REFUSALS: Final[dict[int, tuple[str, str, dict[str, str] | None]]] = {
    400: (
        "invalid_delay",
        'delays[1]: expected a duration of 1ms to 30d, as "15m", "1h30m" or "7d"',
        {"index": "1", "value": "1w"},
    ),
    401: ("missing_api_key", "send an API key, as Bearer token or X-Reevit-Key", None),
    403: ("forbidden", "this needs the scope batches:write", {"scope": "batches:write"}),
    404: ("not_found", "no such object", None),
    408: ("request_timeout", "the body of the request did not arrive in time", None),
    409: (
        "idempotency_key_reused",
        "this idempotency key was used for a request with another body",
        None,
    ),
    413: ("body_too_large", "the body may have 1048576 bytes", {"limit": "1048576"}),
    415: (
        "unsupported_media_type",
        "send JSON, with Content-Type: application/json",
        None,
    ),
    422: (
        "invalid_state",
        "batch 01920000-0000-7000-8000-00000000abcd has ended as succeeded",
        {"error_type": "invalid_state"},
    ),
    429: (
        "rate_limited",
        "this key makes more requests than it may",
        {"retry_after": "1"},
    ),
    500: ("internal_error", "an internal error; its cause is in the daemon's log", None),
    503: ("storage_unavailable", "the storage is out of reach; try again", None),
}

_BATCH: Final = "01920000-0000-7000-8000-00000000abcd"
_DELIVERY: Final = "01920000-0000-7000-8000-00000000de11"
_SIGNER: Final = "01920000-0000-7000-8000-000000005ec1"
_POLICY: Final = {
    "source": "plan",
    "plan_id": "gold",
    "delays": ["15m", "1h"],
    "max_retries": 2,
    "max_attempts": 3,
}
_ATTEMPT: Final = {
    "id": "01920000-0000-7000-8000-00000000a771",
    "delivery_id": _DELIVERY,
    "attempt_number": 1,
    "status_code": 503,
    "response_body": "busy",
    "response_time_ms": 12,
    "error_message": None,
    "created_at": "2026-05-06T10:00:01.502337Z",
}
_SIGNING: Final = {
    "id": _SIGNER,
    "org_id": "acme",
    "key_prefix": "whsec_AAEC",
    "is_current": True,
    "label": "since May",
    "disabled_at": None,
    "last_used_at": None,
    "created_at": "2026-05-06T09:00:00Z",
    "updated_at": "2026-05-06T09:00:00Z",
}
_KEY: Final = {
    "id": "01920000-0000-7000-8000-000000000ce1",
    "org_id": "acme",
    "key_prefix": "pfk_012345",
    "scopes": ["batches:write"],
    "label": "worker",
    "revoked_at": None,
    "created_at": "2026-05-06T09:00:00Z",
}
_CALLBACK: Final = (
    '{"event":"batch.partial_succeeded","batch_id":"01920000-0000-7000-8000-00000000abcd",'
    '"status":"partial_succeeded","output":{"rows":3},"duration_ms":1500,'
    '"created_at":"2026-05-06T10:00:00+00:00","completed_at":"2026-05-06T10:00:01.500000+00:00",'
    '"metadata":{"order":4711}}'
)

ANSWERS: Final[dict[type, dict[str, Any]]] = {
    policies.PolicyShape: {
        "org_id": "acme",
        "plan_id": "gold",
        "delays": ["15m", "1h"],
        "max_retries": 2,
        "created_at": "2026-05-06T09:00:00Z",
        "updated_at": "2026-05-06T09:00:00Z",
    },
    shapes.EffectivePolicyShape: _POLICY,
    shapes.BatchShape: {
        "id": _BATCH,
        "org_id": "acme",
        "plan_id": "gold",
        "callback_url": "https://example.com/hook",
        "status": "partial_succeeded",
        "metadata": {"order": 4711},
        "output": {"rows": 3},
        "items_total": None,
        "items_succeeded": 0,
        "items_failed": 0,
        "items_cancelled": 0,
        "cancellation_reason": None,
        "created_at": "2026-05-06T10:00:00Z",
        "started_at": None,
        "completed_at": "2026-05-06T10:00:01.500000Z",
        "updated_at": "2026-05-06T10:00:01.500000Z",
    },
    batches.Accepted: {"index": 0, "id": _BATCH, "status": "succeeded"},
    batches.NotAccepted: {
        "index": 1,
        "error": {
            "error": "invalid_request",
            "code": "invalid_items_total",
            "message": "items_total: expected int >= 0",
            "details": {"field": "items_total"},
        },
    },
    shapes.ItemShape: {
        "sequence_index": 0,
        "client_ref": "row-1",
        "status_code": "succeeded",
        "input": {"page": 1},
        "output": {"words": 250},
        "error": None,
        "updated_at": "2026-05-06T10:00:01Z",
    },
    shapes.DeliveryShape: {
        "id": _DELIVERY,
        "batch_id": _BATCH,
        "callback_url": "https://example.com/hook",
        "payload_bytes": _CALLBACK,
        "payload": json.loads(_CALLBACK),
        "signing_secret_id": _SIGNER,
        "is_automatic": True,
        "status_code": "pending",
        "failure_reason_code": "http_status",
        "failure_detail": "HTTP 503",
        "attempt_count": 1,
        "max_attempts": 3,
        "next_attempt_at": "2026-05-06T10:15:01.514366Z",
        "created_at": "2026-05-06T10:00:01.500000Z",
        "updated_at": "2026-05-06T10:00:01.514366Z",
        "completed_at": None,
        "attempts": [_ATTEMPT],
    },
    explain.ExplanationShape: {
        "delivery_id": _DELIVERY,
        "batch_id": _BATCH,
        "callback_url": "https://example.com/hook",
        "status_code": "pending",
        "failure_reason_code": "http_status",
        "as_of": "2026-05-06T10:05:02Z",
        "node_id": "one-2157-f81fda68",
        "summary": "It waits for attempt 2: it is due at 2026-05-06T10:15:02Z, in 10m. The last "
        "attempt met 503.",
        "policy": _POLICY,
        "policy_now": _POLICY,
        "schedule": [
            {
                "attempt_number": 1,
                "state": "made",
                "at": "2026-05-06T10:00:01.502337Z",
                "delay": None,
                "hastened": False,
                "failure_reason_code": "http_status",
                "attempt": _ATTEMPT,
            },
            {
                "attempt_number": 2,
                "state": "waiting",
                "at": "2026-05-06T10:15:01.514366Z",
                "delay": "15m",
                "hastened": False,
                "failure_reason_code": None,
                "attempt": None,
            },
        ],
        "held_back_by": [
            {
                "kind": "not_due",
                "until": "2026-05-06T10:15:01.514366Z",
                "text": "it is due at 2026-05-06T10:15:02Z, in 10m",
            }
        ],
        "would_go": ["wait until 2026-05-06T10:15:02Z"],
        "claimed_by": None,
        "destination": {
            "name": "https://example.com:443",
            "queued": 0,
            "in_flight": 0,
            "window": 4,
            "suspended_until": None,
            "probing": False,
        },
    },
    queue_shape.QueueShape: {
        "as_of": "2026-05-06T10:05:02Z",
        "org_id": "acme",
        "buckets": list(queue_shape.BUCKETS),
        "destinations": 1,
        "total": {"waiting": 1, "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0]},
        "largest": [
            {
                "waiting": 1,
                "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0],
                "destination": "https://example.com:443",
            }
        ],
    },
    recoveries.RecoveryStartedShape: {"id": "01920000-0000-7000-8000-00000000cec0", "matched": 12},
    recoveries.RecoveryShape: {
        "id": "01920000-0000-7000-8000-00000000cec0",
        "org_id": "acme",
        "status": "running",
        "since": "2026-05-06T10:00:00Z",
        "until": "2026-05-06T10:30:00Z",
        "destination": "https://example.com:443",
        "failure_reason_code": None,
        "matched": 12,
        "redelivered": 7,
        "skipped": 1,
        "created_at": "2026-05-06T11:00:00Z",
        "completed_at": None,
    },
    secrets.SecretShape: _SIGNING,
    secrets.NewSecretShape: {
        **_SIGNING,
        "plain_secret": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    },
    secrets.PublicKeyShape: {
        "id": _SIGNER,
        "public_key": "whpk_K53tDYtHgVrUBrfRPjAAbDECLziCWqwY7P4Wy1X1bRk=",
    },
    destinations.DestinationShape: {
        "destination": "https://example.com:443",
        "source": "api",
        "rate": 10.0,
        "burst": 20,
        "concurrency": 4,
        "timeout": "5s",
        "while_disabled": "wait",
        "disable_when_gone": False,
        "disable_after": "0s",
        "headers": ["X-Gateway-Token"],
        "disabled_reason": "moves to another host",
        "disabled_at": "2026-05-06T10:00:00Z",
        "failing_since": None,
        "created_at": "2026-05-01T08:30:00Z",
        "updated_at": "2026-05-06T10:00:00Z",
    },
    keys.KeyShape: _KEY,
    keys.NewKeyShape: {**_KEY, "key": "pfk_0123456789abcdefghij0123456789abcdefghij"},
    Reloaded: {
        "changed": ["delivery.timeout", "log.level"],
        "needs_restart": {"api.bind": "the port is bound at the start"},
    },
    NodeStatistics: {
        "node_id": "one-2157-f81fda68",
        "is_eldest": True,
        "held": 3,
        "waiting": 2,
        "due": 1,
        "sending": 0,
        "storage_healthy": True,
        "storage_backlog": 0,
        "commits": 812,
        "operations": 4096,
        "attempts_not_announced": 0,
    },
}
