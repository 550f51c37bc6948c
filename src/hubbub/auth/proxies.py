"""Trusted proxies: whose connection it is, when it arrives through a reverse proxy.

Each proxy appends the address it was connected from to Forwarded (RFC 7239) or to X-Forwarded-For; what stands
left of that may be anybody's invention. So the hops are read from the right, for as long as the one who vouches
for a hop is trusted: the first address that isn't trusted is the client.

Rules:

- A peer that isn't trusted is the client itself, and its header fields are ignored: anybody can write them.
- Behind a trusted peer the result is never a trusted address, since limits on it would hit everybody behind that
  proxy. Where no other is named (no header, only trusted hops, `unknown`, a malformed hop), it is None: unknown.
- With both headers, each must name the same client, else it is unknown. A proxy commonly sets one of the two and
  passes the other on as the client wrote it, so preferring either would let clients choose their address behind
  some proxies. Agreement can't be forged; it can be spoiled. Who must not allow that (None has no limit of its
  own) passes only the header that the proxy is known to set.
- Nothing on the left of a hop changes how that hop is read: a comma ends a hop and a semicolon a parameter, even
  within quotes. In a quoted string both are legal, but no address and no host has them; a hop cut so is malformed.
"""

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HOPS_MAX: Final = 32
"""More trusted proxies than this, one behind the other, are a loop."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_PAIR = re.compile(r"""(?P<name>[^\s;,="]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;,"]+))""")
# RFC 7239 section 6, and what is seen in X-Forwarded-For: IPv6 without brackets, and so without a port. Zones
# ("%eth0") mean something on the proxy's machine only.
_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE = re.compile(rf"([0-9.]+){_PORT}|\[([0-9A-Fa-f:.]+)\]{_PORT}|([0-9A-Fa-f:.]+)")


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that `texts` name; an address is a network of one.

    Raises:
        ValueError: one of them is neither; the sentence names it and says what is allowed.
    """
    return tuple(_parse_network(text) for text in texts)


def client_address(
    peer: str, forwarded: Sequence[str], x_forwarded_for: Sequence[str], trusted: Sequence[Network]
) -> str | None:
    """Return the client's address in its one spelling; None if a trusted proxy doesn't tell it.

    Args:
        peer: the address that the connection comes from; one that isn't an IP address is returned as it is.
        forwarded: the values of the Forwarded fields, in their order; empty if there is none.
        x_forwarded_for: likewise.
        trusted: as `parse_networks` gave them.
    """
    address = _parse_address(peer)
    if address is None:
        return peer
    if not _is_in(address, trusted):
        return str(address)
    headers = ((forwarded, _forwarded_for), (x_forwarded_for, str))
    named = {_first_untrusted(values, node_of, trusted) for values, node_of in headers if values}
    return named.pop() if len(named) == 1 else None


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Return whether `peer` is one of the trusted proxies; False if it isn't an IP address."""
    address = _parse_address(peer)
    return address is not None and _is_in(address, trusted)


def is_loopback(address: str) -> bool:
    """Return whether `address` is of this machine; False if it isn't an IP address.

    Meant for peers: a loopback address that a proxy names is of the proxy's machine.
    """
    parsed = _parse_address(address)
    return parsed is not None and parsed.is_loopback


def _first_untrusted(
    values: Sequence[str], node_of: Callable[[str], str | None], trusted: Sequence[Network]
) -> str | None:
    """Several fields of one name are one list (RFC 9110 section 5.3)."""
    hops = ",".join(values).rsplit(",", HOPS_MAX)
    for hop in islice(reversed(hops), HOPS_MAX):
        # An empty hop is malformed, not skipped: it may be a proxy that had nothing to append.
        node = _NODE.fullmatch(node_of(hop.strip(" \t")) or "")
        address = _parse_address(node[1] or node[2] or node[3]) if node else None
        if address is None:
            return None
        if not _is_in(address, trusted):
            return str(address)
    return None


def _forwarded_for(element: str) -> str | None:
    """Return the one `for` of a forwarded-element (RFC 7239 section 4); None without, or if it is malformed.

    All of it must be well-formed, or the end of somebody's quoted string could pass for an element. Escapes in
    quoted strings are left in: an address needs none.
    """
    nodes = []
    for text in element.split(";"):
        pair = _PAIR.fullmatch(text.strip(" \t"))
        if pair is None:
            return None
        if pair["name"].lower() == "for":
            nodes.append(pair["token"] or pair["quoted"])
    return nodes[0] if len(nodes) == 1 else None


def _parse_network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        network = None
    if network is None or "%" in text:
        raise ValueError(
            f"{text!r} is no address (10.0.0.1, 2001:db8::1) and no network "
            "with all bits after its prefix zero (10.0.0.0/8, 2001:db8::/32)"
        )
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # Addresses are compared as IPv4, so a mapped network would never match.
        mapped = network.network_address.ipv4_mapped
        return IPv4Network(f"{mapped}/{network.prefixlen - _MAPPED.prefixlen}")
    return network


def _parse_address(text: str) -> Address | None:
    """IPv4 is IPv4, also where a socket for both families or a proxy wrote it as IPv6 (RFC 4291 section 2.5.5.2)."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
