"""Which addresses callbacks may be sent to (contract 7).

Pure. Everything but global unicast is refused unless `[delivery.egress] allow` lets it through;
`deny` wins over `allow`. An address that carries an IPv4 address inside is judged by that one too,
so that no spelling of a private address gets by.

What counts as global is our own table, after the IANA special-purpose registries and RFC 6890,
and `ipaddress.is_global` on top of it: that property alone changed its answers within the patch
releases of several Python versions.
"""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from primeflowd import config

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

# The first block that holds an address names it, so narrow blocks stand before wide ones.
_SPECIAL_V4: Final = tuple(
    (IPv4Network(block), kind)
    for block, kind in (
        ("127.0.0.0/8", "a loopback address"),
        ("10.0.0.0/8", "a private address"),
        ("172.16.0.0/12", "a private address"),
        ("192.168.0.0/16", "a private address"),
        ("169.254.0.0/16", "a link-local address"),  # cloud metadata services live here
        ("100.64.0.0/10", "a carrier-grade NAT address"),
        ("0.0.0.0/32", "the unspecified address"),
        ("0.0.0.0/8", "an address of this network"),
        ("192.0.0.0/24", "an address for protocol assignments"),
        ("192.0.2.0/24", "an address for documentation"),
        ("198.51.100.0/24", "an address for documentation"),
        ("203.0.113.0/24", "an address for documentation"),
        ("192.88.99.0/24", "a 6to4 relay address"),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)
_SPECIAL_V6: Final = tuple(
    (IPv6Network(block), kind)
    for block, kind in (
        ("::/128", "the unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0:0/96", "an IPv4-translated address"),
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("100::/64", "a discard-only address"),
        ("2001::/32", "a Teredo address"),
        ("2001:2::/48", "an address for benchmarks"),
        ("2001:10::/28", "an ORCHID, which is no address to connect to"),
        ("2001:20::/28", "an ORCHID, which is no address to connect to"),
        ("2001:db8::/32", "an address for documentation"),
        ("2001::/23", "an address for protocol assignments"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "an address for documentation"),
        ("5f00::/16", "a segment routing address"),
        ("fc00::/7", "a unique local address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
# Blocks whose last 32 bits are an IPv4 address.
_V4_AT_END: Final = tuple(
    IPv6Network(block) for block in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_RULE: Final = "which [delivery.egress] does not allow"


class EgressGuard:
    """The rules of one `[delivery.egress]` table. Answers are None, or prose saying why not."""

    def __init__(self, egress: config.Egress) -> None:
        """The CIDR blocks have been checked by config/; a bad one raises ValueError."""
        self._allow = _networks(egress.allow)
        self._deny = _networks(egress.deny)
        self._require_https = egress.require_https
        self._ports = frozenset(egress.allowed_ports)

    def refusal_of_url(self, scheme: str, port: int) -> str | None:
        """Why no URL with this scheme and port may be called, or None."""
        if self._require_https and scheme != "https":
            return "the URL is not https, which [delivery.egress] requires"
        if self._ports and port not in self._ports:
            return f"port {port} is not among the allowed_ports of [delivery.egress]"
        return None

    def refusal_of_address(self, ip: str) -> str | None:
        """Why this address may not be connected to, or None. What is no address is refused."""
        try:
            written = ipaddress.ip_address(ip)
        except ValueError:
            return f"{ip} is not an IP address"
        address = _unmapped(written)
        carried = _carried(address)
        if any(_within(form, self._deny) for form in (written, address, *carried)):
            return f"{ip} is in a block that [delivery.egress] denies"
        if _within(address, self._allow):
            return None
        if kind := _special(address):
            return f"{ip} is {kind}, {_RULE}"
        for inner in carried:
            if (kind := _special(inner)) and not _within(inner, self._allow):
                return f"{ip} carries {inner}, {kind}, {_RULE}"
        return None


def _networks(blocks: Iterable[str]) -> tuple[_Network, ...]:
    """The blocks, each one of IPv4-mapped addresses as the IPv4 block that it means."""
    networks: list[_Network] = []
    for block in blocks:
        network = ipaddress.ip_network(block)
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            first = int(network.network_address) & 0xFFFF_FFFF
            network = IPv4Network((first, network.prefixlen - 96))
        networks.append(network)
    return tuple(networks)


def _within(address: _Address, networks: Iterable[_Network]) -> bool:
    return any(address in network for network in networks)


def _unmapped(address: _Address) -> _Address:
    """The IPv4 address that an IPv4-mapped one is: the kernel speaks IPv4 to it."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _carried(address: _Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a transition mechanism would take out of an IPv6 one."""
    if isinstance(address, IPv4Address):
        return ()
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if _within(address, _V4_AT_END):
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    return ()


def _special(address: _Address) -> str | None:
    """What `address` is, if it is anything but global unicast."""
    if isinstance(address, IPv4Address):
        kind = next((kind for block, kind in _SPECIAL_V4 if address in block), None)
    else:
        if address.scope_id:
            return "an address with a scope"
        kind = next((kind for block, kind in _SPECIAL_V6 if address in block), None)
        if kind is None and address in _NAT64:
            # Public by registration; the address it carries decides.
            return None
        if kind is None and address not in _GLOBAL_UNICAST:
            kind = "a reserved address"
    if kind is None and not address.is_global:
        kind = "not a global address"
    return kind
