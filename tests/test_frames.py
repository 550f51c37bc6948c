"""Frames as bytes, against the naive way and against wsproto."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from wsproto.frame_protocol import FrameProtocol

from hubbub.core.frames import (
    BINARY,
    CLOSE,
    PING,
    REASON_BYTES_MAX,
    TEXT,
    MalformedFrameError,
    encode_close,
    encode_frame,
    frame_end,
    measure_client_frame,
    read_run,
    unmask,
)
from peers import client_frame

SIZES = st.sampled_from([0, 1, 3, 4, 5, 125, 126, 127, 4095, 4096, 4097, 65535, 65536, 70_001])
PAYLOADS = st.one_of(st.binary(max_size=300), SIZES.map(lambda size: (b"hubbub!" * (size // 7 + 1))[:size]))
MASKS = st.binary(min_size=4, max_size=4)


@given(opcode=st.sampled_from([TEXT, BINARY]), payload=PAYLOADS)
def test_wsproto_reads_what_we_encode(opcode: int, payload: bytes) -> None:
    """One frame, whole, of the same kind and payload."""
    client = FrameProtocol(client=True, extensions=[])
    if opcode == TEXT:
        payload = payload.decode("latin-1").encode()
    client.receive_bytes(encode_frame(opcode, payload))
    frames = list(client.received_frames())
    parts = [frame.payload.encode() if isinstance(frame.payload, str) else frame.payload for frame in frames]
    joined = b"".join(part for part in parts if isinstance(part, bytes | bytearray))
    assert joined == payload
    assert [frame.opcode for frame in frames] == [opcode] * len(frames)
    assert frames[-1].message_finished


@given(payload=PAYLOADS, mask=MASKS, before=st.binary(max_size=9), after=st.binary(max_size=9))
@example(payload=b"x" * 4096, mask=b"\x00\xff\x00\xff", before=b"", after=b"")
def test_a_client_frame_is_measured_and_unmasked(payload: bytes, mask: bytes, before: bytes, after: bytes) -> None:
    """Wherever it stands, and whatever its mask."""
    frame = client_frame(BINARY, payload, mask=mask)
    data = before + frame + after
    span = measure_client_frame(data, len(before))
    assert span is not None
    start, stop = span
    assert stop == len(before) + len(frame)
    assert unmask(data, start, stop) == payload


@given(payload=PAYLOADS, data=st.data())
def test_a_cut_frame_is_incomplete(payload: bytes, data: st.DataObject) -> None:
    """Within the header: None; within the payload: a stop beyond the end."""
    frame = client_frame(BINARY, payload)
    cut = data.draw(st.integers(0, len(frame) - 1))
    span = measure_client_frame(frame[:cut], 0)
    assert span is None or span[1] > cut


@given(
    frames=st.lists(
        st.tuples(st.sampled_from([TEXT, TEXT, TEXT, BINARY, CLOSE]), PAYLOADS, MASKS), min_size=1, max_size=8
    ),
    most=st.integers(1, 9),
    bytes_max=st.sampled_from([0, 5, 125, 126, 1000, 65_535]),
    cut=st.integers(0, 200),
    damage=st.none() | st.tuples(st.integers(0, 500), st.integers(0, 255)),
)
@example(frames=[(TEXT, b"hi", b"mask"), (TEXT, b"x" * 65_536, b"mask")], most=9, bytes_max=1000, cut=0, damage=None)
@example(frames=[(TEXT, b"x" * 65_536, b"mask")], most=9, bytes_max=1000, cut=0, damage=None)
def test_a_run_is_its_frames_one_by_one(
    frames: list[tuple[int, bytes, bytes]], most: int, bytes_max: int, cut: int, damage: tuple[int, int] | None
) -> None:
    """All of the first one's kind, whole, and short enough, up to the first that isn't, whatever that is."""
    data = bytearray(b"".join(client_frame(opcode, payload, mask=mask) for opcode, payload, mask in frames))
    del data[len(data) - min(cut, len(data) - 1) :]
    if damage is not None and damage[0] < len(data):
        data[damage[0]] = damage[1]
    at, payloads, stops = 0, list[bytes](), list[int]()
    while len(payloads) < most and at < len(data) and data[at] == data[0]:
        try:
            span = measure_client_frame(bytes(data), at)
        except MalformedFrameError:
            break
        if span is None or span[1] > len(data) or span[1] - span[0] > bytes_max:
            break
        payloads.append(unmask(bytes(data), *span))
        stops.append(at := span[1])
    assert read_run(bytes(data), 0, most, bytes_max) == (payloads, stops)


@pytest.mark.parametrize(
    "header",
    [
        b"\x81\x05hello!",
        b"\x81\xfe\x00\x7dmask",
        b"\x81\xff\x00\x00\x00\x00\x00\x00\xff\xffmask",
        b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00mask",
    ],
    ids=["not masked", "16 bits for 125", "64 bits for 65535", "negative"],
)
def test_what_no_client_sends_is_malformed(header: bytes) -> None:
    """RFC 6455 section 5.2: masked, minimal, not negative."""
    with pytest.raises(MalformedFrameError):
        measure_client_frame(header, 0)


@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=5), data=st.data())
def test_frame_end(payloads: list[bytes], data: st.DataObject) -> None:
    """At a boundary: there; within a frame: the end of that one."""
    frames = [encode_frame(BINARY, payload) for payload in payloads]
    ends = [sum(map(len, frames[:count])) for count in range(len(frames) + 1)]
    sent = data.draw(st.one_of(st.sampled_from(ends), st.integers(0, ends[-1])))
    assert frame_end(b"".join(frames), sent) == min(end for end in ends if end >= sent)


@given(reason=st.text(max_size=200), code=st.integers(1000, 4999))
def test_a_close_fits_a_control_frame(reason: str, code: int) -> None:
    """Code and as much of the reason as fits, cut between characters."""
    frame = encode_close(code, reason)
    assert frame[0] == 0x80 | CLOSE
    assert frame[1] == len(frame) - 2 <= REASON_BYTES_MAX + 2
    assert int.from_bytes(frame[2:4], "big") == code
    assert reason.startswith(frame[4:].decode())


def test_a_ping_as_in_the_rfc() -> None:
    """The example of RFC 6455 section 5.7."""
    assert encode_frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
