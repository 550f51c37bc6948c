"""The hub's inbox: bounds, backpressure, order, and leaves that can't fail."""

import random
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from hubbub.dialects.plain import PlainDialect
from hubbub.hub.inbox import MESSAGES_PER_COMMAND, Inbox
from hubbub.model.command import COMMAND_OVERHEAD_BYTES, Publish, PublishRun, PublishRuns, Queued
from hubbub.model.publication import Kind, Member
from test_rooms_properties import Ear


def publish(number: int, size: int = 0) -> Publish:
    """Return a command that can be recognised."""
    return Publish(str(number), b"x" * size, Kind.TEXT)


async def take_all(inbox: Inbox) -> list[str]:
    """Return the rooms of the commands that come until nobody has more to put."""
    taken: list[Queued | None] = []
    while True:
        await trio.testing.wait_all_tasks_blocked()
        try:
            taken.append(inbox.take_nowait())
            inbox.done(taken[-1:])
        except trio.WouldBlock:
            return [command.room for command in taken if isinstance(command, Publish)]


@pytest.mark.parametrize(
    ("commands_max", "bytes_max", "fits"),
    [(3, 10**6, 3), (100, 4 * (COMMAND_OVERHEAD_BYTES + 10), 4)],
    ids=["commands", "bytes"],
)
async def test_a_full_inbox_makes_its_putters_wait_in_order(commands_max: int, bytes_max: int, fits: int) -> None:
    """Backpressure; and first come, first served."""
    inbox = Inbox(commands_max, bytes_max)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(inbox.put, publish(number, 10))
            await trio.testing.wait_all_tasks_blocked()
        statistics = inbox.statistics()
        assert (statistics.commands, statistics.readers_waiting) == (fits, 8 - fits)
        assert await take_all(inbox) == [str(number) for number in range(8)]
    assert inbox.statistics().bytes == 0


async def test_a_large_command_is_let_in_alone() -> None:
    """One that is over the limit by itself waits for an empty inbox, not for ever."""
    inbox = Inbox(10, 1000)
    await inbox.put(publish(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, publish(2, 5000))
        assert await take_all(inbox) == ["1", "2"]


@pytest.mark.parametrize("joins", [False, True], ids=["a command of its own", "more of one that waits"])
async def test_nobody_overtakes_who_waits_for_bytes(joins: bool) -> None:
    """Small ones that come again and again would fit, and would keep a large one out for ever: they wait behind it."""
    run = run_of(0, 0, "red", Kind.TEXT, 1)
    inbox = Inbox(100, 4 * run.size_bytes)
    assert inbox.put_run_nowait(run)
    assert inbox.put_run_nowait(run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, publish(1, 3 * run.size_bytes))
        await trio.testing.wait_all_tasks_blocked()
        if joins:
            assert not inbox.put_run_nowait(run)
        else:
            assert not inbox.put_nowait(publish(2))
            nursery.start_soon(inbox.put, publish(2))
        await trio.testing.wait_all_tasks_blocked()
        inbox.done([inbox.take_nowait()])
        assert sorted(await take_all(inbox)) == (["1"] if joins else ["1", "2"])
    assert inbox.put_nowait(publish(3)), "nobody waits any more"


@pytest.mark.parametrize("by", ["commands", "bytes"])
async def test_a_cancelled_put_gives_everything_back(by: str) -> None:
    """The command isn't in the inbox, its bytes don't count, and those behind it go on."""
    inbox = Inbox(1, 10**6) if by == "commands" else Inbox(100, COMMAND_OVERHEAD_BYTES + 1)
    await inbox.put(publish(1))
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await inbox.put(publish(2))

        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(inbox.put, publish(3))
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        assert await take_all(inbox) == ["1", "3"]
    assert inbox.statistics().bytes == 0


async def test_who_waits_for_one_that_gives_up_goes_on() -> None:
    """Though nothing is in the inbox, and so nothing will be done that would let it."""
    inbox = Inbox(1, 10 * COMMAND_OVERHEAD_BYTES)
    inbox.wake()  # takes the only place
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await inbox.put(publish(1, 9 * COMMAND_OVERHEAD_BYTES))

        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        for number in (2, 3, 4):
            nursery.start_soon(inbox.put, publish(number))
            await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        inbox.done([inbox.take_nowait()])
        assert await take_all(inbox) == ["2", "3", "4"]
        nursery.cancel_scope.cancel()
    assert inbox.statistics().bytes == 0


async def test_many_go_on_where_one_large_command_was() -> None:
    """And the inbox is what it was before that: it isn't emptied one command at a time ever after."""
    inbox = Inbox(100, 20 * COMMAND_OVERHEAD_BYTES)
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(inbox.put, publish(number, 15 * COMMAND_OVERHEAD_BYTES))
            await trio.testing.wait_all_tasks_blocked()
        for number in range(2, 30):
            nursery.start_soon(inbox.put, publish(number))
            await trio.testing.wait_all_tasks_blocked()
        held = list[int]()
        for _ in range(10):
            held.append(inbox.statistics().commands)
            inbox.done([inbox.take_nowait() for _ in range(held[-1])])
            for number in range(2):  # there are always some who come
                nursery.start_soon(inbox.put, publish(number))
            await trio.testing.wait_all_tasks_blocked()
        assert held == [1, 5, 20, 10, 2, 2, 2, 2, 2, 2]
        assert inbox.put_nowait(publish(100)), "nobody waits any more"


async def test_a_large_command_has_its_turn_among_small_ones(nursery: trio.Nursery) -> None:
    """Once its turn has come it keeps it until there is room, however many smaller ones would fit meanwhile."""
    inbox, speakers = Inbox(commands_max=1000, bytes_max=100_000), 300

    async def speak() -> None:
        while True:
            await inbox.put(publish(0, 1_000))
            await trio.lowlevel.checkpoint()

    large = publish(1, 50_000)
    for _ in range(speakers):
        nursery.start_soon(speak)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(inbox.put, large)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(speakers + 100):  # those who were there before, and room for itself
        command = await inbox.take()
        await trio.testing.wait_all_tasks_blocked()
        inbox.done([command])
        if command is large:
            break
    else:
        pytest.fail("overtaken without end")


async def test_a_leave_wakes_the_hub_and_fits_a_full_inbox() -> None:
    """Never waits, never fails; the wake-up is lost only where the hub is awake anyway."""
    inbox = Inbox(1, 10**6)
    ear = Ear(PlainDialect())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.take)
        await trio.testing.wait_all_tasks_blocked()
        inbox.leave(ear)
    assert inbox.take_leaves() == [ear]
    await inbox.put(publish(1))
    inbox.leave(ear)
    assert inbox.take_leaves() == [ear]
    assert inbox.take_leaves() == []


# -- short messages

EARS = [Ear(PlainDialect()) for _ in range(3)]
ROOMS = ("red", "blue")


def run_of(number: int, ear: int, room: str, kind: Kind, count: int) -> PublishRun:
    """Return messages that can be recognised."""
    messages = [b"%d.%d" % (number, index) for index in range(count)]
    return PublishRun(room, messages, sum(map(len, messages)), kind, Member("", str(ear)), EARS[ear])


def said(commands: Sequence[Queued | None]) -> list[tuple[str, Kind, object, bytes]]:
    """Return what is said by them: room, kind, by whom, and the message."""
    found: list[tuple[str, Kind, object, bytes]] = []
    for command in commands:
        if isinstance(command, Publish):
            found.append((command.room, command.kind, command.asker, command.data))
        elif isinstance(command, PublishRuns):
            assert command.count == sum(len(run.messages) for run in command.runs)
            for run in command.runs:
                assert (run.room, run.kind) == (command.room, command.kind)
                found += [(run.room, run.kind, run.asker, message) for message in run.messages]
    return found


PUTS = st.tuples(
    st.sampled_from(["run", "run", "run", "publish", "wake"]),
    st.integers(0, 2),
    st.sampled_from(ROOMS),
    st.sampled_from([Kind.TEXT, Kind.TEXT, Kind.BINARY]),
    st.integers(1, 40),
)


@settings(deadline=None)
@given(
    puts=st.lists(PUTS, min_size=1, max_size=30),
    commands_max=st.sampled_from([1, 2, 100]),
    bytes_max=st.sampled_from([3 * COMMAND_OVERHEAD_BYTES, 10**6]),
    seed=st.integers(0, 2**32),
)
def test_messages_that_travel_together_stay_in_order(
    puts: list[tuple[str, int, str, Kind, int]], commands_max: int, bytes_max: int, seed: int
) -> None:
    """Whoever waits, and whenever the hub takes: all that anyone says arrives once, in the order in which it said it.

    Where nobody has to wait, that is also the order in which all together said it.
    """
    rng, taken, put = random.Random(seed), list[Queued | None](), list[Queued]()
    waited = False

    async def speak(inbox: Inbox, ear: int) -> None:
        nonlocal waited
        for number, (what, who, room, kind, count) in enumerate(puts):
            if who != ear:
                continue
            if what == "wake":
                inbox.wake()
            elif what == "publish":
                command = Publish(room, b"%d" % number, kind, asker=EARS[ear])
                if not inbox.put_nowait(command):
                    waited = True
                    await inbox.put(command)
                put.append(command)
            else:
                run = run_of(number, ear, room, kind, count)
                if not inbox.put_run_nowait(run):
                    waited = True
                    await inbox.put_run(run)
                put.append(PublishRuns(room, kind, [run], count, 0))
            if rng.random() < 0.5:
                await trio.sleep(rng.random())

    async def main() -> None:
        inbox = Inbox(commands_max, bytes_max)

        async def take() -> None:
            while True:
                some = [await inbox.take()]
                while rng.random() < 0.7:
                    try:
                        some.append(inbox.take_nowait())
                    except trio.WouldBlock:
                        break
                if rng.random() < 0.3:
                    await trio.sleep(rng.random() * 3)
                taken.extend(some)
                inbox.done(some)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            async with trio.open_nursery() as speakers:
                for ear in range(3):
                    speakers.start_soon(speak, inbox, ear)
            await trio.sleep(100)
            assert inbox.statistics().bytes == inbox.statistics().commands == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for ear in EARS:
        assert [each for each in said(taken) if each[2] is ear] == [each for each in said(put) if each[2] is ear]
    if not waited:
        assert said(taken) == said(put)
    for command in taken:
        if isinstance(command, PublishRuns) and len(command.runs) > 1:
            assert command.count <= MESSAGES_PER_COMMAND


async def test_what_nothing_comes_between_travels_together() -> None:
    """One room, one kind: one command, up to its bound, and not once it has been taken."""
    inbox = Inbox(100, 10**6)
    runs = [run_of(number, number % 3, "red", Kind.TEXT, 20) for number in range(4)]
    for run in runs:
        assert inbox.put_run_nowait(run)
    first = inbox.take_nowait()
    second = inbox.take_nowait()
    assert isinstance(first, PublishRuns)
    assert isinstance(second, PublishRuns)
    assert (first.runs, second.runs) == (runs[:3], runs[3:])
    assert inbox.put_run_nowait(runs[0])
    assert second.runs == runs[3:]
    third = inbox.take_nowait()
    inbox.done([first, second, third])
    assert inbox.statistics().bytes == 0


async def test_as_many_go_on_as_had_put_what_is_done() -> None:
    """Though it was one command: or, once it is crowded, it would be drained one message at a time."""
    run = run_of(0, 0, "red", Kind.TEXT, 1)
    inbox = Inbox(100, 10 * run.size_bytes)
    for _ in range(10):
        assert inbox.put_run_nowait(run)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(inbox.put_run, run)
        await trio.testing.wait_all_tasks_blocked()
        assert inbox.statistics().readers_waiting == 10
        inbox.done([inbox.take_nowait()])
        await trio.testing.wait_all_tasks_blocked()
        assert inbox.statistics().readers_waiting == 0
        assert len(said([inbox.take_nowait() for _ in range(10)])) == 10


async def test_many_leaves_are_one_wake_up() -> None:
    """They take no places of commands; and each one after the hub has looked wakes it again."""
    inbox = Inbox(100, 10**6)
    for _ in range(2):
        for ear in EARS:
            inbox.leave(ear)
        assert inbox.statistics().commands == 1
        assert await inbox.take() is None
        assert inbox.take_leaves() == EARS


async def test_who_joins_others_waits_for_bytes_as_they_do() -> None:
    """To travel together is no way around the bound."""
    run = run_of(0, 0, "red", Kind.TEXT, 2)
    inbox = Inbox(100, 2 * run.size_bytes)
    assert inbox.put_run_nowait(run)
    assert inbox.put_run_nowait(run)
    assert not inbox.put_run_nowait(run)
    assert inbox.statistics().bytes == 2 * run.size_bytes
