"""What schemathesis cannot know from the document: see test_openapi.py.

Strings of a format that only we have, and URLs and times as the daemon takes them.
"""

from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st

from primeflowd.api.cursors import encode, encode_index
from primeflowd.instants import from_datetime

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
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Keep to the rules that the document has in prose, since JSON Schema cannot say them."""
    body = case.body
    if isinstance(body, dict):
        _spell_integers(body)
        for item in body["items"] if isinstance(body.get("items"), list) else ():
            if isinstance(item, dict):
                _spell_integers(item)
        since, until = _instant(body.get("since")), _instant(body.get("until"))
        if since and until and until < since:
            body["since"], body["until"] = body["until"], body["since"]


def _spell_integers(body: dict[str, Any]) -> None:
    """Without a fraction: to JSON Schema, 1.0 is an integer."""
    for name in ("items_total", "max_retries", "sequence_index"):
        value = body.get(name)
        if isinstance(value, float) and value.is_integer():
            body[name] = int(value)


def _instant(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
