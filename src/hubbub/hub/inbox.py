"""The hub's inbox: how commands and leaves reach the hub task.

Rules:
1. Commands wait in one memory channel, bounded in commands and in bytes. When it is full the connection's
   reader waits, so TCP slows that publisher down: backpressure. The bytes count until the hub is done with them.
2. A leave can't fail, wait or be lost: it goes onto a plain list, once a subscriber, and wakes the hub.
3. Commands of one connection stay in their order: they are put one after the other. Nobody overtakes for ever: who
   comes while others wait for bytes waits, too. Whatever is done lets as many go on as had put it, and who goes on
   lets another, as long as there is room: or one large command, in whose place there is room for many, would leave
   them waiting one for the other.
4. Short messages that are said one after the other in one room, in one kind, by whomever, are one command while they
   wait, if nobody had to wait to put them: the hub takes one step for all. With another command between them they
   aren't, so order is kept.
5. Questions whose answers may be large take turns (`large_questions`) before they are put: what others say never waits
   for more than a few of them.
"""

import contextlib
from collections.abc import Sequence

import msgspec
import trio

from hubbub.model.command import PublishRun, PublishRuns, Queued
from hubbub.model.subscriber import Subscriber

MESSAGES_PER_COMMAND = 64
"""To how many messages a command grows that others have begun: accepting them takes some 0.1 ms."""

LARGE_QUESTIONS_MAX = 4
"""How many questions with large answers wait at once, on all connections: each may take the hub some 5 ms."""


class InboxStatistics(msgspec.Struct, frozen=True):
    """What waits for the hub at this moment."""

    commands: int
    bytes: int
    leaves: int
    readers_waiting: int


class Inbox:
    """Opened by the node; connections put, the hub task takes.

    Args:
        commands_max: how many commands may wait.
        bytes_max: how many bytes of commands may wait; a single larger command is let in when nothing waits.

    Attributes:
        bytes: of what waits here, of what waits for a place here, and of what the hub has in hand.
        large_questions: to be acquired before such a question is put, and released when it has been answered.
    """

    def __init__(self, commands_max: int, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0
        self.large_questions = trio.Semaphore(LARGE_QUESTIONS_MAX, max_value=LARGE_QUESTIONS_MAX)
        self._put, self._take = trio.open_memory_channel[Queued | None](commands_max)  # None: only a wake-up
        self._space = trio.lowlevel.ParkingLot()
        self._first = trio.lowlevel.ParkingLot()  # whose turn has come, but who want more than there is
        self._crowded = False  # somebody is parked there; to ask the lots costs more than the rest of a put
        self._growing: PublishRuns | None = None  # what was put last, if it can grow and the hub hasn't seen it yet
        self._leaves: list[Subscriber] = []

    def put_nowait(self, command: Queued) -> bool:
        """Hand a command over if there is room, and nobody waits for that; else return False."""
        size = command.size_bytes
        if self._crowded or (self.bytes and self.bytes + size > self._bytes_max):
            return False
        try:
            self._put.send_nowait(command)
        except trio.WouldBlock:
            return False
        self._growing = None
        self.bytes += size
        return True

    def put_run_nowait(self, run: PublishRun) -> bool:
        """As `put_nowait`, for short messages: together with those that were said before, if they can be."""
        size, count, growing = run.size_bytes, len(run.messages), self._growing
        if (
            growing is None
            or growing.room != run.room
            or growing.kind is not run.kind
            or growing.count + count > MESSAGES_PER_COMMAND
        ):
            command = PublishRuns.begin(run)
            if not self.put_nowait(command):
                return False
            self._growing = command
            return True
        if self._crowded or self.bytes + size > self._bytes_max:
            return False
        growing.runs.append(run)
        growing.count += count
        growing.size_bytes += size
        self.bytes += size
        return True

    async def put_run(self, run: PublishRun) -> None:
        """As `put`, for short messages."""
        if not self.put_run_nowait(run):
            await self.put(PublishRuns.begin(run))

    async def put(self, command: Queued) -> None:
        """Hand a command over; waits while the inbox is full. Not a checkpoint when there is room."""
        size = command.size_bytes
        if self._first or self._space:
            await self._park(self._space)  # behind those who wait already, or a large command would wait for ever
        while self.bytes and self.bytes + size > self._bytes_max:
            await self._park(self._first)
        self.bytes += size
        self._growing = None
        try:
            self._put.send_nowait(command)
        except trio.WouldBlock:
            try:
                await self._put.send(command)
            except BaseException:
                self.bytes -= size
                self._let_go_on()  # or nobody would, if these bytes were all that others waited for
                raise
        self._let_go_on()

    def _let_go_on(self) -> None:
        """Let the next one go on that waits for bytes, if there is room."""
        if self.bytes < self._bytes_max:
            (self._first or self._space).unpark()

    async def _park(self, lot: trio.lowlevel.ParkingLot) -> None:
        self._crowded = True
        try:
            await lot.park()
        finally:
            self._crowded = bool(self._first or self._space)

    def leave(self, subscriber: Subscriber) -> None:
        """Say that the subscriber is gone. To be called once; never waits, never fails."""
        self._leaves.append(subscriber)
        if len(self._leaves) == 1:  # else somebody has woken the hub already, and it hasn't looked yet
            self.wake()

    def wake(self) -> None:
        """Make the hub task look: at the leaves, at the clock."""
        with contextlib.suppress(trio.WouldBlock):  # full: the hub has every reason to be awake
            self._put.send_nowait(None)

    async def take(self) -> Queued | None:
        """Wait for a command, or a wake-up (None)."""
        return self._taken(await self._take.receive())

    def take_nowait(self) -> Queued | None:
        """Return a command or a wake-up (None).

        Raises:
            trio.WouldBlock: nothing waits.
        """
        return self._taken(self._take.receive_nowait())

    def _taken(self, command: Queued | None) -> Queued | None:
        if command is self._growing:
            self._growing = None
        return command

    def done(self, commands: Sequence[Queued | None]) -> None:
        """Say that these have been carried out, and need no memory any more."""
        puts = 0
        for command in commands:
            if command is not None:
                self.bytes -= command.size_bytes
                puts += len(command.runs) if type(command) is PublishRuns else 1
        if self._first:
            self._first.unpark()  # the others go on once it has got in
        elif self._space:
            self._space.unpark(count=puts)

    def take_leaves(self) -> list[Subscriber]:
        """Return who has left since the last call."""
        leaves, self._leaves = self._leaves, []
        return leaves

    def statistics(self) -> InboxStatistics:
        """Return what waits."""
        waiting = self._take.statistics()
        return InboxStatistics(
            commands=waiting.current_buffer_used,
            bytes=self.bytes,
            leaves=len(self._leaves),
            readers_waiting=waiting.tasks_waiting_send + len(self._first) + len(self._space),
        )
