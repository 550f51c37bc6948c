"""Taking turns, and that what has ended is freed without the garbage collector."""

import gc
import weakref
from collections.abc import Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from hubbub.connection.connection import PATIENCE_MIN
from hubbub.connection.turnstile import AT_ONCE, Turnstile
from hubbub.model.command import Publish
from hubbub.model.end import End
from hubbub.model.publication import Kind
from peers import Peer, client_frame, close_payload
from servers import until_quiet
from test_heartbeat import open_house
from worlds import KINDS, World, open_world

CROWD = 10 * AT_ONCE + 3


async def test_a_crowd_goes_through_in_order_a_few_in_a_pass(nursery: trio.Nursery) -> None:
    turnstile = Turnstile()
    nursery.start_soon(turnstile.keep)
    passed: list[int] = []
    waiting = [trio.Event() for _ in range(CROWD)]

    async def go(number: int) -> None:
        await waiting[number].wait()
        await turnstile.pass_through()
        passed.append(number)

    for number in range(CROWD):
        nursery.start_soon(go, number)
    await trio.testing.wait_all_tasks_blocked()
    for event in waiting:
        event.set()  # all at one moment, in any order
    before, most, passes = 0, 0, 0
    with trio.fail_after(5):
        while len(passed) < CROWD:
            await trio.lowlevel.checkpoint()
            most, before, passes = max(most, len(passed) - before), len(passed), passes + 1
    assert sorted(passed) == list(range(CROWD))
    assert most <= 2 * AT_ONCE  # a look may fall before one pass's turn and after the next one's
    assert passes >= CROWD // AT_ONCE / 2


async def test_nobody_waits_when_it_is_quiet(nursery: trio.Nursery) -> None:
    """Alone one goes through at once, without a checkpoint: again and again."""
    turnstile = Turnstile()
    nursery.start_soon(turnstile.keep)
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(AT_ONCE):
            with trio.testing.assert_no_checkpoints():
                await turnstile.pass_through()


async def test_who_gives_up_takes_nobodys_turn(nursery: trio.Nursery) -> None:
    turnstile = Turnstile()
    nursery.start_soon(turnstile.keep)
    for _ in range(AT_ONCE):
        await turnstile.pass_through()
    with trio.move_on_after(0):
        await turnstile.pass_through()
    with trio.fail_after(5):
        await turnstile.pass_through()


class Passes(trio.abc.Instrument):
    """How much less there is of something after a pass of the scheduler.

    Attributes:
        most: in one pass.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._before = count()
        self.most = 0

    def before_io_wait(self, timeout: float) -> None:
        """A pass is over."""
        now = self._count()
        self.most, self._before = max(self.most, self._before - now), now


async def test_who_breaks_under_one_broadcast_goes_in_turn(autojump_clock: trio.testing.MockClock) -> None:
    """The hub finds all of them gone in one hand-out, and their readers don't: each ending takes its turn."""
    async with open_house() as house:
        for _ in range(6 * AT_ONCE):
            _, stream = await house.connect()
            stream.inbound.change(broken=True)
        connections = house.node.connections
        assert len(connections) == 6 * AT_ONCE
        passes = Passes(lambda: len(connections))
        trio.lowlevel.add_instrument(passes)
        assert house.node.inbox.put_nowait(Publish("chat", b"x", Kind.TEXT))
        while len(connections):
            await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(passes)
        await until_quiet(house.node)
        assert house.ended("peer_reset") == 6 * AT_ONCE
    assert passes.most <= 2 * AT_ONCE  # some before the keeper's turn in a pass, some after


async def end(peer: Peer, how: str) -> None:
    """End it like this, and wait for the server's side of it."""
    if how == "close":
        await peer.send_raw(client_frame(8, close_payload(1000)))
    elif how == "refused":
        await peer.send_raw(client_frame(3, b"x"))
    if how == "left":
        assert isinstance(peer.stream, trio.SocketStream)
        await peer.stream.aclose()
    else:
        await peer.receive_until_closed()


async def reference_to_the_only_connection(world: World) -> "weakref.ref[object]":
    """The collector finds it by a part of it that can be referred to weakly: its task in the node."""
    (connection,) = world.node.connections
    return weakref.ref(connection.outbox._nursery)


@pytest.mark.parametrize(
    ("kind", "how"), [*((kind, how) for kind in KINDS for how in ("close", "refused")), ("tcp", "left")]
)
async def test_what_has_ended_needs_no_collector(kind: str, how: str) -> None:
    """Whatever would be left to the collector makes its passes long: they stop everything."""
    async with open_world(kind) as world:
        peer = await world.open_peer()
        await peer.send("hello")
        await peer.receive()
        reference = await reference_to_the_only_connection(world)
        gc.disable()
        try:
            await end(peer, how)
            with trio.fail_after(5):
                while reference() is not None:
                    await trio.sleep(0.01)
        finally:
            gc.enable()


async def test_who_comes_waits_for_nobody_who_goes() -> None:
    async with open_house() as house:
        for _ in range(200 * AT_ONCE):
            house.connections.start_soon(house.node.exits.pass_through)
        await house.connect()
        assert len(house.connections.child_tasks) > 100 * AT_ONCE  # of those who go, most still wait


async def test_goodbyes_that_nobody_answers_are_not_given_up_in_one_moment(autojump_clock: MockClock) -> None:
    async with open_house(close_seconds_max=10.0, ping_seconds=1000.0) as house:
        peers = [await house.connect() for _ in range(50)]
        start = trio.current_time()
        for connection in house.node.connections:
            connection.end(End.ROOM_ENDED)
        given_up: list[float] = []
        while house.node.connections:
            before = len(house.node.connections)
            await trio.sleep(0.05)
            given_up += [trio.current_time() - start] * (before - len(house.node.connections))
        assert len(given_up) == len(peers)
        assert 10.0 * PATIENCE_MIN <= min(given_up) <= max(given_up) <= 10.1
        assert max(map(given_up.count, given_up)) < len(peers) / 5
