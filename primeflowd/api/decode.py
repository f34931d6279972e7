"""From the bytes of a request to values, and the 400 that says exactly what is wrong with them.

Bodies are JSON objects (contract 2.10), decoded by typed decoders that are made once per kind of
body. JSON that a client wants back verbatim is taken as `msgspec.Raw` and leaves here as canonical
bytes, never as parsed values. Fails with InvalidRequest and Rejected (415).
"""

import re
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Raw

from primeflowd.api.call import Call
from primeflowd.api.errors import Rejected
from primeflowd.errors import InvalidRequest
from primeflowd.instants import SECOND, Micros, from_datetime
from primeflowd.payload import InvalidJson, canonical, check_document

T = TypeVar("T")

ABSENT: Final = Raw()
"""Default of a Raw field: the client did not send it."""

Instant = Annotated[datetime, Meta(tz=True)]
"""An RFC 3339 timestamp with a time zone."""

MAX_PLAN_ID: Final = 128

_JSON: Final = re.compile(r'application/json\s*(;\s*charset="?utf-?8"?\s*)?', re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# The years 1970 to 9999: what a timestamp of ours can show.
_LAST_INSTANT: Final[Micros] = 253_402_300_800 * SECOND - 1
_LONGEST_NAME: Final = 200


async def body(
    call: Call,
    decoder: msgspec.json.Decoder[T],
    *,
    may_be_absent: bool = False,
    limit: int | None = None,
) -> T:
    """The body of a request as a struct.

    Args:
        may_be_absent: an empty body counts as `{}`, whatever its content type.
        limit: in bytes; None is `api.max_body`.

    Raises:
        InvalidRequest: not JSON, or not of this shape.
        Rejected: 413, 415.
    """
    if may_be_absent and not await call.body(limit):
        return decoder.decode(b"{}")
    return document(checked(call, await call.body(limit)), decoder)


def checked(call: Call, raw: bytes) -> bytes:
    """The body of a request, which says of itself that it is JSON; its UTF-8 and depth are checked.

    Raises:
        InvalidRequest: `invalid_json`.
        Rejected: 415.
    """
    content_type = call.headers.get("Content-Type")
    if content_type != "application/json" and not _JSON.fullmatch((content_type or "").strip()):
        raise Rejected(
            415, "unsupported_media_type", "send JSON, with Content-Type: application/json"
        )
    try:
        check_document(raw)
    except InvalidJson as error:
        raise InvalidRequest("invalid_json", f"the body is not JSON: {error}") from error
    return raw


def document(raw: bytes | Raw, decoder: msgspec.json.Decoder[T]) -> T:
    """A JSON document whose UTF-8 and depth were checked, as a struct.

    Raises:
        InvalidRequest: not JSON, or not of this shape.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("invalid_json", f"the body is not JSON: {error}") from error


def verbatim(raw: Raw) -> bytes | None:
    """Canonical bytes of a JSON value from a body; None if it was not sent.

    Raises:
        InvalidRequest: `invalid_json`.
    """
    if raw is ABSENT:
        return None
    try:
        # A copy: a Raw keeps the whole body alive, a batch in memory shall not.
        return canonical(raw)
    except InvalidJson as error:
        raise InvalidRequest("invalid_json", f"the body is not JSON: {error}") from error


def verbatim_or_null(raw: Raw) -> bytes | None:
    """As `verbatim`, for a field in which null means none."""
    text = verbatim(raw)
    return None if text == b"null" else text


def text(value: str | None, field: str, longest: int) -> str | None:
    """`value`, if it is None or at most `longest` characters without control characters.

    Raises:
        InvalidRequest: `invalid_` and the field's name.
    """
    if value is None:
        return None
    if len(value) > longest or _CONTROL.search(value):
        raise invalid(field, f"at most {longest} characters, none of them a control character")
    return value


def plan_id(value: str | None) -> str:
    """A plan id; absent, null and "" all mean the org-wide one (contract 3.1)."""
    return text(value, "plan_id", MAX_PLAN_ID) or ""


def instant(moment: datetime | None, field: str) -> Micros | None:
    """The instant of a timestamp from a body.

    Raises:
        InvalidRequest: `invalid_` and the field's name: before 1970 or after 9999.
    """
    if moment is None:
        return None
    micros = from_datetime(moment)
    if not 0 <= micros <= _LAST_INSTANT:
        raise invalid(field, "expected a time between 1970 and 9999")
    return micros


def query_instant(call: Call, name: str) -> Micros | None:
    """The instant that a query parameter names, None if it is absent.

    Raises:
        InvalidRequest: `invalid_` and its name: no RFC 3339 timestamp with a time zone.
    """
    written = call.query(name)
    if written is None:
        return None
    try:
        moment = msgspec.convert(written, Instant)
    except msgspec.ValidationError as error:
        raise invalid(name, "expected RFC 3339 with a time zone, percent-encoded") from error
    return instant(moment, name)


def invalid(field: str, message: str) -> InvalidRequest:
    """The refusal of one field's value."""
    return InvalidRequest(f"invalid_{field}", f"{field}: {message}", {"field": field})


def _explained(problem: str) -> InvalidRequest:
    """msgspec's message as a refusal that names the field."""
    what, _, where = problem.rpartition(" - at `$")
    if not what:
        what, where = problem, ""
    path = where.removesuffix("`").lstrip(".")
    for start, kind in (
        ("Object contains unknown field `", "unknown_field"),
        ("Object missing required field `", "required"),
    ):
        if what.startswith(start):
            name = what.removeprefix(start).removesuffix("`")
            full = (f"{path}.{name}" if path else name)[:_LONGEST_NAME]
            details = {"field": full}
            if kind == "unknown_field":
                return InvalidRequest(kind, f"unknown field: {full}", details)
            return InvalidRequest(f"{name}_required", f"{full} is required", details)
    what = what[:1].lower() + what[1:].replace("`", "")
    if not path:
        return InvalidRequest("invalid_body", f"the body is wrong: {what}")
    name = re.sub(r"\[.*?\]", "", path).rpartition(".")[2]
    return InvalidRequest(f"invalid_{name}", f"{path}: {what}", {"field": path})
