"""A bounded, seeded, in-memory connection: the simulation's transport.

Each direction holds at most `capacity` bytes, like the two socket buffers of a TCP connection: a peer that doesn't
read makes its sender wait (Trio's own memory streams buffer without limit, so nothing would ever wait). What is sent
arrives in pieces of random size. A direction can be stalled and resumed, and the connection reset. As with TCP, a
side that closes with unread input resets the connection, and what the other side hasn't read is lost.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import trio

from hubbub.connection.poller import BROKEN, HALF_CLOSED, READABLE, Poller, Take


class Direction:
    """Bytes on their way from one side to the other."""

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.capacity = capacity
        self._rng = rng
        self._buffer = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self.on_change: Callable[[], None] = lambda: None
        self.ended = False  # nothing more is sent: the reader sees the end after the rest
        self.broken = False  # both sides see an error at once, the rest is lost
        self.stalled = False  # nothing moves, either in or out

    def __len__(self) -> int:
        return len(self._buffer)

    def put_nowait(self, data: bytes | memoryview) -> int:
        """Take what there is room for, or a part of that."""
        if self.broken or self.ended:
            raise trio.BrokenResourceError("reset")
        room = 0 if self.stalled else min(self.capacity - len(self._buffer), len(data))
        taken = self._piece(room)
        self._buffer += data[:taken]
        if taken:
            self._changed.unpark_all()
            self.on_change()
        return taken

    async def put_some(self, data: bytes | memoryview) -> int:
        """Wait until something is taken."""
        await trio.lowlevel.checkpoint()
        while not (taken := self.put_nowait(data)):
            await self._changed.park()
        return taken

    async def get(self, bytes_max: float) -> bytes:
        """Wait for bytes; b'' at the end."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.get_nowait(bytes_max)
            except BlockingIOError:
                await self._changed.park()
            except ConnectionResetError as error:
                raise trio.BrokenResourceError("reset") from error

    def get_nowait(self, bytes_max: float) -> bytes:
        """As a non-blocking socket's `recv`; where it returns less than there is, more has come by then."""
        if self.broken:
            raise ConnectionResetError
        if self._buffer and not self.stalled:
            taken = self._piece(int(min(len(self._buffer), bytes_max)))
            data = bytes(self._buffer[:taken])
            del self._buffer[:taken]
            self._changed.unpark_all()
            if self._buffer:
                self.on_change()
            return data
        if self.ended and not self._buffer:
            return b""
        raise BlockingIOError

    def change(self, *, ended: bool = False, broken: bool = False, stalled: bool | None = None) -> None:
        """Change what is to be, and wake who waits."""
        self.ended = self.ended or ended
        self.broken = self.broken or broken
        if stalled is not None:
            self.stalled = stalled
        if self.broken:
            self._buffer.clear()
        self._changed.unpark_all()
        self.on_change()

    def _piece(self, most: int) -> int:
        return self._rng.randint(1, most) if most > 1 and self._rng.random() < 0.5 else most


class PipeEpoll:
    """What a poller is told of pipes, edge by edge, in any order; implements `hubbub.connection.poller.Epoll`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pipes: list[Direction] = []
        self._ready: dict[int, None] = {}
        self._told = trio.lowlevel.ParkingLot()

    def add(self, pipe: Direction) -> int:
        """Return what stands for the pipe's descriptor."""
        self._pipes.append(pipe)
        return len(self._pipes) - 1

    def register(self, fd: int, eventmask: int, /) -> None:
        def tell() -> None:
            self._ready[fd] = None
            self._told.unpark_all()

        self._pipes[fd].on_change = tell
        tell()

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        ready = list(self._ready)
        self._rng.shuffle(ready)
        for fd in ready[:maxevents]:
            del self._ready[fd]
        return [(fd, self._events(self._pipes[fd])) for fd in ready[:maxevents]]

    async def wait(self) -> None:
        """Wait until there is something to tell."""
        await trio.lowlevel.checkpoint()
        while not self._ready:
            await self._told.park()

    def _events(self, pipe: Direction) -> int:
        return READABLE | HALF_CLOSED * pipe.ended | BROKEN * pipe.broken


class Watch(NamedTuple):
    """A poller for pipes, and what it is told by."""

    poller: Poller
    epoll: PipeEpoll


def make_watch(rng: random.Random) -> Watch:
    """Return a poller for pipes."""
    epoll = PipeEpoll(rng)
    return Watch(Poller(epoll, epoll.wait), epoll)


class PipeTransport:
    """The server's side; implements `hubbub.connection.transport.Transport`.

    Args:
        watch: reads from it, as from a socket; None: its task waits for it by itself.
    """

    def __init__(self, inbound: Direction, outbound: Direction, watch: Watch | None = None) -> None:
        self.inbound = inbound
        self.outbound = outbound
        self.closed = False
        self._watch = watch
        self._fd = watch.epoll.add(inbound) if watch else -1
        self._inlet = watch.poller.watch(self._fd, inbound.get_nowait) if watch else None

    @property
    def send_bare(self) -> Callable[[bytes], int]:
        return self.send_nowait

    def send_nowait(self, data: bytes | memoryview) -> int:
        assert not self.closed, "a send after the close"
        return self.outbound.put_nowait(data)

    async def send_some(self, data: memoryview) -> int:
        return await self.outbound.put_some(data)

    async def receive_some(self, bytes_max: int) -> bytes:
        return await (self.inbound.get(bytes_max) if self._inlet is None else self._inlet.receive_some(bytes_max))

    def set_taker(self, take: Take | None) -> None:
        if self._inlet is not None:
            self._inlet.take = take

    async def shutdown_send(self) -> None:
        self.outbound.change(ended=True)
        await trio.lowlevel.checkpoint()

    def peer_left(self) -> bool:
        return self.inbound.ended or self.inbound.broken

    def is_broken(self) -> bool:
        return self.inbound.broken

    def unsent_bytes(self) -> int:
        return len(self.outbound)

    def close_forcefully(self) -> None:
        if not self.closed:
            self.closed = True
            if self._watch is not None:
                self._watch.poller.forget(self._fd)
            unread = len(self.inbound) > 0
            self.inbound.change(broken=True)
            self.outbound.change(ended=True, broken=unread)


class PipeStream:
    """The client's side: a stream of bytes for `peers.Peer`."""

    def __init__(self, inbound: Direction, outbound: Direction) -> None:
        self.inbound = inbound
        self.outbound = outbound

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.outbound.put_some(view) :]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.inbound.get(math.inf if max_bytes is None else max_bytes)

    def stall(self) -> None:
        """Stop reading, as far as the server can tell."""
        self.inbound.change(stalled=True)

    def resume(self) -> None:
        """Read again."""
        self.inbound.change(stalled=False)

    def end(self) -> None:
        """Send no more: the server sees the end of the stream."""
        self.outbound.change(ended=True)

    def reset(self) -> None:
        """Break the connection, both ways."""
        self.inbound.change(broken=True)
        self.outbound.change(broken=True)


def make_pipe(rng: random.Random, capacity: int = 4096, watch: Watch | None = None) -> tuple[PipeTransport, PipeStream]:
    """Return the two sides of a new connection."""
    to_server, to_client = Direction(capacity, rng), Direction(capacity, rng)
    return PipeTransport(to_server, to_client, watch), PipeStream(to_client, to_server)
