"""How many connections each client address has: no one address may take all of them.

Rules:
1. What counts is the client's address: the peer's, or, behind a trusted proxy, the one that the proxy names
   with the request at hand; between requests a proxy's connection is nobody's.
2. Loopback addresses don't count, nor does a trusted proxy that names nobody: limits on these would hit everyone.
3. Of IPv6 the first 64 bits count: that much one household gets.
"""

from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network

IPV6_PREFIX_BITS = 64


class Addresses:
    """Connections by client address."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def enter(self, address: str) -> tuple[str, int]:
        """Count one more; return the key to leave with, and how many there are now."""
        key = _key(address)
        self._counts[key] += 1
        return key, self._counts[key]

    def leave(self, key: str) -> None:
        """Count one less."""
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]


def _key(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, IPV6_PREFIX_BITS), strict=False))
    return address
