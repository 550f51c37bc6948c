"""PROXY protocol headers: whole ones, each beginning of them, and anything else."""

import ipaddress
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hubbub.core.proxy_protocol import HEADER_BYTES_MAX, SIGNATURE, ProxyProtocolError, read_header

LOCAL, PROXY = 0x20, 0x21
TCP4 = bytes([192, 0, 2, 1, 10, 0, 0, 1]) + struct.pack("!HH", 56324, 443)
TCP6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("::1").packed + struct.pack("!HH", 56324, 443)
MAPPED = ipaddress.ip_address("::ffff:192.0.2.1").packed * 2 + bytes(4)
UNIX = b"/run/a".ljust(108, b"\0") * 2
TLV = b"\x04\x00\x03pad"


def header(command: int, kind: int, body: bytes = b"") -> bytes:
    """Return a header as a proxy sends it."""
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


HEADERS = [
    (header(PROXY, 0x11, TCP4), "192.0.2.1"),
    (header(PROXY, 0x11, TCP4 + TLV), "192.0.2.1"),
    (header(PROXY, 0x21, TCP6), "2001:db8::1"),
    (header(PROXY, 0x21, TCP6 + TLV), "2001:db8::1"),
    (header(PROXY, 0x21, MAPPED), "192.0.2.1"),
    (header(PROXY, 0x11, TCP4.ljust(HEADER_BYTES_MAX - 16)), "192.0.2.1"),
    (header(PROXY, 0x12, TCP4), None),
    (header(PROXY, 0x22, TCP6), None),
    (header(PROXY, 0x31, UNIX), None),
    (header(PROXY, 0x32, UNIX + TLV), None),
    (header(PROXY, 0x00), None),
    (header(PROXY, 0x00, b"whatever"), None),
    (header(PROXY, 0x01), None),
    (header(PROXY, 0x10, TCP4), None),
    (header(LOCAL, 0x00), None),
    (header(LOCAL, 0x00, TLV), None),
    (header(LOCAL, 0x11), None),
    (header(LOCAL, 0x11, TCP4), None),
    (header(LOCAL, 0xFF, b"ignored"), None),
]


@pytest.mark.parametrize(("data", "source"), HEADERS)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n", SIGNATURE])
def test_headers(data: bytes, source: str | None, rest: bytes) -> None:
    """The source, and where the connection's own bytes begin; not one byte earlier."""
    assert read_header(data + rest) == (source, len(data))
    for end in range(len(data)):
        assert read_header(data[:end]) is None


WRONG = [
    # what is sent, how much of it is enough to see that it's wrong, a word of the sentence
    (b"GET / HTTP/1.1\r\n", 1, "begin"),
    (b"\x16\x03\x01\x02\x00", 1, "begin"),
    (b"\r\n\r\nGET /", 5, "begin"),
    (SIGNATURE[:-1] + b"\r", 12, "begin"),
    (SIGNATURE + b"\x11", 13, "version 1 "),
    (SIGNATURE + b"\x31", 13, "version 3 "),
    (SIGNATURE + b"\x22", 13, "command 2 "),
    (SIGNATURE + b"\x2f", 13, "command 15 "),
    (SIGNATURE + b"\x21\x41", 14, "family 4 "),
    (SIGNATURE + b"\x21\x13", 14, "transport 3 "),
    (SIGNATURE + b"\x21\x11\x03\x00", 15, "longer"),
    (SIGNATURE + b"\x20\x00\xff\xff", 15, "longer"),
    (header(PROXY, 0x11, bytes(HEADER_BYTES_MAX - 15)), 16, "longer"),
    (header(LOCAL, 0x00, bytes(HEADER_BYTES_MAX - 15)), 16, "longer"),
    (header(PROXY, 0x11, TCP4[:-1]), 16, "11 bytes for addresses that take 12"),
    (header(PROXY, 0x12), 16, "take 12"),
    (header(PROXY, 0x21, TCP6[:-1]), 16, "take 36"),
    (header(PROXY, 0x21, TCP4), 16, "take 36"),
    (header(PROXY, 0x31, UNIX[:-1]), 16, "take 216"),
]


@pytest.mark.parametrize(("data", "enough", "word"), WRONG)
def test_the_first_wrong_byte_is_enough(data: bytes, enough: int, word: str) -> None:
    """Everything before it could still become a header."""
    for end in range(len(data) + 1):
        if end < enough:
            assert read_header(data[:end]) is None
        else:
            with pytest.raises(ProxyProtocolError, match=word):
                read_header(data[:end])


@pytest.mark.parametrize("data", [b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", b"PROXY UNKNOWN\r\n", b"PROXY "])
def test_version_1_is_told_so(data: bytes) -> None:
    """Where enough of it comes at once; and the first byte is refused like any other."""
    with pytest.raises(ProxyProtocolError, match="version 1 of the PROXY protocol; only version 2"):
        read_header(data)
    with pytest.raises(ProxyProtocolError, match="version 2"):
        read_header(data[:1])


@given(
    source=st.ip_addresses(), destination=st.ip_addresses(), ports=st.binary(min_size=4, max_size=4), more=st.binary()
)
def test_any_address(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address,
    ports: bytes,
    more: bytes,
) -> None:
    """The source is the source, whatever follows it."""
    size = len(source.packed)
    body = source.packed + destination.packed[:size].ljust(size, b"\0") + ports
    found = read_header(header(PROXY, 0x11 if size == 4 else 0x21, body) + more)
    mapped = source.ipv4_mapped if isinstance(source, ipaddress.IPv6Address) else None
    assert found == (str(mapped or source), 16 + len(body))


@given(
    fixed=st.one_of(st.just(b""), st.just(SIGNATURE), st.just(SIGNATURE + b"\x21"), st.just(SIGNATURE + b"\x21\x11\0")),
    data=st.binary(max_size=600),
)
def test_any_bytes(fixed: bytes, data: bytes) -> None:
    """A header, the beginning of one, or refused; and what was refused stays so, whatever comes after it."""
    refused = found = None
    for end in range(len(fixed + data) + 1):
        try:
            now = read_header((fixed + data)[:end])
        except ProxyProtocolError as error:
            assert found is None
            refused = error
            continue
        assert refused is None
        assert found in (None, now)
        found = now
        if found:
            assert 16 <= found[1] <= min(end, HEADER_BYTES_MAX)
        else:
            assert end < HEADER_BYTES_MAX
