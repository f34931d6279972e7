"""request_head.py: what goes over the wire, and what must not get into it."""

import pytest

from primeflowd.request_head import encode, header_lines, is_value, with_others
from tests.network import request


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "1\r\nX-Evil: 1"),
        ("X-A", "1\nX-Evil: 1"),
        ("X-A", "1\r"),
        ("X-A", "1\x00"),
        ("X-A", "\t"),
        ("X-A", "1\x7f"),
        ("X-A", "é"),
        ("X-A", "\u2028"),
        ("X-A", "\ud800"),
        ("X A", "1"),
        ("X-A:", "1"),
        ("", "1"),
        ("X-A\r\nX-Evil", "1"),
        ("X-Ä", "1"),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("HOST", "elsewhere"),
    ],
)
def test_headers_cannot_break_the_request(name: str, value: str) -> None:
    """5.3: a header that would change the message is our own error. It is named; its value may
    be a secret."""
    with pytest.raises(ValueError, match="header") as caught:
        header_lines([("X-Good", "1"), (name, value)])
    assert value == "1" or value not in str(caught.value)
    with pytest.raises(ValueError, match="header"):
        with_others("X-Other: 1\r\n", [(name, value)])


def test_a_value_is_printable_ascii() -> None:
    """5.3: each character is looked at, wherever it stands."""
    allowed = [chr(code) for code in range(0x3000) if is_value(f"a{chr(code)}?")]
    assert "".join(allowed) == "".join(map(chr, range(0x20, 0x7F)))
    assert is_value("")
    assert not is_value("\ud800")


def test_encoding() -> None:
    """6.4: request line, Host, Content-Length, the headers as given, the body as it is."""
    sent = request("http://Example.com:81/p?q", b"\x00\xff", (("A", "b c"), ("a", "")))
    assert encode(sent) == (
        b"POST /p?q HTTP/1.1\r\nHost: example.com:81\r\nContent-Length: 2\r\n"
        b"A: b c\r\na: \r\n\r\n\x00\xff"
    )
    assert encode(request("http://a/")) == (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    )


def test_what_is_set_is_not_replaced() -> None:
    """8: the headers of an operator come after all others, where there is none of that name."""
    lines = header_lines([("X-One", "1: 2"), ("x-two", "2")])
    others = [("x-one", "9"), ("X-Three", "3"), ("X-TWO", "9")]
    assert with_others(lines, others) == "X-One: 1: 2\r\nx-two: 2\r\nX-Three: 3\r\n"
    assert with_others(lines, ()) == lines
