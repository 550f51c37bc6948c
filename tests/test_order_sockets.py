"""Promises P1 to P3 on the running daemon: one order a room, no silent gap, your own order.

A stage is one room, on which a cast of clients plays over real sockets: publishers who send in every way that
RFC 6455 allows, subscribers who stay, others who leave early in all ways, some who never read, some who come late
and ask for history. Who stays must receive the same bytes as everyone who stays: they are compared as they come.
"""

import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trustme
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hubbub.core.frames import CLOSE, CONTINUATION, FIN, PING, PONG, TEXT
from peers import client_frame, close_payload, connect, handshake, open_peer, reset
from servers import Daemon, open_daemon

PLAY_SECONDS_MAX = 60.0
LAST = b"the end"
LAST_FRAME = bytes((FIN | TEXT, len(LAST))) + LAST
TAIL_BYTES = 64
HISTORIES = (0, 1, 50, 100)
SETTINGS: dict[str, object] = {
    "log_level": "warning",
    "ping_seconds": 300,  # so that only those who ping receive anything but the room's messages
    "close_seconds_max": 1,
    "linger_seconds_max": 0.5,
    "history_size": 1000,
    "outbox_bytes_max": 262_144,
}

Connect = Callable[[bool], Awaitable[tuple[trio.abc.Stream, trio.SocketStream]]]
"""Connects, `True`: so that the kernels keep little; gives the stream, and the socket below it."""


@dataclass
class Cast:
    """How many of each; of the publishers and of the subscribers, `leavers` a kind leave early."""

    publishers: int
    subscribers: int
    messages: int = 20
    padding_max: int = 150
    leavers: int = 0
    stalled: int = 0
    silent: int = 0
    latecomers: int = 0


@dataclass
class Record:
    """What the room has said, as those who stay have received it: each the same bytes."""

    data: bytearray = field(default_factory=bytearray)

    def check(self, at: int, received: bytes) -> None:
        """Compare what one has received at this position; whoever is the first to receive it writes it down."""
        known = self.data[at : at + len(received)]
        assert received.startswith(known), f"two subscribers received different bytes, {at} bytes after the start"
        self.data += received[len(known) :]


class Client:
    """One connection; notes what it receives behind the 101, in the common record or by itself."""

    def __init__(self, stream: trio.abc.Stream, below: trio.SocketStream, record: Record | None) -> None:
        self.stream = stream
        self.below = below
        self.position = 0
        self.received = bytearray()
        self.ended = False  # by the server, or broken
        self.saw_last = False
        self.saw_mark = False
        self.mark = b"-"
        self._record = record
        self._tail = b""

    async def join(self, path: str) -> None:
        """Shake hands."""
        await self.stream.send_all(handshake(path))
        received = b""
        while b"\r\n\r\n" not in received:
            data = await self.stream.receive_some(65536)
            assert data, "no answer to the handshake"
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        self._take(rest)

    async def read(self, done: Callable[[], bool]) -> None:
        """Receive until `done`, or until the end."""
        while not done() and not self.ended:
            try:
                data = await self.stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self.ended = not data
            self._take(bytes(data))

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait while another task reads."""
        while not done():
            assert not self.ended, "cut off"
            await trio.sleep(0.01)

    async def leave(self, manner: str) -> None:
        """Go, orderly or not."""
        match manner:
            case "close":
                await self.stream.send_all(client_frame(CLOSE, close_payload(1000)))
            case "eof":  # over TLS without a goodbye, as is usual
                await self.below.send_eof()
            case "reset":
                await reset(self.below)
            case "vanish":
                await trio.aclose_forcefully(self.stream)

    def _take(self, data: bytes) -> None:
        if self._record is None:
            self.received += data
        else:
            self._record.check(self.position, data)
        self.position += len(data)
        recent = self._tail + data
        self.saw_last = self.saw_last or LAST_FRAME in recent
        self.saw_mark = self.saw_mark or self.mark in recent
        self._tail = recent[-TAIL_BYTES:]


ORDERLY = ("close", "eof")
MANNERS = (*ORDERLY, "reset", "vanish")


class Stage:
    """One performance in one room: `play` it, then `check` it."""

    def __init__(self, connect: Connect, room: str, cast: Cast, seed: int) -> None:
        self._connect = connect
        self._path = f"/chat/{room}"
        self._cast = cast
        self._rng = random.Random(seed)
        self._curtain = trio.Event()  # everyone is there
        self._finale = trio.Event()  # nobody has anything more to say
        self._unfinished = cast.publishers + cast.latecomers
        self._bytes = 0  # about what is going to be said
        self._record = Record()
        self._said: dict[bytes, list[bytes]] = {}  # by publisher
        self._cut_short: set[bytes] = set()  # publishers of whom the end may be missing
        self._stayed: list[Client] = []  # those who have no part in the common record
        self._left: list[tuple[Client, str]] = []
        self._late: list[tuple[Client, int, int]] = []  # with the history asked for, the bytes on record before

    async def play(self) -> None:
        """Perform, to the last message."""
        cast = self._cast
        async with trio.open_nursery() as audience:
            for number in range(cast.silent):
                audience.start_soon(self._be_silent, number)
            async with trio.open_nursery() as acting:
                async with trio.open_nursery() as arriving:
                    for number in range(cast.publishers):
                        arriving.start_soon(acting.start, self._publish, number, self._manner(number))
                    for number in range(cast.subscribers):
                        arriving.start_soon(acting.start, self._subscribe, self._manner(number))
                    for _ in range(cast.stalled):
                        arriving.start_soon(audience.start, self._stall)
                    arriving.start_soon(acting.start, self._conduct)
                for _ in range(cast.latecomers):
                    acting.start_soon(self._come_late)
                self._curtain.set()
            audience.cancel_scope.cancel()

    def check(self) -> None:
        """See that the promises were kept."""
        everything = parse(bytes(self._record.data))
        assert everything.rest == b""
        messages = everything.messages
        assert messages[-1] == LAST
        heard: dict[bytes, list[bytes]] = {}
        for message in messages[:-1]:
            heard.setdefault(message.partition(b":")[0], []).append(message)
        for publisher, said in self._said.items():
            its = heard.pop(publisher, [])
            assert its == said[: len(its)]
            assert len(its) == len(said) or publisher in self._cut_short
        assert not heard
        for client in self._stayed:
            its_view = parse(bytes(client.received))
            assert its_view == Heard(messages, None, b"")
        for client, manner in self._left:
            its_view = parse(bytes(client.received))
            assert its_view.messages == messages[: len(its_view.messages)]
            assert its_view.close_code == 1000 or manner != "close"
        for client, history, record_bytes in self._late:
            its_messages = parse(bytes(client.received)).messages
            count, before = len(its_messages), len(parse(bytes(self._record.data[:record_bytes])).messages)
            assert its_messages == messages[-count:]
            assert min(history, len(messages)) <= count <= len(messages) - before + min(history, before)

    # -- the roles

    async def _publish(self, number: int, manner: str | None, task_status: trio.TaskStatus[None]) -> None:
        """Say everything, and receive what everyone says; or say some, and leave."""
        rng = random.Random(self._rng.random())
        name = b"p%d" % number
        count = self._cast.messages if manner is None else rng.randrange(self._cast.messages + 1)
        said = [b"%s:%d:" % (name, index) + b"." * rng.randrange(self._cast.padding_max) for index in range(count)]
        self._said[name] = said
        self._bytes += sum(map(len, said))
        async with self._client() as client, trio.open_nursery() as nursery:
            if manner is None:
                self._stayed.append(client)
                client.mark = b"%s:%d:" % (name, count - 1)
            else:
                self._left.append((client, manner))
            await client.join(self._path)
            task_status.started()
            await self._curtain.wait()
            nursery.start_soon(client.read, lambda: client.saw_last)
            for piece in pieces_of(said, rng):
                await client.stream.send_all(piece)
                if rng.random() < 0.5:
                    await trio.sleep(rng.uniform(0, 0.03))
            if manner is None:
                await client.until(lambda: client.saw_mark)
            else:
                if manner not in ORDERLY:
                    self._cut_short.add(name)
                await client.leave(manner)
                await client.until(lambda: client.ended)
            self._done()

    async def _subscribe(self, manner: str | None, task_status: trio.TaskStatus[None]) -> None:
        """Receive everything; or leave at some time."""
        async with self._client(None if manner else self._record) as client:
            await client.join(self._path)
            task_status.started()
            if manner is None:
                await client.read(lambda: client.saw_last)
                assert client.saw_last, "cut off"
                return
            self._left.append((client, manner))
            await self._curtain.wait()
            enough = self._bytes * self._rng.uniform(0, 0.9)
            await client.read(lambda: client.position >= enough or client.saw_last)
            await client.leave(manner)
            await client.read(lambda: False)

    async def _come_late(self) -> None:
        """Join in the middle, and receive what was said before, as far as asked for, and everything after."""
        history = self._rng.choice(HISTORIES)
        enough = self._bytes * self._rng.uniform(0, 0.6)
        async with self._client() as client:
            while len(self._record.data) < enough:
                await trio.sleep(0.005)
            self._late.append((client, history, len(self._record.data)))
            await client.join(f"{self._path}?history={history}" if history else self._path)
            self._done()
            await client.read(lambda: client.saw_last)

    async def _stall(self, task_status: trio.TaskStatus[None]) -> None:
        """Join and never read; at the end look at what the kernel has kept."""
        async with self._client(tight=True) as client:
            await client.join(self._path)
            self._left.append((client, "stalled"))
            task_status.started()
            await self._finale.wait()
            await client.read(lambda: False)

    async def _be_silent(self, number: int) -> None:
        """Connect and say nothing; or ask for the upgrade and don't even read the 101."""
        async with self._client(tight=True) as client:
            if number % 2:
                await client.stream.send_all(handshake(self._path))
            await trio.sleep_forever()

    async def _conduct(self, task_status: trio.TaskStatus[None]) -> None:
        """Say the last message once all the others have been said."""
        async with self._client() as client, trio.open_nursery() as nursery:
            self._stayed.append(client)
            await client.join(self._path)
            task_status.started()
            nursery.start_soon(client.read, lambda: client.saw_last)
            await self._finale.wait()
            await client.stream.send_all(client_frame(TEXT, LAST))

    def _manner(self, number: int) -> str | None:
        return MANNERS[number % len(MANNERS)] if number < len(MANNERS) * self._cast.leavers else None

    def _done(self) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self._finale.set()

    @contextlib.asynccontextmanager
    async def _client(self, record: Record | None = None, *, tight: bool = False) -> AsyncIterator[Client]:
        stream, below = await self._connect(tight)
        try:
            yield Client(stream, below, record)
        finally:
            await trio.aclose_forcefully(stream)


@dataclass
class Heard:
    """What a client has received: the messages, the Close if there was one, the beginning of another frame."""

    messages: list[bytes]
    close_code: int | None
    rest: bytes


def parse(received: bytes) -> Heard:
    """Read frames; pongs are skipped."""
    messages: list[bytes] = []
    at, end = 0, len(received)
    while end - at >= 2:
        first, length, start = received[at], received[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(received[start : start + 2], "big"), start + 2
        assert length < 65536, "nobody has said anything as long as that"
        stop = start + length
        if stop > end:
            break
        if first == FIN | CLOSE:
            assert stop == end, "something comes behind the Close"
            return Heard(messages, int.from_bytes(received[start : start + 2], "big"), b"")
        if first == FIN | TEXT:
            messages.append(received[start:stop])
        else:
            assert first == FIN | PONG
        at = stop
    return Heard(messages, None, received[at:])


def pieces_of(messages: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the messages as frames, in pieces to be sent one after the other: joined, torn, fragmented, with pings."""

    def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
        return client_frame(opcode, payload, fin=fin, mask=rng.randbytes(4))

    pieces: list[bytes] = []
    for message in messages:
        whole = frame(TEXT, message)
        one, two = sorted((rng.randrange(len(message)), rng.randrange(len(message))))
        fragments = (
            frame(TEXT, message[:one], fin=False),
            frame(CONTINUATION, message[one:two], fin=False),
            frame(CONTINUATION, message[two:]),
        )
        ping = frame(PING, b"still there?")
        match rng.randrange(6):
            case 0:
                pieces.append(whole)
            case 1:  # in one segment with the one before
                pieces.append((pieces.pop() if pieces else b"") + whole)
            case 2:
                pieces += (whole[:one], whole[one:])
            case 3:
                pieces += fragments
            case 4:
                pieces.append(ping.join(fragments))
            case 5:
                pieces.append(ping + whole)
    return pieces


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Say the seed where something fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed: {seed}")
        raise


async def perform(connect: Connect, room: str, cast: Cast, seed: int) -> None:
    """Play and check."""
    with reproducible(seed):
        stage = Stage(connect, room, cast, seed)
        with trio.fail_after(PLAY_SECONDS_MAX):
            await stage.play()
        stage.check()


def tcp_to(port: int) -> Connect:
    """Return what connects to that port of loopback."""

    async def connect_tcp(tight: bool) -> tuple[trio.abc.Stream, trio.SocketStream]:
        stream = await (connect_tightly(port) if tight else connect(port))
        return stream, stream

    return connect_tcp


def tls_to(port: int, context: ssl.SSLContext) -> Connect:
    """Return what connects to that port of loopback and speaks TLS."""

    async def connect_tls(tight: bool) -> tuple[trio.abc.Stream, trio.SocketStream]:
        below = await (connect_tightly(port) if tight else connect(port))
        return trio.SSLStream(below, context, server_hostname="localhost", https_compatible=True), below

    return connect_tls


async def connect_tightly(port: int) -> trio.SocketStream:
    """Return a TCP connection for which the kernels keep little: on loopback it would be megabytes."""
    connection = trio.socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # the server's send buffer grows by segments
    await connection.connect(("127.0.0.1", port))
    return trio.SocketStream(connection)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all; each performance has a room of its own."""
    with open_daemon(**SETTINGS) as daemon:
        yield daemon


@pytest.mark.alone  # six hundred sockets at once, each with a deadline
@pytest.mark.parametrize("seed", [1, 2])
async def test_everyone_receives_everything_in_one_order(daemon: Daemon, seed: int) -> None:
    await perform(tcp_to(daemon.port), f"calm-{seed}", Cast(publishers=100, subscribers=500), seed)


@pytest.mark.alone
@pytest.mark.parametrize("seed", [3, 4])
async def test_whoever_stays_receives_everything_whatever_the_others_do(daemon: Daemon, seed: int) -> None:
    evicted = 'hubbub_connections_ended_total{reason="slow_consumer"}'
    before = daemon.metrics()
    cast = Cast(100, 500, padding_max=1000, leavers=10, stalled=20, silent=20, latecomers=30)
    await perform(tcp_to(daemon.port), f"chaos-{seed}", cast, seed)
    assert daemon.metrics()[evicted] - before[evicted] == cast.stalled + cast.silent // 2


@pytest.mark.parametrize("end", ["close", "eof"])
async def test_what_was_sent_before_the_end_is_published(daemon: Daemon, end: str) -> None:
    """Messages that take the long way, by trio-websocket, with the end right behind them."""
    async with open_peer(daemon.port, f"/chat/end-{end}") as witness:
        for _ in range(10):
            async with open_peer(daemon.port, f"/chat/end-{end}") as peer:
                fragments = client_frame(TEXT, b"first", fin=False) + client_frame(CONTINUATION, b" message")
                data = fragments + client_frame(TEXT, b"second") + client_frame(TEXT, b"third")
                await peer.send_raw(data + (client_frame(CLOSE, close_payload(1000)) if end == "close" else b""))
                if end == "eof":
                    assert isinstance(peer.stream, trio.SocketStream)
                    await peer.stream.send_eof()
                await peer.receive_until_closed()
            assert await witness.receive_texts(3) == ["first message", "second", "third"]
            await witness.send("next")  # not before: what two say at the same moment has no order among them
            assert await witness.receive() == "next"


def test_order_whatever_the_chaos(daemon: Daemon) -> None:
    """The same as a property: any seed, a smaller cast. Not shrunk: a smaller seed is no simpler a performance."""
    rooms = 0

    @given(st.integers(0, 2**32))
    @settings(max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def property_(seed: int) -> None:
        nonlocal rooms
        rooms += 1
        cast = Cast(10, 20, messages=10, leavers=1, stalled=2, silent=2, latecomers=5)
        trio.run(perform, tcp_to(daemon.port), f"property-{rooms}", cast, seed)

    property_()


@pytest.mark.parametrize("leavers", [0, 1], ids=["calm", "chaos"])
async def test_order_over_tls(tmp_path: Path, leavers: int) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    cast = Cast(10, 30, leavers=leavers, stalled=2 * leavers, silent=2 * leavers, latecomers=5 * leavers)
    with open_daemon("--tls-cert", str(chain), "--tls-key", str(key), **SETTINGS) as daemon:
        await perform(tls_to(daemon.port, context), "tls", cast, 5)
