"""Any bytes, cut anywhere, at any stage of a connection: it ends, nothing is left of it, and nobody else notices.

Each example is a world of its own on the simulation's pipe and a virtual clock: one bystander in the room, and one
client that sends what Hypothesis has thought of, and then half-closes.
"""

import contextlib
import enum
from collections.abc import Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import example, given, settings
from structlog.testing import capture_logs
from trio.testing import MockClock

from bounded_pipes import PipeStream
from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT
from hubbub.model.end import End
from peers import ByteStream, Closed, client_frame, close_payload, handshake
from servers import leftovers
from worlds import World, open_world

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

LIMITS: dict[str, object] = {
    "message_bytes_max": 1000,
    "message_fragments_max": 8,
    "head_bytes_max": 1000,
    "body_bytes_max": 500,
    "linger_bytes_max": 2000,
}
"""Low enough that a few hundred bytes get over them."""
SECONDS_MAX = 6.0
"""All deadlines of an end one after the other: two of `close_seconds_max`, one of `linger_seconds_max`, and some."""
MARKER = "the bystander is well"
LEGAL_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})
"""What may stand in a Close frame (RFC 6455 section 7.4)."""


class Stage(enum.Enum):
    """How far the connection is when the bytes come."""

    NOTHING_SAID = enum.auto()
    IN_THE_HEAD = enum.auto()
    BEHIND_THE_HEAD = enum.auto()  # not waiting for the 101
    OPEN = enum.auto()
    AFTER_OUR_CLOSE = enum.auto()
    AFTER_THEIR_CLOSE = enum.auto()


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        received: everything that the client got.
        heard: the messages that the bystander got, but for its own.
        seconds: how long it took, from the client's half-close, until the client saw the end.
    """

    received: bytes
    heard: list[str | bytes]
    seconds: float


async def converse(world: World, stage: Stage, data: bytes, cuts: Sequence[int]) -> Outcome:
    """Send `data` in pieces at that stage, then half-close; see that the node and the bystander are well."""
    bystander = await world.open_peer()
    base_line = leftovers(world.node)
    heard: list[str | bytes] = []
    received = bytearray()

    async def listen() -> None:
        while not heard or heard[-1] != MARKER:
            heard.append(await bystander.receive())

    async def read(stream: ByteStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while some := await stream.receive_some():
                received.extend(some)

    async def send(stream: ByteStream, pieces: Sequence[bytes]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for piece in pieces:
                await stream.send_all(piece)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()

    with trio.fail_after(3 * SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            stream = await world.dial()
            assert isinstance(stream, PipeStream)
            async with trio.open_nursery() as client:
                client.start_soon(read, stream)
                data = await open_up(world, stage, stream, received) + data
                await send(stream, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)])
                stream.end()
                ended = trio.current_time()
            seconds = trio.current_time() - ended
            while leftovers(world.node) != base_line:
                await trio.sleep(0.01)
            await bystander.send(MARKER)
        with contextlib.suppress(Closed):
            await bystander.close()
        while leftovers(world.node):
            await trio.sleep(0.01)
    return Outcome(bytes(received), heard[:-1], seconds)


async def open_up(world: World, stage: Stage, stream: PipeStream, received: bytearray) -> bytes:
    """Bring the connection to that stage; return what is to be sent before the bytes in question."""
    if stage is Stage.NOTHING_SAID:
        return b""
    if stage is Stage.IN_THE_HEAD:
        return handshake()[:-2]
    if stage is Stage.BEHIND_THE_HEAD:
        return handshake()
    others = set(world.node.connections)
    await stream.send_all(handshake())
    while b"\r\n\r\n" not in received:
        await trio.sleep(0.01)
    if stage is Stage.AFTER_OUR_CLOSE:
        (connection,) = set(world.node.connections) - others
        connection.end(End.SHUTDOWN)
        while len(received) == received.index(b"\r\n\r\n") + 4:
            await trio.sleep(0.01)
    return client_frame(CLOSE, close_payload(1000, "bye")) if stage is Stage.AFTER_THEIR_CLOSE else b""


def run(stage: Stage, data: bytes, cuts: Sequence[int]) -> Outcome:
    """One example: its own node, nothing logged that is worse than a warning, and no end that is our own fault."""

    async def main() -> Outcome:
        async with open_world("pipe", **LIMITS) as world:
            outcome = await converse(world, stage, data, cuts)
            assert world.node.hub.statistics().rooms_failed == 0
            assert b"hubbub_internal_errors_total 0.0" in world.node.metrics.text()
            return outcome

    with capture_logs() as logs:
        outcome = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    return outcome


def check_answers(received: bytes, sent: bytes = b"") -> tuple[list[bytes], int | None]:
    """See that it is HTTP, and after a 101 WebSocket; return the messages, and the code of the Close, if there is one.

    A Close without a code counts as 1005. Who half-closes without one may be left in the middle of a frame, or of the
    101, but not of any other answer.
    """
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        if not separator and b"HTTP/1.1 101"[: len(head)] == head[:12]:
            break
        assert separator
        version, status = head.split(b" ")[:2]
        assert version == b"HTTP/1.1"
        if status == b"101":
            return check_frames(received)
        assert int(status) in (100, 200, *range(400, 500), 501, 503, 505)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"HEAD" in sent and received.startswith(b"HTTP/1.1 "):
            continue  # only the length of a body, and then the next answer
        received = received[int(fields.get(b"content-length", 0)) :]
    return [], None


def check_frames(data: bytes) -> tuple[list[bytes], int | None]:
    """See that these are a server's frames, the Close last; the last one may be incomplete."""
    messages: list[bytes] = []
    while data:
        first, length, start = data[0], data[1] if len(data) > 1 else 0, 2
        assert first & 0xF0 == FIN
        assert length <= 126, "neither masked nor as long as nothing here is"
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        if len(data) < start + length:
            break
        payload, data = data[start : start + length], data[start + length :]
        opcode = first & 0x0F
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        if opcode in (TEXT, BINARY):
            messages.append(payload)
        if opcode == CLOSE:
            assert not data
            payload[2:].decode()
            return messages, int.from_bytes(payload[:2], "big") if payload else 1005
    return messages, None


# -- what Hypothesis thinks of

MASKS = st.binary(min_size=4, max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=6).map(sorted)
CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=3)
PAYLOADS = st.binary(max_size=130) | st.sampled_from([b"x" * 126, b"x" * 1000, b"x" * 1001, b"\xff", "é".encode()[:1]])


class Said(NamedTuple):
    """Frames, and the messages that they are."""

    data: bytes
    messages: list[str | bytes]


@st.composite
def whole_messages(draw: st.DrawFn) -> Said:
    """One message in one frame."""
    text = draw(st.none() | st.text(max_size=60))
    if text is not None:
        return Said(client_frame(TEXT, text.encode(), mask=draw(MASKS)), [text])
    payload = draw(st.binary(max_size=200))
    return Said(client_frame(BINARY, payload, mask=draw(MASKS)), [payload])


@st.composite
def control_frames(draw: st.DrawFn) -> Said:
    """A ping or a pong."""
    opcode = draw(st.sampled_from([PING, PONG]))
    return Said(client_frame(opcode, draw(st.binary(max_size=125)), mask=draw(MASKS)), [])


@st.composite
def fragmented_messages(draw: st.DrawFn) -> Said:
    """One message in several frames, pings in between."""
    text = draw(st.text(min_size=1, max_size=40)).encode()
    at = sorted(draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=4)))
    parts = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    data = b""
    for number, part in enumerate(parts):
        opcode = CONTINUATION if number else TEXT
        data += client_frame(opcode, part, fin=number == len(parts) - 1, mask=draw(MASKS))
        if number < len(parts) - 1:
            data += draw(st.just(Said(b"", [])) | control_frames()).data
    return Said(data, [text.decode()])


ANY_FRAME = st.builds(
    lambda opcode, payload, fin, rsv, mask: client_frame(opcode, payload, fin=fin, rsv=rsv, mask=mask),
    st.sampled_from([TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG]) | st.integers(0, 15),
    PAYLOADS,
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 0x40, 0x20, 0x10]),
    MASKS,
)
SAID = whole_messages() | control_frames() | fragmented_messages()
CONVERSATIONS = st.lists(SAID, max_size=8)


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with some pieces replaced."""
    for at, length, new in changes:
        data = data[:at] + new + data[at + length :]
    return data


FRAMES = st.lists(ANY_FRAME | SAID.map(lambda said: said.data), max_size=6).map(b"".join)
HEADS = st.sampled_from(
    [
        handshake(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n",
    ]
)
FIELDS = st.sampled_from(
    [b"\r\n", b"Host: localhost\r\n\r\n", b"Content-Length: 0\r\n\r\n", b"Sec-WebSocket-Protocol: x, y\r\n\r\n"]
)
DATA = {
    Stage.NOTHING_SAID: HEADS,
    Stage.IN_THE_HEAD: FIELDS,
    Stage.BEHIND_THE_HEAD: FRAMES,
    Stage.OPEN: FRAMES,
    Stage.AFTER_OUR_CLOSE: FRAMES,
    Stage.AFTER_THEIR_CLOSE: FRAMES,
}


@st.composite
def sendings(draw: st.DrawFn) -> tuple[Stage, bytes]:
    """Noise, or something with a meaning at its stage, more or less damaged."""
    stage = draw(st.sampled_from(Stage))
    if draw(st.integers(0, 3)) == 0:
        return stage, draw(st.binary(max_size=300))
    return stage, changed(draw(DATA[stage]), draw(CHANGES)) + draw(st.just(b"") | st.binary(max_size=30))


@settings(deadline=None, max_examples=300)
@given(sending=sendings(), cuts=CUTS)
@example((Stage.NOTHING_SAID, b"HEAD / HTTP/1.1\r\nHost: elsewhere\r\n\r\n\0"), [])
def test_any_bytes_at_any_stage(sending: tuple[Stage, bytes], cuts: list[int]) -> None:
    """They harm their sender, if anybody; and how they are cut makes no difference to what is published."""
    stage, data = sending
    outcome = run(stage, data, cuts)
    assert outcome.seconds <= SECONDS_MAX
    _, code = check_answers(outcome.received, data)
    assert code is None or code == 1005 or code in LEGAL_CODES
    if stage is Stage.AFTER_OUR_CLOSE:
        assert code == 1001
    if stage is Stage.AFTER_THEIR_CLOSE:
        assert code == 1000
    if stage in (Stage.AFTER_OUR_CLOSE, Stage.AFTER_THEIR_CLOSE):
        assert outcome.heard == []


@settings(deadline=None, max_examples=100)
@given(stage=st.sampled_from([Stage.BEHIND_THE_HEAD, Stage.OPEN]), data=FRAMES, changes=CHANGES, cuts=CUTS)
def test_how_bytes_are_cut_makes_no_difference(
    stage: Stage, data: bytes, changes: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    """The room hears the same of the whole as of the pieces."""
    data = changed(data, changes)
    assert run(stage, data, cuts).heard == run(stage, data, []).heard


@settings(deadline=None, max_examples=120)
@given(
    stage=st.sampled_from([Stage.BEHIND_THE_HEAD, Stage.OPEN]),
    conversation=CONVERSATIONS,
    code=st.none() | st.sampled_from([1000, 1001, 3000, 4999]),
    more=FRAMES,
    cuts=CUTS,
)
def test_all_that_is_well_formed_is_heard(
    stage: Stage, conversation: list[Said], code: int | None, more: bytes, cuts: list[int]
) -> None:
    """However it is cut: everything up to the Close, nothing after it, and the Close is answered."""
    data = b"".join(said.data for said in conversation)
    if code is not None:
        data += client_frame(CLOSE, close_payload(code)) + more
    outcome = run(stage, data, cuts)
    assert outcome.heard == [message for said in conversation for message in said.messages]
    assert check_answers(outcome.received)[1] == code
