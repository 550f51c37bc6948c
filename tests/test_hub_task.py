"""The hub task beside others: how much it does before they may run, and what it waits for before it hands out.

The clock stands still but for what a test says that something takes.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from hubbub.config import Settings
from hubbub.dialects.plain import PlainDialect
from hubbub.engines.memory import MemoryEngine
from hubbub.hub.inbox import MESSAGES_PER_COMMAND
from hubbub.hub.task import COMMANDS_PER_LOOK, GATHER_SECONDS_MAX, OFFERS_PER_CHECKPOINT, let_others_run, run_hub
from hubbub.model.command import Publish, PublishRun, Queued, Subscribe, Tell
from hubbub.model.publication import Kind
from hubbub.node import Node
from outlets import OnlyOffers
from test_rooms_properties import Ear

ROUNDING = 1e-6
EAR = Ear(PlainDialect())


class Steps(trio.abc.Instrument):
    """What is done in one step of a task: other tasks wait for that, and for no more.

    Attributes:
        done: what has been counted by `count`, altogether.
        most: of that, in one step.
        longest: the seconds that a step has taken.
    """

    def __init__(self) -> None:
        self.done = self.most = self._before = 0
        self.longest = self._since = 0.0

    def count(self, count: int = 1) -> None:
        """Count what is being done."""
        self.done += count

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step begins."""
        self._before, self._since = self.done, trio.current_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It is over."""
        self.most = max(self.most, self.done - self._before)
        self.longest = max(self.longest, trio.current_time() - self._since)


@contextlib.asynccontextmanager
async def open_hub(look: Callable[[], bool] = let_others_run, **limits: object) -> AsyncIterator[Node]:
    """Run the hub task of a node, and nothing else of it."""
    settings = Settings(**{"insecure": True, **limits})  # type: ignore[arg-type]
    node = Node(settings, random.Random(0), None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_hub, node.hub, node.inbox, settings, look)
        yield node
        nursery.cancel_scope.cancel()


async def carry_out(node: Node, commands: list[Queued], steps: Steps) -> None:
    """Have the hub find all of these at once; see in what steps it deals with them."""
    trio.lowlevel.add_instrument(steps)
    for command in commands:
        assert node.inbox.put_nowait(command)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(steps)


def join(room: str, hear: Callable[[int], None]) -> Subscribe:
    """Return a command that makes somebody be there; `hear` is told how many frames each piece has that comes."""
    ear = Ear(PlainDialect())
    ear.outlet = OnlyOffers(lambda _, frames: hear(frames))
    return Subscribe(ear, room, ear.reply)


def say(text: str = "x") -> Publish:
    """Return a command that says it in the room."""
    return Publish("room", text.encode(), Kind.TEXT)


# -- before others may run


@pytest.mark.parametrize("rooms", [1, 7])
async def test_a_step_makes_so_many_offers(rooms: int, mock_clock: MockClock) -> None:
    """However many are to get it, in one room or several."""
    steps = Steps()
    async with open_hub() as node:
        await carry_out(node, [join(str(n % rooms), lambda _: steps.count()) for n in range(1400)], Steps())
        await carry_out(node, [Publish(str(room), b"x", Kind.TEXT) for room in range(rooms)], steps)
    assert steps.done == 1400
    assert steps.most <= OFFERS_PER_CHECKPOINT


async def test_a_step_takes_pass_seconds_max(mock_clock: MockClock) -> None:
    """Looked at before each command that isn't a publication: any may take long."""
    steps = Steps()

    def act() -> None:
        mock_clock.jump(0.001)
        steps.count()

    async with open_hub(pass_seconds_max=0.01) as node:
        await carry_out(node, [Tell(EAR, act)] * 200, steps)
    assert steps.done == 200
    assert 0.01 - ROUNDING <= steps.longest <= 0.01 + 0.001 + ROUNDING


async def test_a_step_takes_pass_seconds_max_and_some_publications(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among these, the clock is looked at now and then."""
    steps, append = Steps(), MemoryEngine.append

    def slow(*what: object) -> object:
        mock_clock.jump(0.001)
        steps.count()
        return append(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryEngine, "append", slow)
    async with open_hub(pass_seconds_max=0.01) as node:
        await carry_out(node, [say()] * 500, steps)
    assert steps.done == 500
    assert steps.longest <= 0.01 + COMMANDS_PER_LOOK * 0.001 + ROUNDING


async def test_a_pass_has_pass_commands_max(mock_clock: MockClock) -> None:
    """Though none takes any time: what they did is handed out after so many, and others run."""
    steps, pieces = Steps(), list[int]()
    async with open_hub(pass_commands_max=100) as node:
        await carry_out(node, [join("room", pieces.append)], Steps())
        await carry_out(node, [Tell(EAR, steps.count)] * 950, steps)
        await carry_out(node, [say()] * 950, Steps())
    assert (steps.done, steps.most) == (950, 100)
    assert pieces == [*[100] * 9, 50]


async def test_messages_that_are_one_command_count_each(mock_clock: MockClock) -> None:
    """A pass ends with the command in which there are as many as may be."""
    pieces: list[int] = []
    async with open_hub(pass_commands_max=100) as node:
        await carry_out(node, [join("room", pieces.append)], Steps())
        for _ in range(1000):
            assert node.inbox.put_run_nowait(PublishRun("room", [b"x"], 1, Kind.TEXT, EAR.member, EAR))
        await trio.testing.wait_all_tasks_blocked()
    assert sum(pieces) == 1000
    assert max(pieces) < 100 + MESSAGES_PER_COMMAND


# -- gathering


async def test_what_comes_meanwhile_is_handed_out_with_it(mock_clock: MockClock) -> None:
    """The hub looks again as long as that brings something, and once more."""
    pieces: list[int] = []
    looks = still_to_come = 0

    def look() -> bool:
        nonlocal looks, still_to_come
        looks += 1
        if still_to_come:
            still_to_come -= 1
            assert node.inbox.put_nowait(say())
        return False

    async with open_hub(look) as node:
        await carry_out(node, [join("room", pieces.append)], Steps())
        looks, still_to_come = 0, 5
        await carry_out(node, [say()], Steps())
    assert pieces == [1 + 5]
    assert looks == 5 + 1


@pytest.mark.parametrize(("seconds", "looks"), [(0.0, 16), (0.0005, round(GATHER_SECONDS_MAX / 0.0005))])
async def test_gathering_ends(seconds: float, looks: int, mock_clock: MockClock) -> None:
    """After gather_passes_max looks, or that time, though each has brought something."""
    pieces: list[int] = []
    brings = False

    def look() -> bool:
        mock_clock.jump(seconds)
        if brings:
            assert node.inbox.put_nowait(say())
        return False

    async with open_hub(look, gather_passes_max=16) as node:
        await carry_out(node, [join("room", pieces.append)], Steps())
        brings = True
        await carry_out(node, [say()], Steps())
    (piece,) = pieces
    assert looks <= piece - 1 <= looks + 1  # the clock may be a rounding error short
