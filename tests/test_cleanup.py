"""Promise P7 on the running daemon: after a thousand connections that end in one way, nothing of them is left.

Half of them are alone in a room, half share rooms in which bystanders talk all the while: those must not notice
anything. What is left is read from /metrics, before and after.
"""

import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import structlog
import trio

from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, MASKED, PING, PONG, TEXT
from hubbub.dialects.plain import PlainConversation
from hubbub.model.command import Command, Publish, PublishRun
from hubbub.model.end import End
from hubbub.model.question import Ask
from peers import (
    SECONDS_MAX,
    ByteStream,
    Closed,
    Peer,
    client_frame,
    close_payload,
    connect,
    handshake,
    open_peer,
    reset,
    shake_hands,
)
from servers import open_daemon, open_server

pytestmark = pytest.mark.alone  # thousands of sockets, and deadlines of half a second

CONNECTIONS = 1000
SHARED_ROOMS = ("lobby", "kitchen", "garden")
GONE_SECONDS_MAX = 5.0
PADDING = 60_000
EVICTION_BYTES = 1_500_000
SETTINGS: dict[str, object] = {
    "log_level": "warning",
    "close_seconds_max": 0.5,
    "linger_seconds_max": 0.5,
    "history_seconds_max": 0.4,
    "history_meta_seconds_max": 0.4,
    "message_bytes_max": 1024,
}
GAUGES = (
    "hubbub_tasks",
    "process_open_fds",
    "hubbub_connections",
    "hubbub_rooms",
    "hubbub_subscriptions",
    "hubbub_outboxes_queued",
    "hubbub_outboxes_queued_bytes",
    "hubbub_inbox_commands",
    "hubbub_inbox_bytes",
    "hubbub_inbox_readers_waiting",
    "hubbub_histories",
    "hubbub_history_publications",
    "hubbub_history_bytes",
)

ReadMetrics = Callable[[], Awaitable[dict[str, float]]]


@dataclass
class Visit:
    """One of the thousand connections."""

    port: int
    number: int
    room: str
    rng: random.Random

    @contextlib.asynccontextmanager
    async def arrive(self, *, tight: bool = False) -> AsyncIterator[tuple[trio.SocketStream, Peer]]:
        """Connect, join the room; every other visitor says something there. The socket is closed, forcefully."""
        stream = await (connect_tightly(self.port) if tight else connect(self.port))
        try:
            peer = await shake_hands(stream, handshake(f"/chat/{self.room}"))
            if self.rng.random() < 0.5:
                await peer.send(f"hello from {self.number}")
            yield stream, peer
        finally:
            await trio.aclose_forcefully(stream)


@dataclass
class Ending:
    """A way to end, and what is to be expected of it.

    Attributes:
        visit: connects, brings the end about, and checks what the peer sees of it.
        reasons: those that are legal.
        at_least: how many there must be of some.
        all_counted: whether each visit is a connection that was opened.
        together: how many visits at once.
        gap: the bystanders' pause between two messages.
        padding: how long the bystanders' messages are.
    """

    visit: Callable[[Visit], Awaitable[None]]
    reasons: frozenset[End]
    at_least: Mapping[End, int] = field(default_factory=dict)
    all_counted: bool = True
    together: int = 100
    gap: float = 0.005
    padding: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)


async def by_close_frame(visit: Visit) -> None:
    """A Close frame; the server answers it. Some end their sending side right behind it."""
    async with visit.arrive() as (stream, peer):
        await peer.send_frame(CLOSE, close_payload(1000))
        if visit.rng.random() < 0.5:
            await stream.send_eof()
        await _expect_close(peer, 1000)


async def by_eof(visit: Visit) -> None:
    """The end of the stream; the patient wait for the server's, every fourth doesn't."""
    async with visit.arrive() as (stream, peer):
        await stream.send_eof()
        if visit.number % 4:
            _, closed = await peer.receive_until_closed()
            assert closed.code == 1006


async def by_reset(visit: Visit) -> None:
    """RST, at once or a little later."""
    async with visit.arrive() as (stream, _):
        if visit.rng.random() < 0.5:
            await trio.sleep(visit.rng.uniform(0, 0.02))
        await reset(stream)


async def by_reset_in_handshake(visit: Visit) -> None:
    """RST somewhere in the request head, or behind it without a look at the 101."""
    stream = await connect(visit.port)
    request = handshake(f"/chat/{visit.room}")
    whole = visit.rng.random() < 0.5
    data = request if whole else request[: visit.rng.randrange(len(request))]
    half = visit.rng.randrange(len(data) + 1)
    for piece in (data[:half], data[half:]):
        await stream.send_all(piece)
        if visit.rng.random() < 0.7:
            await trio.sleep(visit.rng.uniform(0, 0.01))
    await reset(stream)


async def by_silence(visit: Visit) -> None:
    """No answer to a ping; half of them don't answer the Close either."""
    async with visit.arrive() as (_, peer):
        pinged = False
        while True:
            first, payload = await peer.receive_frame()
            pinged = pinged or first == FIN | PING
            if first == FIN | CLOSE:
                break
        assert pinged
        assert payload == close_payload(1011, "no pong")
        if visit.rng.random() < 0.5:
            await peer.send_frame(CLOSE, payload)
        with pytest.raises(Closed):
            await peer.receive_frame()


async def by_oversize(visit: Visit) -> None:
    """More than message_bytes_max: whole, only announced, or in fragments."""
    async with visit.arrive() as (_, peer):
        message = bytes(2000)
        match visit.rng.randrange(3):
            case 0:
                await peer.send_frame(BINARY, message)
            case 1:
                await peer.send_raw(struct.pack("!BBQ", FIN | BINARY, MASKED | 127, 1 << 40) + bytes(4))
            case 2:
                await peer.send_frame(BINARY, message[:1000], fin=False)
                await peer.send_frame(CONTINUATION, message[1000:])
        await _expect_close(peer, 1009)


VIOLATIONS = (
    (1002, struct.pack("!BB", FIN | TEXT, 5) + b"naked"),
    (1002, client_frame(TEXT, b"reserved", rsv=0x40)),
    (1002, client_frame(BINARY, b"reserved", rsv=0x10)),
    (1007, client_frame(TEXT, b"\xff\xfe")),
    (1007, client_frame(TEXT, b"\xc3", fin=False) + client_frame(CONTINUATION, b"(")),
    (1002, client_frame(CONTINUATION, b"of nothing")),
    (1002, client_frame(TEXT, b"one", fin=False) + client_frame(TEXT, b"another")),
    (1002, client_frame(3, b"reserved opcode")),
    (1002, client_frame(PING, b"in pieces", fin=False)),
    (1002, client_frame(PONG, bytes(126))),
    (1002, client_frame(CLOSE, b"\x03")),
)


async def by_violation(visit: Visit) -> None:
    """A breach of RFC 6455: the server says which."""
    async with visit.arrive() as (_, peer):
        code, data = VIOLATIONS[visit.number // 2 % len(VIOLATIONS)]
        await peer.send_raw(data)
        await _expect_close(peer, code)


async def by_not_reading(visit: Visit) -> None:
    """Never read: what the bystanders say, or what this peer says to itself, fills every buffer.

    Who doesn't read can't be told: the connection breaks.
    """
    async with visit.arrive(tight=True) as (stream, _):
        with trio.fail_after(SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError):
            if visit.room not in SHARED_ROOMS:
                for _ in range(EVICTION_BYTES // PADDING):
                    await stream.send_all(quick_frame(bytes(PADDING)))
            while True:  # until the server has closed
                await stream.send_all(client_frame(PONG, b""))
                await trio.sleep(0.05)


ENDINGS = {
    "close frame": Ending(by_close_frame, frozenset({End.PEER_CLOSED})),
    # Who doesn't wait resets the connection as soon as anything is sent to it: either may be seen first.
    "EOF": Ending(by_eof, frozenset({End.PEER_LEFT, End.PEER_RESET}), at_least={End.PEER_LEFT: CONNECTIONS * 3 // 4}),
    "reset": Ending(by_reset, frozenset({End.PEER_RESET})),
    "reset in the handshake": Ending(by_reset_in_handshake, frozenset({End.PEER_RESET}), all_counted=False),
    # Any byte that a peer takes is life, so the bystanders must be silent for longer than a pong may take.
    "silence": Ending(
        by_silence,
        frozenset({End.NO_PONG}),
        together=CONNECTIONS,
        gap=3.0,
        settings={"ping_seconds": 0.5, "pong_seconds_max": 1.5},
    ),
    "oversize": Ending(by_oversize, frozenset({End.MESSAGE_TOO_LARGE}), together=500),
    "violation": Ending(by_violation, frozenset({End.PROTOCOL_ERROR})),
    "eviction": Ending(
        by_not_reading,
        frozenset({End.SLOW_CONSUMER}),
        together=200,  # each lot waits for the deadlines of an end
        gap=0.04,
        padding=PADDING,
        # Room for what is said while a newcomer isn't let in yet, but far less than what is said to each.
        settings={"message_bytes_max": 65_536, "outbox_bytes_max": EVICTION_BYTES // 3},
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_nothing_is_left_of_a_thousand_connections(name: str) -> None:
    ending = ENDINGS[name]
    with open_daemon(**{**SETTINGS, **ending.settings}) as daemon:

        async def read_metrics() -> dict[str, float]:
            return await trio.to_thread.run_sync(daemon.metrics)

        before, after = await run_visits(daemon.port, ending, read_metrics)
    assert grown(before, after, "hubbub_internal_errors_total") == 0


async def run_visits(port: int, ending: Ending, read_metrics: ReadMetrics) -> tuple[dict[str, float], dict[str, float]]:
    """Let a thousand come and go; check the bystanders, the counts, the base line. Return metrics before and after."""
    async with trio.open_nursery() as nursery:
        bystanders = Bystanders(port, ending, nursery)
        await bystanders.arrive()
        async with open_peer(port, "/chat/warm-up") as peer:
            await peer.close()
        before = await read_base_line(read_metrics)
        bystanders.talk()
        rng = random.Random(0)
        for start in range(0, CONNECTIONS, ending.together):
            async with trio.open_nursery() as visits:
                for number in range(start, start + ending.together):
                    room = f"own-{number}" if number % 2 else SHARED_ROOMS[number // 2 % len(SHARED_ROOMS)]
                    visits.start_soon(ending.visit, Visit(port, number, room, random.Random(rng.random())))
        await bystanders.fall_silent()
        after = await until_base_line(read_metrics, before)
        nursery.cancel_scope.cancel()
    check_reasons(before, after, ending)
    return before, after


class OneSenderAtATime:
    """A byte stream on which several tasks may send."""

    def __init__(self, stream: ByteStream) -> None:
        self._sending = trio.Lock()
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)


class Bystanders:
    """Two in each of the shared rooms, who count aloud in turn; each must hear every number, once, in order.

    Their tasks run in `nursery`, until it is cancelled.
    """

    def __init__(self, port: int, ending: Ending, nursery: trio.Nursery) -> None:
        self._port = port
        self._gap = ending.gap
        self._padding = b"." * ending.padding
        self._nursery = nursery
        self._pairs: list[list[Peer]] = [[] for _ in SHARED_ROOMS]
        self._heard = [[0, 0] for _ in SHARED_ROOMS]
        self._said = [0 for _ in SHARED_ROOMS]
        self._silent = False

    async def arrive(self) -> None:
        """Come, and listen."""
        for pair in range(len(SHARED_ROOMS)):
            for turn in range(2):
                await self._nursery.start(self._listen, pair, turn)

    def talk(self) -> None:
        """Begin to count."""
        for pair in range(len(SHARED_ROOMS)):
            self._nursery.start_soon(self._speak, pair, 0)

    async def fall_silent(self) -> None:
        """End, and see that all has been heard by all."""
        with trio.fail_after(SECONDS_MAX):
            while min(self._said) < 2:
                await trio.sleep(0.01)
            self._silent = True
            while any(set(heard) != {said} for heard, said in zip(self._heard, self._said, strict=True)):
                await trio.sleep(0.01)

    async def _listen(self, pair: int, turn: int, task_status: trio.TaskStatus[None]) -> None:
        async with open_peer(self._port, f"/chat/{SHARED_ROOMS[pair]}") as peer:
            peer.stream = OneSenderAtATime(peer.stream)  # numbers, and pongs
            self._pairs[pair].append(peer)
            task_status.started()
            while True:
                message = await peer.receive()
                assert isinstance(message, str)
                if message.startswith("number "):
                    number = int(message.split(" ", 2)[1])
                    assert number == self._heard[pair][turn]
                    self._heard[pair][turn] += 1
                    if number % 2 != turn:
                        self._nursery.start_soon(self._speak, pair, turn)

    async def _speak(self, pair: int, turn: int) -> None:
        await trio.sleep(self._gap)
        if not self._silent:
            number = self._said[pair]
            self._said[pair] += 1
            await self._pairs[pair][turn].send_raw(quick_frame(b"number %d " % number + self._padding))


async def test_nothing_is_left_of_a_thousand_connections_that_a_dialect_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a dialect's code ends its connection with 1011, whichever task it was raised in."""
    receive, receive_run = PlainConversation.receive, PlainConversation.receive_run
    receive_nowait = PlainConversation.receive_nowait

    def fail_sometimes(self: PlainConversation, data: bytes, binary: bool) -> Sequence[Command | Ask]:
        if data == b"boom":
            raise ZeroDivisionError("boom")
        return receive(self, data, binary)

    def fail_in_a_run(self: PlainConversation, messages: Sequence[bytes], binary: bool) -> PublishRun | None:
        if b"boom" in messages:
            raise ZeroDivisionError("boom")
        return receive_run(self, messages, binary)

    def leave_it(self: PlainConversation, data: bytes, binary: bool) -> Publish | None:
        return None if data == b"boom" else receive_nowait(self, data, binary)

    async def visit(visit: Visit) -> None:
        async with visit.arrive() as (_, peer):
            if visit.rng.random() < 0.5:
                await peer.send("boom")
            else:  # by trio-websocket: received in another task
                await peer.send_frame(TEXT, b"bo", fin=False)
                await peer.send_frame(CONTINUATION, b"om")
            await _expect_close(peer, 1011)

    monkeypatch.setattr(PlainConversation, "receive", fail_sometimes)
    monkeypatch.setattr(PlainConversation, "receive_run", fail_in_a_run)
    monkeypatch.setattr(PlainConversation, "receive_nowait", leave_it)
    async with open_server(tls=None, **SETTINGS) as server:

        async def read_metrics() -> dict[str, float]:
            return parse_metrics(server.node.metrics.text().decode())

        with structlog.testing.capture_logs() as entries:
            before, after = await run_visits(server.port, Ending(visit, frozenset({End.INTERNAL_ERROR})), read_metrics)
    assert grown(before, after, "hubbub_internal_errors_total") == CONNECTIONS
    errors = [entry for entry in entries if entry["log_level"] == "error"]
    assert [entry["event"] for entry in errors] == ["connection ended by an internal error"] * CONNECTIONS


async def connect_tightly(port: int) -> trio.SocketStream:
    """Return a TCP connection for which the kernels keep little: on loopback it would be megabytes."""
    connection = trio.socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # the server's send buffer grows by segments
    await connection.connect(("127.0.0.1", port))
    return trio.SocketStream(connection)


async def _expect_close(peer: Peer, code: int) -> None:
    """Receive until the server's Close, answer it, and see the end of the stream behind it."""
    _, closed = await peer.receive_until_closed()
    assert closed.code == code, closed
    with pytest.raises(Closed, match="1006"):
        await peer.receive_frame()


def quick_frame(payload: bytes) -> bytes:
    """Return a text frame masked with zeros, which costs nothing."""
    size = len(payload)
    length = struct.pack("!B", MASKED | size) if size < 126 else struct.pack("!BH", MASKED | 126, size)
    return bytes((FIN | TEXT,)) + length + bytes(4) + payload


def parse_metrics(text: str) -> dict[str, float]:
    """Return what /metrics says, by series."""
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def grown(before: Mapping[str, float], after: Mapping[str, float], series: str) -> float:
    """Return by how much a counter has grown."""
    return after.get(series, 0) - before.get(series, 0)


async def read_base_line(read_metrics: ReadMetrics) -> dict[str, float]:
    """Return the metrics once only the bystanders are there; the lowest of several, as each reading counts itself."""
    readings: list[dict[str, float]] = []
    with trio.fail_after(SECONDS_MAX):
        while len(readings) < 5:
            await trio.sleep(0.02)
            reading = await read_metrics()
            if (
                reading["hubbub_connections"] == 2 * len(SHARED_ROOMS)
                and reading["hubbub_histories"] == len(SHARED_ROOMS)
                and reading["hubbub_history_publications"] == 0
            ):
                readings.append(reading)
    return {**readings[-1], **{gauge: min(reading[gauge] for reading in readings) for gauge in GAUGES}}


async def until_base_line(read_metrics: ReadMetrics, before: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics once all gauges are where they were.

    Raises:
        AssertionError: they aren't, within five seconds (promise P7).
    """
    above: dict[str, tuple[float, float]] = {}
    after: dict[str, float] = {}
    with trio.move_on_after(GONE_SECONDS_MAX):
        while True:
            after = await read_metrics()
            above = {gauge: (before[gauge], after[gauge]) for gauge in GAUGES if after[gauge] != before[gauge]}
            if not above:
                break
            await trio.sleep(0.02)
    assert not above, f"before and after: {above}"
    return after


def check_reasons(before: Mapping[str, float], after: Mapping[str, float], ending: Ending) -> None:
    """See that each visit has been counted once, for a legal reason."""
    reasons = {end: grown(before, after, f'hubbub_connections_ended_total{{reason="{end.value}"}}') for end in End}
    counted = {end: count for end, count in reasons.items() if count}
    assert set(counted) <= ending.reasons, counted
    assert all(reasons[end] >= count for end, count in ending.at_least.items()), counted
    assert 0 < sum(counted.values()) <= CONNECTIONS, counted
    assert sum(counted.values()) == CONNECTIONS or not ending.all_counted, counted
