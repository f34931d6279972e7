"""What an attempt looks like on record. The rest of it is tested with the sender."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.attempts import response_text


@pytest.mark.parametrize(
    ("body", "limit", "text"),
    [
        (b"", 8, ""),
        (b"short", 8, "short"),
        ("äöüß".encode(), 8, "äöüß"),
        ("äöüßé".encode()[:8], 8, "äöüß"),
        ("aäöüß".encode()[:8], 8, "aäöü"),  # cut within a character: left out
        ("aäöü".encode()[:6], 8, "aäö\ufffd"),  # the receiver cut it, not we
        (b"\xff\xfe", 8, "\ufffd\ufffd"),
        (b"\xff" * 8, 8, "\ufffd\ufffd"),  # two are six bytes, three would be nine
        (b"a\x00b", 8, "a\ufffdb"),
        (b"\x00" * 8, 8, "\ufffd\ufffd"),
        (b"", 0, ""),
        (b"\xed\xa0\x80", 16, "\ufffd\ufffd\ufffd"),  # a surrogate is no text
    ],
)
def test_response_text(body: bytes, limit: int, text: str) -> None:
    """5.5: valid text of at most so many bytes, cut at a character, the rest replaced."""
    assert response_text(body, limit) == text


@given(st.binary(max_size=64), st.integers(0, 64))
def test_response_text_of_anything(body: bytes, limit: int) -> None:
    """5.5: it can always be stored and shown."""
    text = response_text(body[:limit], limit)
    assert len(text.encode()) <= limit
    assert "\x00" not in text


@given(st.text(max_size=40), st.integers(0, 64))
def test_response_text_of_text(text: str, limit: int) -> None:
    """5.5: text that fits is kept as it is, text that does not is cut and not changed."""
    text = text.replace("\x00", "")
    shown = response_text(text.encode()[:limit], limit)
    assert text.startswith(shown)
    if len(text.encode()) <= limit:
        assert shown == text
