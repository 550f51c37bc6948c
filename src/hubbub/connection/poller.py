"""The poller: reads, for all connections, what has just come in. The way in that mirrors the outbox's direct send.

To wait for a socket by Trio costs a system call, a turn of its scheduler and one of the task, for every message: a
third of what a short one costs altogether. So sockets are watched here, and a message for which nobody has to wait is
taken at once (`take`), without waking the connection's task. Whatever isn't that simple wakes it.

Rules:
1. A socket is registered once, edge-triggered: the kernel tells when something has come, and isn't asked again.
2. Nothing is read, or taken, for a task unless it waits in `receive_some`: one that is busy with what came before, or
   waits for the hub, isn't overtaken, and TCP slows its peer down.
3. `take` deals with all that was read, or touches nothing: then the task gets it.
4. An edge is told once. So it is remembered until a read comes back short of what it asked for. From the peer's end on,
   or once it has sent urgent data, where reads are cut short, that is no sign: until the kernel says it has no more.
5. A failure is that connection's alone, whoever's task finds it.

Where there is no epoll (macOS, BSD), and over TLS, tasks wait by Trio as usual.

epoll(7), "Level-triggered and edge-triggered".
"""

import contextlib
import select
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Protocol, TypeAlias

import structlog
import trio

from hubbub.connection.bell import Bell

RECEIVE_BYTES = 64 * 1024
"""What a task reads at a time."""

LOOK_BYTES = 16 * 1024
"""What is read for a task that waits: more would wait in its hands while others are read for."""

SOCKETS_PER_LOOK = 128
"""How many sockets are read at a time: some 0.6 ms if each has a short message, 2 ms if each has all that is read."""

LOOKS_PER_COUNT = 64
"""Every so many looks those who are at work are forgotten: who is for long is busy with something else than reading."""

# From epoll(7), so that this file can be read where there is none.
READABLE, URGENT, BROKEN, HANG_UP, HALF_CLOSED, EDGE_TRIGGERED = 0x1, 0x2, 0x8, 0x10, 0x2000, 1 << 31
CUT_SHORT = URGENT | BROKEN | HANG_UP | HALF_CLOSED

Take: TypeAlias = Callable[[bytes], bool]

log = structlog.get_logger()


class Epoll(Protocol):
    """What is needed of `select.epoll`; simulations have one of their own."""

    def register(self, fd: int, eventmask: int, /) -> None: ...

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]: ...


class Inlet(Bell):
    """The receive side of one watched socket, for one task; rings when that has to look.

    Args:
        receive: the `recv` of the non-blocking socket.
        at_work: those whose tasks have been woken and don't wait again yet; adds and removes itself.

    Attributes:
        take: deals with what is read while the task waits, or returns False and touches nothing.
    """

    __slots__ = ("_arrived", "_at_work", "_cut_short", "_failure", "_may_have", "_receive", "take")

    def __init__(self, receive: Callable[[int], bytes], at_work: "set[Inlet]") -> None:
        super().__init__()
        self._receive = receive
        self._at_work = at_work
        self._may_have = False  # there may be more than was read (rule 4)
        self._cut_short = False  # a short read doesn't mean that there is no more
        self._arrived = b""  # read, and not taken
        self._failure: OSError | None = None
        self.take: Take | None = None

    def on_ready(self, events: int) -> None:
        """Read, if the task waits, and wake it for what `take` leaves. Never waits."""
        if events & CUT_SHORT:
            self._cut_short = True
        if self.waiting is None or self.take is None or self._cut_short:
            self._may_have = True
            self._wake()
            return
        try:
            data = self._receive(LOOK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error)
            return
        self._may_have = len(data) == LOOK_BYTES or not data
        if data and not self.take(data):
            self._arrived = data
        if self._may_have or self._arrived:
            self._wake()

    async def receive_some(self, bytes_max: int) -> bytes:
        """Wait for bytes; b'' at the end of the stream. Always a checkpoint.

        Raises:
            trio.BrokenResourceError: reading failed, or it was closed.
        """
        if self._may_have:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._may_have:
                self._at_work.discard(self)
                await self.wait()
            if self._failure is not None:
                raise trio.BrokenResourceError(str(self._failure)) from self._failure
            if self._arrived:
                data, self._arrived = self._arrived, b""
                return data
            try:
                data = self._receive(bytes_max)
            except BlockingIOError:
                self._may_have = False
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._may_have = self._cut_short or len(data) == bytes_max
            return data

    def fail(self, error: OSError) -> None:
        """Have the task meet that error instead of what would come. Never raises."""
        self._failure = error.with_traceback(None)  # which would hold its frames, and these the inlet
        self._may_have = True
        self._wake()

    def close(self) -> None:
        """Let the task know that it is closed. Idempotent."""
        self._failure = OSError("closed")
        self._may_have = True
        self.take = None
        self._at_work.discard(self)
        self.ring()

    def _wake(self) -> None:
        if self.ring():
            self._at_work.add(self)


class Poller:
    """All watched sockets of a node, one of whose tasks runs it.

    Args:
        epoll: stays the caller's to close.
        wait: waits until it has something to tell.
    """

    def __init__(self, epoll: Epoll, wait: Callable[[], Awaitable[None]]) -> None:
        self._epoll = epoll
        self._until_ready = wait
        self._inlets: dict[int, Inlet] = {}
        self._at_work: set[Inlet] = set()
        self._looks = 0

    def watch(self, fd: int, receive: Callable[[int], bytes]) -> Inlet:
        """Watch a socket, until `forget`, which is to be called before it is closed.

        Raises:
            OSError: the kernel watches no more of them (`fs.epoll.max_user_watches`, or memory).
        """
        self._epoll.register(fd, READABLE | URGENT | HALF_CLOSED | EDGE_TRIGGERED)
        inlet = self._inlets[fd] = Inlet(receive, self._at_work)
        return inlet

    def forget(self, fd: int) -> None:
        """Watch it no longer, and let its task know. (The kernel forgets it when it is closed.)"""
        if inlet := self._inlets.pop(fd, None):
            inlet.close()

    def look(self) -> bool:
        """Read what has come, once; True if tasks are at work, who must run to have their say. Never waits."""
        for fd, events in self._epoll.poll(0, SOCKETS_PER_LOOK):
            inlet = self._inlets.get(fd)
            if inlet is not None:
                try:
                    inlet.on_ready(events)
                except Exception as error:
                    log.exception("connection ended by an internal error")
                    inlet.fail(OSError(f"reading failed: {error!r}"))
        at_work = bool(self._at_work)
        self._looks += 1
        if self._looks % LOOKS_PER_COUNT == 0:
            self._at_work.clear()
        return at_work

    async def run(self) -> None:
        """Look whenever there is something, until cancelled."""
        while True:
            await self._until_ready()
            self.look()


@contextlib.contextmanager
def open_poller() -> Iterator[Poller | None]:
    """Give a poller of this system's sockets; None where there is no epoll. Closed on leaving."""
    if not hasattr(select, "epoll"):
        yield None
        return
    with select.epoll() as epoll:
        yield Poller(epoll, partial(trio.lowlevel.wait_readable, epoll.fileno()))
