"""The heartbeat on a virtual clock: who is pinged when, who is cut off when, and who isn't."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from unittest import mock

import msgspec
import pytest
import trio
from trio.testing import MockClock

from bounded_pipes import PipeStream, Watch, make_pipe, make_watch
from hubbub.config import Settings
from hubbub.connection.wire import RUN_MESSAGE_BYTES_MAX
from hubbub.core.frames import CLOSE, FIN, PING, PONG
from hubbub.dialects.plain import PING_FRAME
from hubbub.model.command import Queued
from hubbub.node import Node, open_node
from peers import Closed, Peer, close_payload, handshake, shake_hands

PING_SECONDS = 5.0
PONG_SECONDS = 2.0
LOOK_SECONDS = 0.2
ROUNDING = 1e-6


class House(msgspec.Struct):
    """A node and the nursery in which its connections are served."""

    node: Node
    connections: trio.Nursery
    watch: Watch

    async def connect(self, path: str = "/chat", capacity: int = 4096) -> tuple[Peer, PipeStream]:
        """Return a new client and its side of the pipe."""
        transport, stream = make_pipe(random.Random(0), capacity, self.watch)
        self.connections.start_soon(self.node.front_door.serve, transport, "test", "localhost")
        return await shake_hands(stream, handshake(path)), stream

    def ended(self, reason: str) -> int:
        """Return how many connections ended for that reason."""
        prefix = f'hubbub_connections_ended_total{{reason="{reason}"}} '
        (line,) = (line for line in self.node.metrics.text().decode().splitlines() if line.startswith(prefix))
        return int(float(line.removeprefix(prefix)))


@contextlib.asynccontextmanager
async def open_house(seed: int = 0, **overrides: object) -> AsyncIterator[House]:
    """Run a node; everything is cut off on leaving."""
    limits: dict[str, object] = {
        "ping_seconds": PING_SECONDS,
        "pong_seconds_max": PONG_SECONDS,
        "write_stall_seconds_max": 8.0,
        "close_seconds_max": 1.0,
        "linger_seconds_max": 0.5,
    }
    settings = Settings(**{**limits, **overrides})  # type: ignore[arg-type]
    watch = make_watch(random.Random(seed))
    async with open_node(settings, random.Random(seed), watch.poller) as (node, connections):
        yield House(node, connections, watch)
        connections.cancel_scope.cancel()


async def next_frame(peer: Peer) -> tuple[float, int, bytes]:
    """Return when the next frame came, its first byte and its payload."""
    first, payload = await peer.receive_frame()
    return trio.current_time(), first, payload


async def answer_pings(peer: Peer) -> None:
    """Be a good peer until the connection ends."""
    while True:
        try:
            await peer.receive()
        except trio.TooSlowError:
            continue
        except Closed:
            return


@pytest.mark.parametrize("seed", range(5))
async def test_pings_come_every_ping_seconds(seed: int, autojump_clock: MockClock) -> None:
    """The first in the second half of the first interval, then one each interval, at most a look late."""
    async with open_house(seed) as house:
        opened_at = trio.current_time()
        peer, _ = await house.connect()
        times = [opened_at]
        for _ in range(6):
            at, first, payload = await next_frame(peer)
            assert (first, payload) == (FIN | PING, PING_FRAME[2:])
            await peer.send_frame(PONG, payload)
            times.append(at)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert PING_SECONDS / 2 <= gaps[0] <= PING_SECONDS + LOOK_SECONDS + ROUNDING
        assert all(PING_SECONDS - ROUNDING <= gap <= PING_SECONDS + LOOK_SECONDS + ROUNDING for gap in gaps[1:]), gaps


@pytest.mark.parametrize("seed", range(5))
async def test_a_silent_peer_is_cut_off_a_look_late_never_early(seed: int, autojump_clock: MockClock) -> None:
    """Who never answers is told 1011 when the pong's time is over."""
    async with open_house(seed) as house:
        peer, _ = await house.connect()
        pinged_at, first, _ = await next_frame(peer)
        assert first == FIN | PING
        told_at, first, payload = await next_frame(peer)
        assert (first, payload) == (FIN | CLOSE, close_payload(1011, "no pong"))
        assert PONG_SECONDS - ROUNDING <= told_at - pinged_at <= PONG_SECONDS + LOOK_SECONDS + ROUNDING
        assert house.ended("no_pong") == 0  # it may still answer the Close
        await trio.sleep(2)
        assert house.ended("no_pong") == 1


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_a_peer_that_answers_lives(autojump_clock: MockClock) -> None:
    """An hour of nothing but pings and pongs."""
    async with open_house() as house:
        peer, _ = await house.connect()
        pings = 0
        while trio.current_time() < 3600:
            first, payload = await peer.receive_frame()
            assert first == FIN | PING
            pings += 1
            await trio.sleep(PONG_SECONDS - LOOK_SECONDS)  # late, but not too late
            await peer.send_frame(PONG, payload)
        assert 3600 / (PING_SECONDS + LOOK_SECONDS) - 1 <= pings <= 3600 / PING_SECONDS + 1
        assert len(house.node.connections) == 1


async def test_data_is_as_good_as_a_pong(autojump_clock: MockClock) -> None:
    """A peer that never answers a ping lives as long as it says anything often enough."""
    async with open_house() as house:
        peer, _ = await house.connect()
        pings = 0
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                while True:
                    await trio.sleep(PONG_SECONDS - LOOK_SECONDS)
                    await peer.send("still here")

            nursery.start_soon(talk)
            while trio.current_time() < 300:
                first, _ = await peer.receive_frame()
                assert first != FIN | CLOSE
                pings += first == FIN | PING
            nursery.cancel_scope.cancel()
        assert pings > 20
        # And once it says nothing any more it's cut off like everyone else.
        first = 0
        while first != FIN | CLOSE:
            first, payload = await peer.receive_frame()
        assert payload == close_payload(1011, "no pong")
        assert trio.current_time() < 300 + PING_SECONDS + 2 * PONG_SECONDS


async def test_a_peer_isnt_blamed_for_a_ping_that_hasnt_left(autojump_clock: MockClock) -> None:
    """A ping behind a backlog starts no deadline: a peer that takes nothing ends as what it is, a stall."""
    async with open_house() as house:
        listener, stream = await house.connect(capacity=512)
        talker, _ = await house.connect()
        house.connections.start_soon(answer_pings, talker)
        await trio.sleep(0.5)
        stream.stall()
        await talker.send("x" * 2000)
        stalled_at = trio.current_time()
        while len(house.node.connections) == 2:
            await trio.sleep(LOOK_SECONDS)
        assert house.ended("no_pong") == 0
        assert house.ended("write_stall") == 1
        assert 8.0 - ROUNDING <= trio.current_time() - stalled_at <= 8.0 + 2 * LOOK_SECONDS
        with pytest.raises(Closed) as closed:
            await listener.receive()
        assert closed.value.code == 1006


async def test_a_stall_shorter_than_the_limit_costs_nothing(autojump_clock: MockClock) -> None:
    """The ping waits behind the backlog for longer than a pong may take, then leaves and is answered."""
    async with open_house() as house:
        listener, stream = await house.connect(capacity=512)
        talker, _ = await house.connect()
        house.connections.start_soon(answer_pings, talker)
        for _ in range(5):
            stream.stall()
            await talker.send("x" * 2000)
            await trio.sleep(7.5)
            stream.resume()
            assert await listener.receive() == "x" * 2000
            with trio.move_on_after(2 * PONG_SECONDS):
                await listener.receive()  # answers the ping
        assert len(house.node.connections) == 2
        assert house.ended("no_pong") == house.ended("write_stall") == 0


async def test_a_ping_that_has_waited_has_its_time_from_then_on(autojump_clock: MockClock) -> None:
    """When it has left at last, the peer has as long to answer as any: its machine has acknowledged nothing yet."""
    async with open_house() as house:
        listener, stream = await house.connect()
        talker, _ = await house.connect()
        house.connections.start_soon(answer_pings, talker)
        await trio.sleep(0.5)
        stream.stall()
        await talker.send("x" * 2000)
        await trio.sleep(7.5)  # a ping is behind that
        (waiting,) = (connection for connection in house.node.connections if connection.outbox.bytes_queued)
        stream.resume()
        await trio.sleep(PONG_SECONDS - 2 * LOOK_SECONDS)
        assert waiting.outbox.bytes_queued == 0
        assert waiting.ended is None
        assert await listener.receive() == "x" * 2000
        with trio.move_on_after(2 * LOOK_SECONDS):
            await listener.receive()  # answers the ping
        await trio.sleep(PONG_SECONDS)
        assert waiting.ended is None


async def test_a_ping_has_its_time_once_the_reader_no_longer_waits(autojump_clock: MockClock) -> None:
    """While its reader pauses for its rate the peer neither reads nor answers; afterwards it does, in time."""
    limits: dict[str, object] = {"publication_bytes_per_second_max": 100, "publication_bytes_burst_max": 100}
    async with open_house(0, **limits) as house:
        peer, _ = await house.connect()
        await peer.send("x" * 1100)
        assert await peer.receive() == "x" * 1100
        (connection,) = house.node.connections
        while not connection.session.handing_over:
            await trio.sleep(LOOK_SECONDS)
        while connection.session.handing_over:
            await trio.sleep(LOOK_SECONDS)
        assert trio.current_time() > PING_SECONDS + 2 * PONG_SECONDS
        await trio.sleep(PONG_SECONDS - 2 * LOOK_SECONDS)
        assert connection.ended is None
        with trio.move_on_after(2 * LOOK_SECONDS):
            await peer.receive()  # answers the ping
        await trio.sleep(PONG_SECONDS)
        assert connection.ended is None


async def test_a_peer_isnt_blamed_while_its_reader_waits_for_the_hub(autojump_clock: MockClock) -> None:
    """Its pong lies unread behind messages that the full inbox can't take: that is our silence, not its."""
    async with open_house(inbox_commands_max=2, pass_commands_max=1) as house:
        peer, _ = await house.connect(capacity=2**16)
        gate = trio.Event()
        take = house.node.inbox.take

        async def gated_take() -> Queued | None:
            await gate.wait()
            return await take()

        with mock.patch.object(house.node.inbox, "take", gated_take):
            texts = [f"message {number}".ljust(RUN_MESSAGE_BYTES_MAX + 1) for number in range(10)]  # each a command
            for text in texts:
                await peer.send(text)
            frames = []
            with trio.move_on_after(10 * (PING_SECONDS + PONG_SECONDS)):
                while True:
                    with contextlib.suppress(trio.TooSlowError):
                        frames.append(await peer.receive_frame())
                        if frames[-1][0] == FIN | PING:
                            await peer.send_frame(PONG, frames[-1][1])
            assert house.node.inbox.statistics().readers_waiting == 1
            assert {first for first, _ in frames} <= {FIN | PING, FIN | 0x1}
            assert len(house.node.connections) == 1
            gate.set()
            seen = [payload.decode() for first, payload in frames if first == FIN | 0x1]
            seen += await peer.receive_texts(len(texts) - len(seen))
        assert seen == texts
        house.connections.start_soon(answer_pings, peer)
        await trio.sleep(60)
        assert len(house.node.connections) == 1
