"""The PROXY protocol, version 2: who connected to the proxy, told in front of the connection's own bytes.

After haproxy's proxy-protocol.txt, section 2.2:

    bytes 0–11    the signature
    byte 12       version (4 bits, always 2), command (4 bits; 0: LOCAL, 1: PROXY)
    byte 13       address family (4 bits), transport (4 bits)
    bytes 14–15   how many bytes follow, big-endian
                  then source address, destination address, their ports, and extensions (TLVs)

LOCAL is the proxy's own connection, such as a health check: whatever else it says is skipped. Of the others we
take an address from TCP over IPv4 or IPv6; the valid rest falls back to "unspecified", as section 2.2 allows.
Extensions are skipped, the checksum among them.

A header says what its sender likes: it may only be read from trusted peers, and must then be there (section 2).
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"

HEADER_BYTES_MAX: Final = 536
"""The header is designed to fit in the smallest TCP segment that every host must take (section 2)."""

_V1: Final = b"PROXY "
FIXED_BYTES: Final = 16
_LOCAL: Final = 0
_PROXY: Final = 1
_FAMILY_MAX: Final = 3
_TRANSPORT_MAX: Final = 2
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_ADDRESS_BYTES: Final = {_TCP4: 12, 0x12: 12, _TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}
"""By family and transport (UDP and UNIX too); where one of the two is unspecified, there needn't be any."""


class ProxyProtocolError(ValueError):
    """What a peer sent isn't a PROXY protocol header of version 2, or none that we take; the sentence says why."""


def read_header(data: bytes) -> tuple[str | None, int] | None:
    """Return (source address, length) of the header that `data` begins with; None if it isn't complete.

    The address is None where the header tells none: LOCAL, an unspecified family or transport, UDP, UNIX.
    IPv4 written as IPv6 comes as IPv4.

    Raises:
        ProxyProtocolError: `data` can't be, or become, such a header. The first byte that is wrong is enough.
    """
    _check_fixed(data)
    if len(data) < FIXED_BYTES:
        return None
    length = FIXED_BYTES + int.from_bytes(data[14:16], "big")
    if len(data) < length:
        return None
    return _source(data), length


def _check_fixed(data: bytes) -> None:
    """Judge as much of the fixed part as there is."""
    if not data.startswith(SIGNATURE[: len(data)]):
        if data.startswith(_V1):
            raise ProxyProtocolError("this is version 1 of the PROXY protocol; only version 2 is spoken here")
        raise ProxyProtocolError("this doesn't begin like a header of version 2 of the PROXY protocol")
    if len(data) < 13:
        return
    version, command = divmod(data[12], 16)
    if version != 2:
        raise ProxyProtocolError(f"this is version {version} of the PROXY protocol; only version 2 is spoken here")
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"command {command} of the PROXY protocol is unknown")
    if len(data) < 14:
        return
    # LOCAL must be accepted, its family ignored.
    kind = data[13] if command == _PROXY else 0
    family, transport = divmod(kind, 16)
    if family > _FAMILY_MAX or transport > _TRANSPORT_MAX:
        raise ProxyProtocolError(f"address family {family} with transport {transport} is unknown")
    # With one byte of the length still to come, this is the least that it can be.
    length = int.from_bytes(data[14:16].ljust(2, b"\0"), "big")
    if FIXED_BYTES + length > HEADER_BYTES_MAX:
        raise ProxyProtocolError(f"the header is longer than {HEADER_BYTES_MAX} bytes")
    needed = _ADDRESS_BYTES.get(kind, 0)
    if len(data) >= FIXED_BYTES and length < needed:
        raise ProxyProtocolError(f"the header has {length} bytes for addresses that take {needed}")


def _source(data: bytes) -> str | None:
    if data[12] % 16 == _LOCAL:
        return None
    if data[13] == _TCP4:
        return str(IPv4Address(data[16:20]))
    if data[13] == _TCP6:
        address = IPv6Address(data[16:32])
        return str(address.ipv4_mapped or address)
    return None
