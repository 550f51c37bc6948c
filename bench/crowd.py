"""Many clients in many rooms, read in one busy-polled loop that checks every delivery.

`loadgen.Collector` is cheaper, for one room in one dialect whose members stay; this one is for everything else.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

from client import Client, State
from dialects import BenchError
from loadgen import Progress, Target, clock
from report import Bench
from room import Room

PORTS = 28_000  # to one address from another there are no more: the kernel's range is 32768 to 60999
STARTS = 64  # connections begun between two looks at those that have begun
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Crowd:
    """The clients, the loop, and the counts.

    *Resource handling*: clients that were started are closed at the end of the `with` block.
    """

    def __init__(self, target: Target, deadline: int, progress: Progress, size: int = 100) -> None:
        self.target, self._deadline, self._progress = target, deadline, progress
        self.authority = f"{target.host}:{target.port}"
        self.address = (socket.gethostbyname(target.host), target.port)  # once, not for each client
        self.size = size  # of messages, in bytes
        self.clock = self.began = clock()
        self.clients: dict[int, Client] = {}  # by descriptor
        self.due = self.received = 0  # deliveries to those that stay
        self.published = self.asked = self.answers = 0
        self.memberships = 0  # joins and leaves that were told
        self.latencies: list[float] | None = None  # ms, while somebody wants them
        self.last_delivery = 0  # ns
        self.on_ended: Callable[[Client], None] = self.must_stay
        self._epoll = select.epoll()
        self._started = itertools.count()
        self._open = 0
        self._closing: list[Client] = []
        self._label, self._share, self._next_tick = "", 0.0, 0

    @classmethod
    @contextlib.contextmanager
    def gather(
        cls,
        bench: Bench,
        label: str,
        connections: int,
        settings: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        size: int = 100,
    ) -> Iterator[Self]:
        """A crowd, still without clients, at a fresh daemon or at the one at --url."""
        with (
            bench.hubbub(connections, settings, arguments) as target,
            bench.progress(label) as progress,
            cls(target, bench.deadline(), progress, size) as crowd,
        ):
            yield crowd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.on_ended = lambda client: None
        for client in list(self.clients.values()):
            client.leave("close")
            self.forget(client)
        self._close_forgotten()
        self._epoll.close()

    # Coming and going.

    def start(self, client: Client) -> None:
        """Let a client begin to connect."""
        number = client.number = next(self._started)
        source = f"127.0.0.{2 + number // PORTS}" if number >= PORTS else None
        client.start(self.address, source)
        self.clients[client.socket.fileno()] = client
        self._epoll.register(client.socket.fileno(), _EVENTS)

    def open(self, clients: Sequence[Client], in_flight: int = 100) -> None:
        """Open them all, so many at a time, and wait until the last is in its room."""
        waiting, goal, before = deque(clients), self._open + len(clients), self._open
        while self._open < goal:
            free = in_flight - (len(clients) - len(waiting) - (self._open - before))
            for _ in range(min(free, len(waiting), STARTS)):
                self.start(waiting.popleft())
            self.poll("connecting", (self._open - before) / len(clients))

    def opened(self, client: Client) -> None:
        """A client is in its room."""
        self._open += 1
        if client.room and client.stays:
            client.room.stayers += 1

    def ended(self, client: Client) -> None:
        """A connection was closed by the server, or with its consent."""
        self.forget(client)
        self.on_ended(client)

    def must_stay(self, client: Client) -> None:
        """No client was to be closed, unless it wanted to."""
        if not client.leaving:
            code = f"close code {client.close_code}" if client.close_code else "no close code seen"
            raise BenchError(f"{client.name} was closed by the server ({code})")

    def forget(self, client: Client) -> None:
        """Have a client's socket closed, after the events that are being handled: its descriptor may be among them."""
        if client.state is not State.GONE:
            client.state = State.GONE
            self._closing.append(client)

    def cut(self, clients: Iterable[Client], way: str = "reset") -> None:
        """Cut clients off, who then are no stayers any more."""
        for client in clients:
            if client.room and client.stays:
                client.room.stayers -= 1
            client.leave(way)
        self._close_forgotten()

    def _close_forgotten(self) -> None:
        for client in self._closing:
            with contextlib.suppress(OSError):
                self._epoll.unregister(client.socket.fileno())
            self.clients.pop(client.socket.fileno(), None)
            client.socket.close()
        self._closing.clear()

    # Publishing, and what comes of it.

    def now(self) -> int:
        """Nanoseconds since the start."""
        return clock() - self.began

    def reset_clock(self) -> None:
        """Time counts from here."""
        self.began = clock()

    def publish(self, client: Client, room: Room, at: int | None = None, count: int = 1) -> None:
        """Publish messages in one send, intended for a time after the start."""
        at = self.now() if at is None else at
        messages = [room.message(client.number % 10_000, at, self.size) for _ in range(count)]
        client.send(b"".join(client.publication(room, message) for message in messages))
        self.published += count
        self.due += count * room.stayers
        self.asked += count if client.structured else 0

    def delivered(self, intended: int) -> None:
        """A stayer has got a message."""
        self.received += 1
        self.last_delivery = self.clock
        if self.latencies is not None:
            self.latencies.append((self.clock - self.began - intended) / 1e6)

    def tick(self) -> None:
        """What is handled now has come now."""
        self.clock = clock()

    # The loop.

    def poll(self, label: str = "", share: float = 0.0) -> None:
        """One pass."""
        for fd, event in self._epoll.poll(0, 1024):
            if client := self.clients.get(fd):
                client.on_event(event)
        if self._closing:
            self._close_forgotten()
        if (now := clock()) >= self._next_tick:
            self._next_tick = now + 200_000_000
            self._progress.show(label, share)
            if now > self._deadline:
                raise BenchError("\n".join(["the deadline has passed", *self.faults()[:10]]))

    def until(self, condition: Callable[[], bool], label: str = "") -> None:
        """Poll until something is so, or the deadline passes."""
        while not condition():
            self.poll(label)

    def wait(self, seconds: float, label: str = "") -> None:
        """Poll for a while."""
        until = clock() + int(seconds * 1e9)
        while clock() < until:
            self.poll(label, 1 - (until - clock()) / seconds / 1e9)

    def drain(self) -> None:
        """Poll until all have everything published, and the publishers their answers."""
        while self.received < self.due or self.answers < self.asked:
            self.poll("waiting for the last")

    def check(self, settle: float = 0.05) -> None:
        """Nobody got more than was due, nobody less: else there is no result."""
        self.drain()
        self.wait(settle)
        if faults := self.faults():
            raise BenchError("\n".join(faults[:10] + ([f"and {len(faults) - 10} more"] if faults[10:] else [])))

    def faults(self) -> list[str]:
        """What is missing now."""
        missing = [
            client.room.missing(client.seat)
            for client in self.clients.values()
            if client.stays and client.room and client.seat
        ]
        rooms = {id(client.room): client.room for client in self.clients.values() if client.room}
        faults = [fault for fault in (*missing, *(room.fault() for room in rooms.values())) if fault]
        if self.received != self.due:
            faults.append(f"{self.received} deliveries where {self.due} are due")
        if self.answers != self.asked:
            faults.append(f"{self.answers} replies to {self.asked} commands")
        return faults
