"""callback_url.py: which spellings are accepted, and what becomes of them on the wire (4.7)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primeflowd.callback_url import MAX_LENGTH, Target, parse


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "host_header", "request_target", "destination"),
    [
        (
            "https://example.com/hook?a=1",
            *("https", "example.com", 443, "example.com", "/hook?a=1", "https://example.com:443"),
        ),
        (
            "HTTP://Example.COM:8080",
            *("http", "example.com", 8080, "example.com:8080", "/", "http://example.com:8080"),
        ),
        (
            "hTTps://example.com:443/",
            *("https", "example.com", 443, "example.com", "/", "https://example.com:443"),
        ),
        (
            "https://example.com:80?x",
            *("https", "example.com", 80, "example.com:80", "/?x", "https://example.com:80"),
        ),
        (
            "http://example.com:/",
            *("http", "example.com", 80, "example.com", "/", "http://example.com:80"),
        ),
        (
            "http://example.com:0080/",
            *("http", "example.com", 80, "example.com", "/", "http://example.com:80"),
        ),
        (
            "http://example.com./",
            *("http", "example.com.", 80, "example.com.", "/", "http://example.com:80"),
        ),
        (
            "http://[2001:DB8:0:0::1]:81/x",
            *("http", "2001:db8::1", 81, "[2001:db8::1]:81", "/x", "http://[2001:db8::1]:81"),
        ),
        (
            "http://bücher.example/",
            *("http", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"),
            "http://xn--bcher-kva.example:80",
        ),
        (
            "http://my_service.internal/",
            *("http", "my_service.internal", 80, "my_service.internal", "/"),
            "http://my_service.internal:80",
        ),
    ],
)
def test_parts(
    url: str,
    scheme: str,
    host: str,
    port: int,
    host_header: str,
    request_target: str,
    destination: str,
) -> None:
    """4.7: a URL is taken apart; scheme and host are lower case, default ports are left out."""
    assert parse(url) == Target(scheme, host, port, host_header, request_target, destination)


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b/./c//d",
        "/%2e%2E/%zz%",
        "/a;b=c,d:e@f!$&'()*+",
        '/?q=a+b&c[]="<>^`{|}~',
        "/?a=/x?y=//z",
    ],
)
def test_path_and_query_stay_as_they_are(path: str) -> None:
    """4.7: nothing is normalised: the receiver may have signed or routed on the spelling."""
    assert parse(f"http://h{path}").request_target == path


def test_path_beyond_ascii_is_percent_encoded() -> None:
    """4.7: what HTTP cannot carry is sent as UTF-8 escapes."""
    assert parse("http://h/é?q=日").request_target == "/%C3%A9?q=%E6%97%A5"


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "1.2.3.4"])
def test_odd_numeric_hosts_are_well_formed(host: str) -> None:
    """7: what an odd spelling leads to is decided on the address, not here."""
    assert parse(f"http://{host}/").host == host


def test_full_width_digits_are_mapped() -> None:
    """7: compatibility characters become the host that a browser would make of them."""
    assert parse("http://１２７。０。０。１/").host == "127.0.0.1"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "http"),
        ("example.com/hook", "http"),
        ("ftp://example.com/", "http"),
        ("javascript:alert(1)", "http"),
        ("http:/example.com", "http"),
        ("http:example.com", "http"),
        ("//example.com/", "http"),
        (" http://example.com/", "character"),
        ("http://example.com/ ", "character"),
        ("http://example.com/a b", "character"),
        ("http://exam\tple.com/", "character"),
        ("http://example.com/\r\nX-Evil: 1", "character"),
        ("http://example.com/\x00", "character"),
        ("http://example.com/\x7f", "character"),
        ("http://example.com/\x85", "character"),
        ("http://example.com/\u00a0", "character"),
        ("http://example.com/\u2028", "character"),
        ("http://example.com/\ud800", "character"),
        ("http://example.com\\@evil.test/", "character"),
        ("http://example.com/a\\b", "character"),
        ("http://user@example.com/", "user name"),
        ("http://user:pass@example.com/", "user name"),
        ("http://@example.com/", "user name"),
        ("http://example.com/#", "fragment"),
        ("http://example.com/x#y", "fragment"),
        ("http://example.com#@evil.test/", "fragment"),
        ("http://", "no host"),
        ("http:///path", "no host"),
        ("http://:80/", "no host"),
        ("http://./", "no host"),
        ("http://?x", "no host"),
        ("http://exa%6dple.com/", "character that no host name has"),
        ("http://a,b/", "character that no host name has"),
        ("http://a:b:c/", "port"),
        ("http://::1/", "no host"),
        ("http://example.com:0/", "port"),
        ("http://example.com:65536/", "port"),
        ("http://example.com:-1/", "port"),
        ("http://example.com:8a/", "port"),
        ("http://example.com:８０/", "port"),
        ("http://[::1/", "brackets"),
        ("http://[::1]x/", "brackets"),
        ("http://[]/", "IPv6"),
        ("http://[1.2.3.4]/", "IPv6"),
        ("http://[v1.x]/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://[fe80::1%eth0]/", "zone"),
        ("http://\u2100.example/", "international|no host name"),
        ("http://xn--\u00e9.example/", "international"),
    ],
)
def test_refused(url: str, complaint: str) -> None:
    """4.7: everything odd is refused, and the message says what is odd."""
    with pytest.raises(ValueError, match=complaint):
        parse(url)


def test_length_limit() -> None:
    """4.7: at most 2048 characters."""
    longest = "http://h/" + "a" * (MAX_LENGTH - 9)
    assert parse(longest).request_target == longest[8:]
    with pytest.raises(ValueError, match="2048"):
        parse(longest + "a")


pieces = st.sampled_from(
    [
        *("http", "https", "://", "/", "?", "#", "@", ":", "[", "]", "::1", "\\", "%", "%0d%0a"),
        *("example", "127.0.0.1", "xn--", "\r\n", " ", "\u00ad", "é", ".", "。", "80", "99999"),
    ]
)


@given(
    st.one_of(
        st.text(),
        st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map("".join),
        st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map(
            lambda parts: "http://h/" + "".join(parts)
        ),
        st.text(min_size=1, max_size=10).map(lambda host: f"http://{host}/"),
    )
)
@example("http://h/\u2028")
@example("http://" + "9" * 2000 + "/")
@example("http://h:" + "9" * 2000 + "/")
def test_never_anything_but_a_target_or_a_value_error(url: str) -> None:
    """4.7: no URL at all can break the request line or the Host header."""
    try:
        target = parse(url)
    except ValueError:
        return
    for part in (target.request_target, target.host_header, target.destination, target.host):
        assert part
        assert part.isascii()
        assert part.isprintable()
        assert " " not in part
    assert target.request_target.startswith("/")
    assert 1 <= target.port <= 65535
    # What is stored as the destination is itself a URL of the same destination.
    assert parse(target.destination).destination == target.destination


characters = st.sampled_from("aZ9.-_~:/?#[]@!$&'()*+,;=%\"\\^`{|}<> \t\n\x7f\u00fc")


@given(st.text(characters, max_size=8), st.text(characters, max_size=12))
@example("example.com", "/hook?a=1")
@example("example.com:81", "/" + "x" * MAX_LENGTH)
@example("example.com", '/!"$[]~')
@example("example.com", "/a\\b")
@example("example.com", "/a#b")
@example("example.com", "/a b")
@example("example.com", "/a\n")
@example("example.com\n", "/")
@example("user@example.com", "/")
def test_the_short_way_and_the_long_one_agree(authority: str, rest: str) -> None:
    """4.7: a scheme in capitals makes a URL that is not plain, and means the same."""

    def judged(scheme: str) -> Target | None:
        try:
            return parse(f"{scheme}://{authority}{rest}")
        except ValueError:
            return None

    assert judged("http") == judged("HTTP")
