"""The hub's inbox: bounds, backpressure, and leaves that can't fail."""

import pytest
import trio
import trio.testing

from hubbub.dialects.plain import PlainDialect
from hubbub.hub.inbox import Inbox
from hubbub.model.command import COMMAND_OVERHEAD_BYTES, Command, Publish
from hubbub.model.publication import Kind
from test_rooms_properties import Ear


def publish(number: int, size: int = 0) -> Publish:
    """Return a command that can be recognised."""
    return Publish(str(number), b"x" * size, Kind.TEXT)


async def take_all(inbox: Inbox) -> list[str]:
    """Return the rooms of the commands that come until nobody has more to put."""
    taken: list[Command | None] = []
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
