"""Exhaustive cancellation: a connection is cut off at each step of its life, and nothing of it is left (P7).

A life is lived once under a fixed schedule, counting each time that Trio runs a task of that connection. Then it is
lived again for each of these steps, with a cancellation, a reset or an end of the stream landing right before it, or
right after it: in between, other tasks may have run.
"""

import contextlib
import os
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from bounded_pipes import PipeStream, make_pipe, make_watch
from hubbub.config import Settings
from hubbub.core.frames import CLOSE, CONTINUATION, PING, TEXT
from hubbub.node import Node, open_node
from peers import Closed, HandshakeRefused, Peer, client_frame, close_payload, handshake, shake_hands
from servers import leftovers
from simulation.world import captured_log, run_seeded

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

SCHEDULES = range(int(os.environ.get("CANCELLATION_SCHEDULES", "1")))
RUNS_MAX = 200
"""Of each life, way to cut it off and schedule; where a life has more moments they are sampled evenly."""

LIFE_SECONDS_MAX = 30.0
QUIET_SECONDS = 15.0
"""Longer than all deadlines of a connection one after the other."""

SETTINGS = Settings(
    control_frames_per_second_max=1_000_000,
    head_seconds_max=3.0,
    message_bytes_max=4096,
    outbox_bytes_max=8192,
    write_stall_seconds_max=2.0,
    inbox_commands_max=4,
    history_size=16,
    ping_seconds=2.0,
    pong_seconds_max=1.0,
    close_seconds_max=1.0,
    linger_seconds_max=0.5,
)

GONE = (Closed, HandshakeRefused, trio.BrokenResourceError, trio.TooSlowError)
"""What a client sees when its connection has been cut off."""


class Moments(trio.abc.Instrument):
    """Counts the moments before and after each step of a task and its descendants; calls `strike` at one of them.

    Args:
        at: the number of that moment, from 0; None never strikes.
    """

    def __init__(self, at: int | None) -> None:
        self.count = 0
        self.root: trio.lowlevel.Task | None = None
        self.strike: Callable[[], None] = lambda: None
        self._at = at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and strike."""
        if self.root is not None and self._belongs(task):
            if self.count == self._at:
                self.strike()
            self.count += 1

    after_task_step = before_task_step

    def _belongs(self, task: trio.lowlevel.Task) -> bool:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None and ancestor is not self.root:
            ancestor = ancestor.parent_nursery.parent_task if ancestor.parent_nursery else None
        return ancestor is not None


class Bystander:
    """A good client in the same room, which sees everything."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.texts: list[str] = []
        self.closed: Closed | None = None
        self._said = 0

    async def read(self) -> None:
        """Read and answer pings until the connection ends."""
        while self.closed is None:
            try:
                self.texts.append(str(await self.peer.receive()))
            except trio.TooSlowError:
                continue
            except Closed as closed:
                self.closed = closed

    async def say(self, size: int = 0) -> None:
        """Publish the next of its messages."""
        self._said += 1
        await self.peer.send(f"bystander {self._said} " + "." * size)

    def check(self) -> None:
        """It is connected, and has seen each message once: all its own, and the first ones of the other."""
        assert self.closed is None, f"the bystander was cut off: {self.closed}"
        own = [text.split()[1] for text in self.texts if text.startswith("bystander ")]
        assert own == [str(number + 1) for number in range(self._said)]
        others = [text.split()[1] for text in self.texts if not text.startswith("bystander ")]
        assert others == [str(number + 1) for number in range(len(others))]
        assert len(own) + len(others) == len(self.texts)


class Scene(msgspec.Struct):
    """Where a life is lived."""

    node: Node
    stream: PipeStream
    bystander: Bystander


Life = Callable[[Scene], Awaitable[None]]


async def live_well(scene: Scene) -> None:
    """Connect with history, publish in every way, ping, stall, read on, close in good order."""
    stream, bystander = scene.stream, scene.bystander
    early = client_frame(TEXT, b"subject 1")
    peer = await shake_hands(stream, handshake("/chat?history=2") + early)
    await peer.send("subject 2")
    await peer.send_frame(TEXT, b"subject", fin=False)
    await peer.send_frame(PING, b"between")
    await peer.send_raw(client_frame(CONTINUATION, b" 3") + client_frame(TEXT, b"subject 4") + client_frame(PING, b"p"))
    await peer.receive_texts(5)
    stream.stall()
    for _ in range(3):
        await bystander.say(1200)
    await trio.sleep(1)
    await peer.send("subject 5")
    stream.resume()
    await peer.receive_texts(4)
    with trio.move_on_after(3):
        await peer.receive()  # answers pings
    await bystander.say()
    assert (await peer.receive_texts(1))[0].startswith("bystander")
    await bystander.say()
    messages, closed = await peer.close()
    assert len(messages) <= 1
    assert closed.code == 1000


async def be_evicted(scene: Scene) -> None:
    """Take nothing until the outbox is over its limit; read on in time to be told."""
    peer = await shake_hands(scene.stream, handshake())
    await peer.send("subject 1")
    scene.stream.stall()
    for _ in range(8):
        await scene.bystander.say(2500)
    await trio.sleep(0.5)
    scene.stream.resume()
    _, closed = await peer.receive_until_closed()
    assert closed.code == 1013
    scene.stream.end()


async def break_the_rules(scene: Scene) -> None:
    """Send messages that take the long way, then one that is too large, in one piece."""
    peer = await shake_hands(scene.stream, handshake())
    fragments = client_frame(TEXT, b"subj", fin=False) + client_frame(CONTINUATION, b"ect 1")
    pings = b"".join(client_frame(PING, b"%d" % number) for number in range(3))
    large = client_frame(TEXT, b"x" * 5000)
    await peer.send_raw(fragments + pings + large + fragments + client_frame(TEXT, b"not seen"))
    _, closed = await peer.receive_until_closed()
    assert closed.code == 1009
    scene.stream.end()


async def say_nothing(scene: Scene) -> None:
    """Fall silent until the heartbeat finds it, and don't answer the Close either."""
    peer = await shake_hands(scene.stream, handshake())
    await peer.send("subject 1")
    first = 0
    while first & 0x0F != CLOSE:
        first, payload = await peer.receive_frame()
    assert payload == close_payload(1011, "no pong")
    await trio.sleep(5)


async def flood(scene: Scene) -> None:
    """Send more at once than the hub's inbox takes, then the end of the stream."""
    peer = await shake_hands(scene.stream, handshake())
    await peer.send_raw(b"".join(client_frame(TEXT, b"subject %d" % (number + 1)) for number in range(12)))
    await peer.receive_texts(12)
    scene.stream.end()
    _, closed = await peer.receive_until_closed()
    assert closed.code == 1006


LIVES: list[Life] = [live_well, be_evicted, break_the_rules, say_nothing, flood]


def run_life(life: Life, way: str, schedule: int, at: int | None) -> int:
    """Live one life, cut off at moment `at` in that way; check everything, and return how many moments it had."""
    moments = Moments(at)
    entries: list[dict[str, object]] = []

    async def main() -> None:
        rng = random.Random(1)
        watch = make_watch(rng)
        async with open_node(SETTINGS, random.Random(2), watch.poller) as (node, connections):
            transport, bystanders_stream = make_pipe(rng, watch=watch)
            connections.start_soon(node.front_door.serve, transport, "bystander", "localhost")
            bystander = Bystander(await shake_hands(bystanders_stream, handshake()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bystander.read)
                await bystander.say()
                await trio.testing.wait_all_tasks_blocked()
                tasks, left = _tasks(), leftovers(node)

                transport, stream = make_pipe(rng, 1024, watch)
                scope = trio.CancelScope()
                moments.strike = {"cancel": scope.cancel, "reset": stream.reset, "end": stream.end}[way]

                async def serve() -> None:
                    moments.root = trio.lowlevel.current_task()
                    with scope:
                        await node.front_door.serve(transport, "subject", "localhost")

                connections.start_soon(serve)
                with contextlib.ExitStack() as expected:
                    if at is not None:
                        expected.enter_context(contextlib.suppress(*GONE, AssertionError))
                    expected.enter_context(trio.fail_after(LIFE_SECONDS_MAX))
                    await life(Scene(node, stream, bystander))
                stream.resume()
                await trio.sleep(QUIET_SECONDS)
                moments.root = None
                await bystander.say()
                await trio.testing.wait_all_tasks_blocked()

                bystander.check()
                assert leftovers(node) == left, "something of the subject is left"
                assert _tasks() == tasks, "a task of the subject is left"
                assert len(node.connections) == 1
                assert transport.closed
                figures = node.metrics.text().decode().splitlines()
                assert "hubbub_internal_errors_total 0.0" in figures
                assert "hubbub_rooms_failed_total 0.0" in figures
                assert all(entry["level"] in ("debug", "info") for entry in entries), entries
                nursery.cancel_scope.cancel()
            connections.cancel_scope.cancel()

    with captured_log(entries):
        run_seeded(schedule, main, moments)
    return moments.count


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("life", LIVES, ids=[life.__name__ for life in LIVES])
@pytest.mark.parametrize("way", ["cancel", "reset", "end"])
def test_a_life_can_be_cut_off_at_any_moment(life: Life, way: str) -> None:
    """Nothing is left, nobody else notices, nothing is logged as an internal error."""
    for schedule in SCHEDULES:
        count = run_life(life, way, schedule, None)
        assert count > 40
        for at in (
            range(count) if count <= RUNS_MAX else sorted({index * count // RUNS_MAX for index in range(RUNS_MAX)})
        ):
            try:
                run_life(life, way, schedule, at)
            except Exception as error:
                about = f"run_life({life.__name__}, {way!r}, {schedule}, {at}) of {count} moments"
                raise AssertionError(f"{about} breaks something: {error!r}") from error


def test_one_schedule_is_one_life() -> None:
    """The moments of a life are the same each time, so that moment k means the same in each run."""
    assert len({run_life(live_well, "cancel", 0, None) for _ in range(3)}) == 1
