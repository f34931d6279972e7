"""payload.py: canonical JSON, the checks beside msgspec's, and the frozen bytes."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from primeflowd import payload
from primeflowd.instants import SECOND, Micros, from_datetime
from primeflowd.model import Batch, Item
from primeflowd.payload import InvalidJson, check_document, freeze, items_output
from primeflowd.testing.factories import make_batch

CREATED = from_datetime(datetime(2026, 5, 6, 10, tzinfo=UTC))

VECTOR_SECRET = b"whsec_primeflowd_example_0001"
VECTOR_BODY = (
    b'{"event":"batch.partial_succeeded","batch_id":"01920000-0000-7000-8000-00000000abcd",'
    b'"status":"partial_succeeded","output":{"items":[],"succeeded":2,"failed":1,"cancelled":0,'
    b'"total":3},"duration_ms":1500,"created_at":"2026-05-06T10:00:00+00:00",'
    b'"completed_at":"2026-05-06T10:00:01.500000+00:00","metadata":null}'
)
VECTOR_HMAC = "2ffcaf30617273c5de2e02c955063595df2516be200cd57dec93b5118475c3ba"


def frozen_batch(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "batch_id": "01920000-0000-7000-8000-00000000abcd",
        "status": "succeeded",
        "output": None,
        "metadata": None,
        "created_at": CREATED,
        "completed_at": CREATED,
    }
    return freeze(**{**fields, **changes})


def item(sequence_index: int = 0, **changes: Any) -> Item:
    plain = Item(
        org_id="org",
        batch_id="01920000-0000-7000-8000-00000000abcd",
        sequence_index=sequence_index,
        client_ref=None,
        status="succeeded",
        input=None,
        output=None,
        error=None,
        updated_at=CREATED,
    )
    return msgspec.structs.replace(plain, **changes)


def canonical(document: bytes) -> bytes:
    """As what a client sends becomes what is kept."""
    check_document(document)
    return payload.canonical(document)


# An oracle that shares no code with payload.py: the standard library's parser, told to keep the
# spelling of numbers and every key, and a printer of a few lines.


class Spelling(str):
    """A number, true, false or null, as spelt."""


class Pairs(list[tuple[str, Any]]):
    """An object: all its keys, in order."""


def refuse_constant(name: str) -> object:
    raise ValueError(name)


def parse(text: bytes) -> Any:
    value = json.loads(
        text.decode(),
        parse_int=Spelling,
        parse_float=Spelling,
        parse_constant=refuse_constant,
        object_pairs_hook=Pairs,
    )
    show(value).encode()  # the standard library lets lone surrogates pass
    return value


def show(value: Any) -> str:
    match value:
        case Spelling():
            return value
        case Pairs():
            return "{" + ",".join(f"{show(key)}:{show(inner)}" for key, inner in value) + "}"
        case list():
            return "[" + ",".join(map(show, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


# JSON as clients may spell it: any space, any escape, any number.

spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n", "  "])
numbers = st.from_regex(r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?\Z")
plain_characters = st.characters(
    exclude_categories=["Cs"], exclude_characters='"\\' + "".join(map(chr, range(0x20)))
)


@st.composite
def spelt_characters(draw: st.DrawFn) -> str:
    form = draw(st.integers(0, 3))
    if form == 0:
        return draw(plain_characters)
    if form == 1:
        return draw(st.sampled_from([r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t"]))
    units = draw(st.characters(exclude_categories=["Cs"])).encode("utf-16-be").hex()
    cased = units.upper() if form == 2 else units
    return "".join("\\u" + cased[at : at + 4] for at in range(0, len(cased), 4))


spelt_strings = st.lists(spelt_characters(), max_size=8).map(lambda cs: '"' + "".join(cs) + '"')
scalars = st.one_of(numbers, spelt_strings, st.sampled_from(["true", "false", "null"]))


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    spaced = st.tuples(spaces, inner, spaces).map("".join)
    keys = st.tuples(spaces, spelt_strings, spaces).map("".join)
    pairs = st.tuples(keys, spaced).map(":".join)
    return st.one_of(
        st.lists(spaced, max_size=4).map(lambda parts: "[" + ",".join(parts) + "]"),
        st.lists(pairs, max_size=4).map(lambda parts: "{" + ",".join(parts) + "}"),
    )


documents = (
    st.tuples(spaces, st.recursive(scalars, containers, max_leaves=12), spaces)
    .map("".join)
    .map(str.encode)
)


@given(documents)
@example(rb'"\\"')
@example(rb'"\\\""')
@example(rb'[ "\\" , "\"" , " [ \\\" ] " ]')
@example(rb'{"\u0022 \\u0022":"\u005c"}')
@example(b'"\\u0000\\u001f\\u007f\x7f\xe2\x80\xa8"')
def test_canonical_is_what_an_independent_printer_writes(document: bytes) -> None:
    """4.4: order of keys, repeated keys and spelling of numbers stay; space and escapes go."""
    assert canonical(document) == show(parse(document)).encode()


@given(documents)
def test_canonical_is_idempotent(document: bytes) -> None:
    """4.5: what is stored once never changes by being read and stored again."""
    once = canonical(document)
    assert canonical(once) == once


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(documents)
def test_what_is_compacted_has_every_value_in_canonical_form(document: bytes) -> None:
    """4.4: as if each had been rewritten by itself."""
    whole = payload.compacted(b'{"a" : %b , "b":[ %b ]}' % (document, document))
    one = canonical(document)
    assert whole == (None if b"\\" in document else b'{"a":%b,"b":[%b]}' % (one, one))


@pytest.mark.parametrize("malformed", [b"", b"{", b"[1,]", b"{} {}"])
def test_nothing_malformed_is_compacted(malformed: bytes) -> None:
    assert payload.compacted(malformed) is None


@given(values, st.booleans(), st.sampled_from([None, 0, 2, "\t"]))
def test_canonical_agrees_with_json_dumps(
    value: object, ascii_only: bool, indent: int | str | None
) -> None:
    """4.4: compact JSON, UTF-8 unescaped."""
    sent = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert canonical(sent) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def accepted_by_oracle(document: bytes) -> bool:
    try:
        parse(document)
    except (ValueError, RecursionError):
        return False
    return True


def accepted(document: bytes) -> bool:
    try:
        canonical(document)
    except InvalidJson:
        return False
    return True


@given(st.binary(max_size=40) | st.text('[]{}":,\\ \t10.eE+-untfa/d8', max_size=40).map(str.encode))
def test_arbitrary_bytes_are_refused_as_invalid_json_or_are_json(document: bytes) -> None:
    """2.10: nothing but InvalidJson comes out, and it comes where the standard library refuses."""
    assert accepted(document) == accepted_by_oracle(document)


@given(documents, st.integers(min_value=0), st.binary(max_size=2), st.integers(0, 2))
def test_damaged_documents_are_judged_as_the_standard_library_does(
    document: bytes, where: int, inserted: bytes, removed: int
) -> None:
    """2.10: one byte too many or too few is noticed."""
    where %= len(document) + 1
    damaged = document[:where] + inserted + document[where + removed :]
    assert accepted(damaged) == accepted_by_oracle(damaged)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b' {"b": 1, "a": 2} ', b'{"b":1,"a":2}'),
        (b'{"a":1,"a":2}', b'{"a":1,"a":2}'),
        (b"[1.0, 1, 1e5, 1E+05, -0, 0.10]", b"[1.0,1,1e5,1E+05,-0,0.10]"),
        (b"9007199254740993", b"9007199254740993"),
        (b"1" * 5000, b"1" * 5000),
        (b"1e999", b"1e999"),
        (rb'"\/\u00e9\u0041\u003c"', '"/éA<"'.encode()),
        (rb'"\ud83d\ude00"', '"😀"'.encode()),
        (rb'"\u000a\u0008\u0001\u001F"', rb'"\n\b\u0001\u001f"'),
        (rb'"\"\\"', rb'"\"\\"'),
        (b'" a  b "', b'" a  b "'),
        (b'[ " \\" , [ " ]', b'[" \\" , [ "]'),
        (b"\r\n\tnull", b"null"),
        (b"[\r1]", b"[1]"),
        (b"[\n1]", b"[1]"),
        (b"[\t1]", b"[1]"),
    ],
)
def test_canonical_by_example(sent: bytes, kept: bytes) -> None:
    """4.4."""
    assert canonical(sent) == kept


@pytest.mark.parametrize(
    "refused",
    [
        b"",
        b" ",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"1e",
        b"[1,]",
        b'{"a":1,}',
        b"{a:1}",
        b"'a'",
        b"1 2",
        b"\xef\xbb\xbf1",
        b'"a\nb"',
        b'"\xff"',
        b'"\xc3"',
        b'"\xed\xa0\x80"',
        b"\xff",
        rb'"\ud800"',
        rb'"\ud800 and more"',
        rb'"\udc00"',
        rb'"\udc00\ud800"',
        rb'{"\ud800 and more":1}',
        rb'"\x41"',
        rb'"\u12"',
        b'"\\',
        b"[\x0b1]",
        "[\u00a01]".encode(),
        b"\\",
        b'\\"' + b"[" * 100_000,
    ],
)
def test_canonical_refuses(refused: bytes) -> None:
    """2.10: NaN, Infinity, invalid UTF-8, lone surrogates, and what is no JSON at all."""
    with pytest.raises(InvalidJson):
        canonical(refused)


def nested(depth: int, inside: bytes = b"") -> bytes:
    """`depth` arrays and objects in turns, around `inside`."""
    opening = b"".join(b'{"a":' if level % 2 else b"[" for level in range(depth))
    closing = b"".join(b"}" if level % 2 else b"]" for level in reversed(range(depth)))
    return opening + (inside or b"0") + closing


@pytest.mark.parametrize("check", [check_document, canonical])
@pytest.mark.parametrize(
    "inside",
    [
        b"",
        b'"[[[[{{{{"',
        rb'"\"[[["',
        rb'"\\"',
        rb'"\\\"[["',
        rb'"\\\\\"]]"',
        b'"]]]]"',
    ],
)
def test_nesting_beyond_100_is_refused(check: Any, inside: bytes) -> None:
    """2.10: brackets in strings are text, whatever escapes stand around them."""
    # Shallow brackets before and after, so that the count alone decides nothing.
    shallow = b"[" + b"[],{}," * 100 + b'"[","]\\"",'
    check(shallow + nested(99, inside) + b",[]]")
    with pytest.raises(InvalidJson, match="nested deeper than 100"):
        check(shallow + nested(100, inside) + b",[]]")


def depth(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(depth, value), default=0)
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case _:
            return 0


@given(
    st.lists(
        st.recursive(
            st.text('[]{}"\\a', max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[}'), inner),
        ),
        min_size=1,
    ),
    st.integers(90, 101),
)
def test_depth_is_measured_exactly(value: list[object], wrapped: int) -> None:
    """2.10."""
    sent = b"[" * wrapped + json.dumps(value).encode() + b"]" * wrapped
    too_deep = wrapped + depth(value) > 100
    try:
        check_document(sent)
    except InvalidJson:
        assert too_deep
    else:
        assert not too_deep


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["\\"",', b'{"\\\\":'])
@pytest.mark.parametrize("levels", [101, 1_000, 200_000])
def test_hostile_nesting_never_exhausts_the_stack(opening: bytes, levels: int) -> None:
    """2.10: unclosed, too; a RecursionError would be a 500."""
    with pytest.raises(InvalidJson):
        check_document(opening * levels)


def test_check_document_finds_bad_utf8_where_msgspec_does_not_look() -> None:
    """2.10: in a field that nobody reads, and in one that is kept raw."""
    for body in (b'{"unread":"\xff"}', b'{"metadata":{"\xff":1}}'):
        msgspec.json.Decoder(dict[str, msgspec.Raw]).decode(body)  # the reason for the check
        with pytest.raises(InvalidJson, match="UTF-8"):
            check_document(body)


def test_freeze_reproduces_the_test_vector() -> None:
    """4.2, 6.2: the contract's own example, with its signature."""
    body = frozen_batch(
        status="partial_succeeded",
        output=items_output([], succeeded=2, failed=1, cancelled=0, total=3),
        completed_at=CREATED + 1_500_000,
    )
    assert body == VECTOR_BODY
    assert len(body) == 311
    assert hmac.new(VECTOR_SECRET, body, hashlib.sha256).hexdigest() == VECTOR_HMAC


@pytest.mark.parametrize("status", ["succeeded", "failed", "partial_succeeded", "cancelled"])
def test_the_event_is_named_for_the_status(status: str) -> None:
    """4.2."""
    payload = json.loads(frozen_batch(status=status))
    assert payload["event"] == f"batch.{status}"
    assert payload["status"] == status


@pytest.mark.parametrize(
    ("took", "duration_ms"),
    [(0, 0), (999, 0), (1000, 1), (1999, 1), (SECOND, 1000), (-1, 0), (-5 * SECOND, 0)],
)
def test_duration_is_whole_milliseconds_and_never_negative(took: Micros, duration_ms: int) -> None:
    """4.2."""
    frozen = frozen_batch(completed_at=CREATED + took)
    assert b'"duration_ms":%d,' % duration_ms in frozen


@pytest.mark.parametrize(
    ("fraction", "spelt"),
    [
        (0, "2026-05-06T10:00:00+00:00"),
        (1, "2026-05-06T10:00:00.000001+00:00"),
        (500_000, "2026-05-06T10:00:00.500000+00:00"),
    ],
)
def test_datetimes_have_no_fraction_or_six_digits(fraction: Micros, spelt: str) -> None:
    """4.3: isoformat, never Z."""
    at = CREATED + fraction
    payload = json.loads(frozen_batch(created_at=at, completed_at=at))
    assert payload["created_at"] == payload["completed_at"] == spelt


def test_metadata_and_output_are_copied_byte_for_byte() -> None:
    """4.4: spellings that a parser would lose."""
    metadata = b'{"b":1.0,"a":12345678901234567890123,"c":1E400,"b":"\xc3\xa9"}'
    output = b"[1,1.0,1e5,null]"
    frozen = frozen_batch(metadata=metadata, output=output)
    assert b'"output":' + output + b',"duration_ms"' in frozen
    assert frozen.endswith(b',"metadata":' + metadata + b"}")


@pytest.mark.parametrize("given_output", [None, b"null"])
def test_absent_and_null_look_the_same(given_output: bytes | None) -> None:
    """4.2."""
    frozen = frozen_batch(output=given_output, metadata=given_output)
    assert b'"output":null,' in frozen
    assert frozen.endswith(b'"metadata":null}')


@given(
    documents,
    documents,
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
)
def test_a_payload_is_canonical_json_with_its_keys_in_order(
    metadata: bytes, output: bytes, created: datetime, completed: datetime
) -> None:
    """4.2 to 4.4, for any batch."""
    frozen = frozen_batch(
        metadata=canonical(metadata),
        output=canonical(output),
        created_at=from_datetime(created),
        completed_at=from_datetime(completed),
    )
    assert show(parse(frozen)).encode() == frozen
    took = max(completed - created, timedelta(0))
    assert parse(frozen) == [
        ("event", "batch.succeeded"),
        ("batch_id", "01920000-0000-7000-8000-00000000abcd"),
        ("status", "succeeded"),
        ("output", parse(output)),
        ("duration_ms", str(took // timedelta(milliseconds=1))),
        ("created_at", created.isoformat()),
        ("completed_at", completed.isoformat()),
        ("metadata", parse(metadata)),
    ]


def test_items_become_the_output() -> None:
    """4.2: `{items, succeeded, failed, cancelled, total}`."""
    reported = [
        item(0, client_ref='Jö "1"\n', output=b'{"x":1.0}'),
        item(1, status="failed", error=b'"why"'),
        item(2, status="cancelled"),
    ]
    assert items_output(reported, succeeded=1, failed=1, cancelled=1, total=3) == (
        b'{"items":['
        b'{"sequence_index":0,"client_ref":"J\xc3\xb6 \\"1\\"\\n","status_code":"succeeded",'
        b'"output":{"x":1.0},"error":null},'
        b'{"sequence_index":1,"client_ref":null,"status_code":"failed",'
        b'"output":null,"error":"why"},'
        b'{"sequence_index":2,"client_ref":null,"status_code":"cancelled",'
        b'"output":null,"error":null}'
        b'],"succeeded":1,"failed":1,"cancelled":1,"total":3}'
    )


@given(st.lists(st.tuples(st.none() | texts, documents)))
def test_the_output_of_items_is_canonical(reports: list[tuple[str | None, bytes]]) -> None:
    """4.4."""
    reported = [
        item(index, client_ref=ref, output=canonical(output))
        for index, (ref, output) in enumerate(reports)
    ]
    output = items_output(reported, len(reported), 0, 0, len(reported))
    assert canonical(output) == output
    assert [entry[1][1] for entry in parse(output)[0][1]] == [ref for ref, _ in reports]


def ended(output: bytes | None, metadata: bytes | None) -> Batch:
    batch = make_batch(output=output, metadata=metadata)
    return replace(
        batch,
        payload=payload.freeze(
            batch_id=batch.id,
            status="succeeded",
            output=output,
            metadata=metadata,
            created_at=batch.created_at,
            completed_at=batch.created_at,
        ),
    )


@given(documents | st.none(), documents | st.none())
def test_what_a_payload_repeats_is_carried_by_it(sent: bytes | None, besides: bytes | None) -> None:
    """4.5: whoever leaves out what is repeated has it back to the byte."""
    output = None if sent is None else canonical(sent)
    metadata = None if besides is None or canonical(besides) == b"null" else canonical(besides)
    batch = ended(output, metadata)
    assert batch.payload is not None
    # An explicit null would come back as none.
    assert payload.repeats(batch) == (output != b"null")
    if output != b"null":
        assert payload.carried(batch.payload) == (output, metadata)


@given(documents, documents, documents)
def test_a_payload_repeats_nothing_but_its_own(sent: bytes, other: bytes, besides: bytes) -> None:
    one, two, metadata = canonical(sent), canonical(other), canonical(besides)
    assume(one != two)
    assert not payload.repeats(replace(ended(one, metadata), output=two))
    assert not payload.repeats(replace(ended(metadata, one), metadata=two))


@pytest.mark.parametrize(
    ("frozen", "changes"),
    [
        (b"", {}),
        (b"\xff\xfe", {}),
        (b'{"event":"batch.succeeded"}', {}),
        (None, {}),
        (b"own", {"status": "failed"}),
        (b"own", {"id": "another"}),
    ],
)
def test_a_payload_of_another_kind_repeats_nothing(
    frozen: bytes | None, changes: dict[str, Any]
) -> None:
    batch = replace(ended(b"1", b"2"), **changes)
    if frozen != b"own":
        batch = replace(batch, payload=frozen)
    assert not payload.repeats(batch)
    if frozen is not None and frozen != b"own":
        assert payload.carried(frozen) == (None, None)
