"""What schemathesis cannot know from the document: see test_openapi.py.

Strings of a format that only we have, and URLs and times as the daemon takes them.
"""

from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st

from primeflowd.api.cursors import encode, encode_index
from primeflowd.api.openapi_document.document import document
from primeflowd.instants import from_datetime
from primeflowd.model import new_id
from tests.api.documented import validator_of

_batch = validator_of({"$ref": "#/components/schemas/BatchBody"})
_parameters = document()["components"]["parameters"]
_key = validator_of(_parameters["IdempotencyKey"]["schema"])
_org = validator_of(_parameters["Org"]["schema"])
_since_1970 = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))

schemathesis.openapi.format(
    "cursor",
    st.builds(lambda at, of: encode(from_datetime(at), str(of)), _since_1970, st.uuids(version=4)),
)
schemathesis.openapi.format("item-cursor", st.integers(0, 99).map(encode_index))
schemathesis.openapi.format(
    "duration-text",
    st.builds(
        lambda number, unit: f"{number}{unit}",
        st.integers(1, 30),
        st.sampled_from(("ms", "m", "d")),
    ),
)
schemathesis.openapi.format("date-time", _since_1970.map(datetime.isoformat))
schemathesis.openapi.format(
    "uri",
    st.builds(
        lambda host, path: f"http://{host}/{path}",
        st.sampled_from(("127.0.0.1:9", "[::1]:9", "localhost:9")),
        st.text("abcdefgh/", max_size=8),
    ),
)


@schemathesis.hook
def before_call(
    _: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]
) -> None:
    """Keep to the rules that the document has in prose, since JSON Schema cannot say them."""
    headers: Any = case.headers
    org = headers.get("X-Org-Id")
    if _org.is_valid(org) or (org is None and not case.path.startswith("/v1/policies")):
        # The key is an operator's, so that none that is found and revoked is the one in use.
        headers["X-Org-Id"] = "acme"
    if _key.is_valid(headers.get("Idempotency-Key")):
        # One that occurred before would be answered with that, or a 409: nothing would be tried.
        headers["Idempotency-Key"] = new_id()
    body: Any = case.body
    if isinstance(body, dict):
        _spell_integers(body)
        for name in ("items", "batches"):
            for each in body[name] if isinstance(body.get(name), list) else ():
                if isinstance(each, dict):
                    _spell_integers(each)
                    _tell_items_apart(each)
        _tell_items_apart(body)
        since, until = _instant(body.get("since")), _instant(body.get("until"))
        if since and until and until < since:
            body["since"], body["until"] = body["until"], body["since"]


def _spell_integers(body: dict[str, Any]) -> None:
    """Without a fraction: to JSON Schema, 1.0 is an integer."""
    for name in ("items_total", "max_retries", "sequence_index"):
        value = body.get(name)
        if isinstance(value, float) and value.is_integer():
            body[name] = int(value)


def _tell_items_apart(body: dict[str, Any]) -> None:
    """No client_ref occurs twice in a batch."""
    items = body.get("items")
    seen = set()
    for item in items if isinstance(items, list) else ():
        ref = item.get("client_ref") if isinstance(item, dict) else None
        if isinstance(ref, str):
            if ref in seen:
                item["client_ref"] = new_id()
            seen.add(ref)


def _instant(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None


@schemathesis.check
def each_batch_is_judged(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Of a bulk that was taken, those batches have an error that are not as the document has
    them, and those of them that are, none but that their id is taken."""
    if case.operation.definition.raw.get("operationId") != "register_batches":
        return
    body: Any = case.body
    if response.status_code != 200 or not isinstance(body, dict):
        return
    for sent, result in zip(body["batches"], response.json()["results"], strict=True):
        refused = result.get("error", {}).get("error")
        allowed = _batch.is_valid(sent)
        assert refused in ((None, "validation_error") if allowed else ("invalid_request",)), (
            f"{sent} met {result}"
        )
