"""egress.py: contract 7, address by address."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.config import Egress
from primeflowd.egress import EgressGuard

STRICT = EgressGuard(Egress())

# Edges of every block of the IANA special-purpose registries that is not to be reached.
REFUSED_V4 = [
    ("0.0.0.0", "unspecified"),
    ("0.0.0.1", "this network"),
    ("0.255.255.255", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "carrier-grade"),
    ("100.127.255.255", "carrier-grade"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("169.254.0.0", "link-local"),
    ("169.254.169.254", "link-local"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.1", "protocol assignments"),
    ("192.0.0.170", "protocol assignments"),
    ("192.0.2.1", "documentation"),
    ("192.88.99.1", "6to4 relay"),
    ("192.168.0.0", "private"),
    ("192.168.255.255", "private"),
    ("198.18.0.0", "benchmarks"),
    ("198.19.255.255", "benchmarks"),
    ("198.51.100.7", "documentation"),
    ("203.0.113.7", "documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.0", "reserved"),
    ("255.255.255.254", "reserved"),
    ("255.255.255.255", "broadcast"),
]
REFUSED_V6 = [
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::8.8.8.8", "IPv4-compatible"),
    ("::127.0.0.1", "IPv4-compatible"),
    ("::ffff:0:8.8.8.8", "IPv4-translated"),
    ("64:ff9b:1::8.8.8.8", "local NAT64"),
    ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "local NAT64"),
    ("100::1", "discard"),
    ("100:0:0:1::1", "reserved"),
    ("1::1", "reserved"),
    ("2001::1", "Teredo"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
    ("2001:2::1", "benchmarks"),
    ("2001:10::1", "ORCHID"),
    ("2001:20::1", "ORCHID"),
    ("2001:1ff:ffff::1", "protocol assignments"),
    ("2001:db8::1", "documentation"),
    ("2002:808:808::1", "6to4"),
    ("2002:7f00:1::", "6to4"),
    ("3fff::1", "documentation"),
    ("3fff:fff::1", "documentation"),
    ("4000::1", "reserved"),
    ("5f00::1", "segment routing"),
    ("fc00::1", "unique local"),
    ("fd12:3456::1", "unique local"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("fe80::1%eth0", "link-local|scope"),
    ("2600::1%2", "scope"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("ff0e::1", "multicast"),
    ("ffff::1", "multicast"),
]
GLOBAL = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2600::1",
    "2a00:1450:4001::1",
    "3ffe::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize(("address", "kind"), REFUSED_V4 + REFUSED_V6)
def test_special_addresses_are_refused(address: str, kind: str) -> None:
    """7: default deny, and the message names what the address is and the table to change."""
    refusal = STRICT.refusal_of_address(address)
    assert refusal is not None
    assert address in refusal
    assert "[delivery.egress]" in refusal
    assert any(word in refusal for word in kind.split("|"))


@pytest.mark.parametrize("address", GLOBAL)
def test_global_unicast_is_allowed(address: str) -> None:
    """7: what is public may be called, right up to the edges of the blocks."""
    assert STRICT.refusal_of_address(address) is None


@pytest.mark.parametrize("address", [address for address, _ in REFUSED_V4])
@pytest.mark.parametrize("form", ["::ffff:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}", "{6to4}"])
def test_no_disguise_helps(address: str, form: str) -> None:
    """7: mapped, compatible, NAT64 and 6to4 forms of a refused address are refused."""
    packed = int(ipaddress.IPv4Address(address))
    sixtofour = str(ipaddress.IPv6Address((0x2002 << 112) | (packed << 80) | 1))
    disguised = sixtofour if form == "{6to4}" else form.format(address)
    assert STRICT.refusal_of_address(disguised) is not None


@pytest.mark.parametrize(
    "text", ["", "localhost", "example.com", "0x7f.1", "2130706433", "127.1", "1.2.3", "1.2.3.4/8"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """7: names and odd spellings never come this far; if they do, they go nowhere."""
    assert STRICT.refusal_of_address(text) is not None


@given(st.ip_addresses())
def test_never_more_than_python_allows(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """7: both our table and the library's must agree that an address is public."""
    if STRICT.refusal_of_address(str(address)) is None:
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        assert (mapped or address).is_global
        assert not (mapped or address).is_multicast


@given(st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_deny_all_denies_all(address: ipaddress.IPv4Address) -> None:
    """7: deny wins over allow."""
    guard = EgressGuard(Egress(allow=("0.0.0.0/0",), deny=("10.0.0.0/8",)))
    for form in ("{}", "::ffff:{}", "::{}", "64:ff9b::{}"):
        assert guard.refusal_of_address(form.format(address)) is not None


def test_allow_lets_through() -> None:
    """7: an allowed block is reached, its neighbours are not."""
    guard = EgressGuard(Egress(allow=("127.0.0.0/8", "fd00:1::/32")))
    assert guard.refusal_of_address("127.0.0.1") is None
    assert guard.refusal_of_address("127.9.9.9") is None
    assert guard.refusal_of_address("fd00:1::5") is None
    assert guard.refusal_of_address("fd00:2::5") is not None
    assert guard.refusal_of_address("::1") is not None
    assert guard.refusal_of_address("10.0.0.1") is not None


def test_allow_covers_mapped_forms() -> None:
    """7: the kernel speaks IPv4 to `::ffff:127.0.0.1`, so the IPv4 block decides."""
    guard = EgressGuard(Egress(allow=("127.0.0.0/8",)))
    assert guard.refusal_of_address("::ffff:127.0.0.1") is None
    assert guard.refusal_of_address("64:ff9b::7f00:1") is None
    # A block of mapped addresses means the IPv4 block.
    guard = EgressGuard(Egress(allow=("::ffff:10.0.0.0/104",)))
    assert guard.refusal_of_address("10.1.2.3") is None
    assert guard.refusal_of_address("11.1.2.3") is None
    assert guard.refusal_of_address("192.168.0.1") is not None


def test_allowing_all_ipv6_allows_no_mapped_ipv4() -> None:
    """7: `::/0` means IPv6, not IPv4 in IPv6 spelling."""
    guard = EgressGuard(Egress(allow=("::/0",)))
    assert guard.refusal_of_address("::1") is None
    assert guard.refusal_of_address("fe80::1%eth0") is None
    assert guard.refusal_of_address("::ffff:10.0.0.1") is not None


def test_deny_wins() -> None:
    """7: a denied address stays denied, public or allowed, in all its forms."""
    guard = EgressGuard(Egress(allow=("10.0.0.0/8",), deny=("10.1.0.0/16", "8.8.8.0/24")))
    assert guard.refusal_of_address("10.2.0.1") is None
    for address in ("10.1.0.1", "::ffff:10.1.0.1", "8.8.8.8", "64:ff9b::8.8.8.8"):
        refusal = guard.refusal_of_address(address)
        assert refusal is not None
        assert "denies" in refusal
    assert EgressGuard(Egress(deny=("::/0",))).refusal_of_address("::ffff:8.8.8.8") is not None


def test_url_rules() -> None:
    """7: require_https and allowed_ports."""
    assert STRICT.refusal_of_url("http", 80) is None
    assert STRICT.refusal_of_url("https", 8443) is None
    guard = EgressGuard(Egress(require_https=True, allowed_ports=(443, 8443)))
    assert guard.refusal_of_url("https", 443) is None
    assert guard.refusal_of_url("https", 8443) is None
    assert "https" in (guard.refusal_of_url("http", 443) or "")
    assert "port 25" in (guard.refusal_of_url("https", 25) or "")
