"""Answers and refusals as the document of the API shows them.

tests/api/test_openapi.py checks every one of them against the schema it stands beside.
"""

from typing import Any, Final

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

ANSWERS: Final[dict[str, Any]] = {}
