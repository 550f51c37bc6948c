"""The outbox against a transport that takes as much as it is told to."""

import contextlib
import random
from collections.abc import AsyncIterator

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from bounded_pipes import PipeStream, PipeTransport, make_pipe
from hubbub.config import Settings
from hubbub.connection.outbox import Outbox, OutboxTotal, State
from hubbub.core.frames import BINARY, encode_close, encode_frame
from hubbub.model.end import End

HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
CLOSE_FRAME = encode_close(1013, "slow consumer")


class Rig:
    """An outbox, its transport, and the peer's side."""

    def __init__(self, nursery: trio.Nursery, limits: Settings, capacity: int) -> None:
        self.transport: PipeTransport
        self.peer: PipeStream
        self.transport, self.peer = make_pipe(random.Random(0), capacity)
        self.ends: list[End] = []
        self.total = OutboxTotal(limits, self.evict)
        self.outbox = Outbox(self.transport, nursery, limits, self.total, self.ends.append)

    def evict(self) -> None:
        """Be over the total."""
        self.outbox.evict()

    async def read(self, count: int) -> bytes:
        """Return the next `count` bytes that the peer gets."""
        data = b""
        while len(data) < count:
            data += await self.peer.receive_some(count - len(data))
        return data


@contextlib.asynccontextmanager
async def open_rig(capacity: int = 100, **limits: object) -> AsyncIterator[Rig]:
    """Run a rig in a nursery of its own."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, Settings(**limits), capacity)  # type: ignore[arg-type]
        yield rig
        rig.outbox.close()
        nursery.cancel_scope.cancel()


def frame(number: int, size: int = 20) -> bytes:
    """Return a frame that can be recognised."""
    return encode_frame(BINARY, f"{number:04}".encode().ljust(size, b"."))


async def test_the_head_goes_before_what_was_offered_earlier() -> None:
    """HELD: nothing is sent; then the 101, then everything in order."""
    async with open_rig() as rig:
        rig.outbox.offer(frame(1))
        rig.outbox.offer(frame(2))
        assert len(rig.peer.inbound) == 0
        rig.outbox.open(HEAD)
        rig.outbox.offer(frame(3))
        expected = HEAD + frame(1) + frame(2) + frame(3)
        assert await rig.read(len(expected)) == expected
        await rig.outbox.flushed()
        assert rig.outbox.bytes_queued == rig.outbox.frames_queued == 0


async def test_nothing_queued_is_sent_without_a_task() -> None:
    """The direct send: what is offered has left when `offer` returns."""
    async with open_rig(capacity=1000) as rig:
        rig.outbox.open(HEAD)
        tasks = trio.lowlevel.current_statistics().tasks_living
        rig.outbox.offer(frame(1))
        assert rig.outbox.bytes_sent == len(HEAD + frame(1)) - rig.outbox.bytes_queued
        while rig.outbox.bytes_queued:  # the pipe takes a random part: then a writer is at it
            await rig.read(1)
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_many_offers_start_one_writer() -> None:
    """The backlog's writer is marked as running before it starts."""
    async with open_rig(capacity=10) as rig:
        before = trio.lowlevel.current_statistics().tasks_living
        rig.outbox.open(HEAD)
        for number in range(50):
            rig.outbox.offer(frame(number))
        assert trio.lowlevel.current_statistics().tasks_living == before + 1
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before + 1
        expected = HEAD + b"".join(frame(number) for number in range(50))
        assert await rig.read(len(expected)) == expected
        await rig.outbox.flushed()


@pytest.mark.parametrize(
    ("limits", "offers", "frames"),
    [({"outbox_bytes_max": 256}, 12, 1), ({"outbox_frames_max": 16}, 17, 1), ({"outbox_frames_max": 16}, 9, 2)],
    ids=["bytes", "frames", "frames by the pair"],
)
async def test_what_waits_is_bounded(limits: dict[str, object], offers: int, frames: int) -> None:
    """An offer is refused once as much waits as may; until then all are taken."""
    async with open_rig(capacity=1, **limits) as rig:
        rig.peer.stall()
        rig.outbox.open(HEAD)
        await trio.testing.wait_all_tasks_blocked()
        head = rig.outbox.bytes_queued
        for number in range(1, 100):
            queued = rig.outbox.bytes_queued - head
            rig.outbox.offer(frame(number) * frames, frames)
            if rig.ends:
                break
        assert rig.ends == [End.SLOW_CONSUMER]
        assert rig.outbox.bytes_queued <= head  # what waited is let go at once
        assert queued == (number - 1) * frames * len(frame(0))
        if "outbox_bytes_max" in limits:
            assert 256 <= queued + head < 256 + len(frame(0))
        else:
            assert number == offers


async def test_a_peer_that_takes_nothing_stalls(autojump_clock: trio.testing.MockClock) -> None:
    """No byte for `write_stall_seconds_max`: the outbox breaks, the backlog is gone, offers do nothing."""
    async with open_rig(capacity=30, write_stall_seconds_max=10.0) as rig:
        rig.outbox.open(HEAD)
        for number in range(5):
            rig.outbox.offer(frame(number))
        await trio.sleep(9)
        assert not rig.ends
        await rig.read(1)
        await trio.sleep(9)
        assert not rig.ends
        await trio.sleep(2)
        assert rig.ends == [End.WRITE_STALL]
        assert rig.outbox.state is State.BROKEN
        rig.outbox.offer(frame(9))
        assert rig.outbox.bytes_queued == 0
        with pytest.raises(trio.BrokenResourceError):
            await rig.outbox.flushed()


async def test_a_broken_transport_is_reported_not_raised() -> None:
    """`offer` never raises: the direct send finds the peer gone, and says so."""
    async with open_rig() as rig:
        rig.outbox.open(HEAD)
        await rig.read(len(HEAD))
        await rig.outbox.flushed()
        rig.peer.reset()
        rig.outbox.offer(frame(1))
        assert rig.ends == [End.PEER_RESET]
        assert rig.outbox.state is State.BROKEN


async def test_after_the_close_nothing_is_taken() -> None:
    """SEALED: what was queued, then the Close, then nothing."""
    async with open_rig(capacity=30) as rig:
        rig.outbox.open(HEAD)
        for number in range(3):
            rig.outbox.offer(frame(number))
        rig.outbox.seal(CLOSE_FRAME)
        rig.outbox.seal(CLOSE_FRAME)
        rig.outbox.offer(frame(4))
        expected = HEAD + frame(0) + frame(1) + frame(2) + CLOSE_FRAME
        assert await rig.read(len(expected)) == expected
        await rig.outbox.flushed()
        assert rig.outbox.is_done
        assert len(rig.peer.inbound) == 0


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@given(
    sizes=st.lists(st.integers(4, 300), min_size=1, max_size=12),
    joined=st.integers(1, 4),
    read_before=st.integers(0, 2000),
    capacity=st.integers(1, 400),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_an_eviction_ends_at_a_frames_end(
    sizes: list[int], joined: int, read_before: int, capacity: int, seed: int
) -> None:
    """Wherever the eviction comes: whole frames from the start of what was offered, then the Close, nothing else."""
    frames = [frame(number, size) for number, size in enumerate(sizes)]

    async def evict() -> bytes:
        async with open_rig(capacity) as rig:
            rig.transport.outbound._rng.seed(seed)
            rig.outbox.open(HEAD)
            got = await rig.read(len(HEAD))
            await rig.outbox.flushed()
            for start in range(0, len(frames), joined):
                piece = frames[start : start + joined]
                rig.outbox.offer(b"".join(piece), len(piece))
            got += await rig.read(min(read_before, sum(map(len, frames))))
            rig.outbox._settings = Settings(outbox_frames_max=0)
            while not rig.ends:  # from here on, anything that waits is as much as may wait
                rig.outbox.offer(frame(9999))
            rig.outbox.offer(frame(9999))
            rig.outbox.seal(CLOSE_FRAME)
            while rig.outbox.bytes_queued or len(rig.peer.inbound):
                if len(rig.peer.inbound):
                    got += await rig.read(1)
                await trio.lowlevel.checkpoint()
            assert rig.outbox.is_done
            assert rig.ends == [End.SLOW_CONSUMER]
            return got

    got = trio.run(evict).removeprefix(HEAD)
    assert got.endswith(CLOSE_FRAME)
    whole = got.removesuffix(CLOSE_FRAME)
    offered = [*frames, *[frame(9999)] * 100]
    assert whole in [b"".join(offered[:count]) for count in range(len(offered) + 1)]


async def test_history_is_no_slowness_but_bounded() -> None:
    """A newcomer's history comes on top of the limits, once: what waits beyond both is refused, and never raises."""
    async with open_rig(capacity=50, outbox_frames_max=10, outbox_bytes_max=10_000) as rig:
        history = b"".join(frame(number) for number in range(100))
        rig.outbox.offer_history(history, 100)
        rig.outbox.offer(frame(100))
        rig.outbox.open(HEAD)
        assert not rig.ends
        expected = HEAD + history + frame(100)
        assert await rig.read(len(expected)) == expected
        rig.peer.stall()
        for number in range(200):
            rig.outbox.offer(frame(number))
        assert rig.ends == [End.SLOW_CONSUMER]
        assert rig.outbox.frames_queued <= 3  # what has begun


@pytest.mark.parametrize("first", [1, 100], ids=["a short one first", "a long one first"])
async def test_one_history_at_a_time_is_no_slowness(first: int) -> None:
    """Who asks for more before it has read that has the privilege for the first one only; afterwards again."""
    long = b"".join(frame(number) for number in range(100))
    async with open_rig(capacity=10_000, outbox_frames_max=10, outbox_bytes_max=1_000) as rig:
        rig.outbox.open(HEAD)
        expected = HEAD
        for _ in range(2):
            await rig.outbox.flushed()
            rig.peer.stall()
            rig.outbox.offer_history(long, 100)
            rig.outbox.offer(frame(100))
            assert not rig.ends
            rig.peer.resume()
            expected += long + frame(100)
            assert await rig.read(len(expected)) == expected
            expected = b""
        await rig.outbox.flushed()
        rig.peer.stall()
        rig.outbox.offer_history(long[: first * len(frame(0))], first)
        rig.outbox.offer_history(long, 100)
        assert not rig.ends
        rig.outbox.offer(frame(100))
        assert rig.ends == [End.SLOW_CONSUMER]


async def test_what_has_been_read_of_a_history_is_no_privilege() -> None:
    """From then on the bound is what it is for everyone, also if something has waited all the while."""
    history = b"".join(frame(number) for number in range(100))
    async with open_rig(capacity=50, outbox_bytes_max=1_000) as rig:
        rig.outbox.open(HEAD)
        rig.outbox.offer_history(history, 100)
        for number in range(10):
            rig.outbox.offer(frame(number))
        assert await rig.read(len(HEAD + history)) == HEAD + history
        rig.peer.stall()
        await trio.testing.wait_all_tasks_blocked()
        waiting = rig.outbox.bytes_queued
        assert 0 < waiting <= 10 * len(frame(0))
        while not rig.ends:
            waiting = rig.outbox.bytes_queued
            rig.outbox.offer(frame(0))
        assert 1_000 <= waiting < 1_000 + len(frame(0))


async def test_evicted_before_the_101() -> None:
    """Who is over the limits while HELD gets the 101 and the Close, and nothing that would leave a gap."""
    async with open_rig(capacity=50, outbox_frames_max=3) as rig:
        for number in range(10):
            rig.outbox.offer(frame(number))
        assert rig.ends == [End.SLOW_CONSUMER]
        rig.outbox.open(HEAD)
        rig.outbox.seal(CLOSE_FRAME)
        assert await rig.read(len(HEAD + CLOSE_FRAME)) == HEAD + CLOSE_FRAME
        await rig.outbox.flushed()
        assert rig.outbox.is_done
