"""A bounded, seeded, in-memory connection: the simulation's transport.

Each direction holds at most `capacity` bytes, like the two socket buffers of a TCP connection: a peer that doesn't
read makes its sender wait (Trio's own memory streams buffer without limit, so nothing would ever wait). What is sent
arrives in pieces of random size. A direction can be stalled and resumed, and the connection reset. As with TCP, a
side that closes with unread input resets the connection, and what the other side hasn't read is lost.
"""

import math
import random
from collections.abc import Callable

import trio


class Direction:
    """Bytes on their way from one side to the other."""

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.capacity = capacity
        self._rng = rng
        self._buffer = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
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
            if self.broken:
                raise trio.BrokenResourceError("reset")
            if self._buffer and not self.stalled:
                taken = self._piece(int(min(len(self._buffer), bytes_max)))
                data = bytes(self._buffer[:taken])
                del self._buffer[:taken]
                self._changed.unpark_all()
                return data
            if self.ended and not self._buffer:
                return b""
            await self._changed.park()

    def change(self, *, ended: bool = False, broken: bool = False, stalled: bool | None = None) -> None:
        """Change what is to be, and wake who waits."""
        self.ended = self.ended or ended
        self.broken = self.broken or broken
        if stalled is not None:
            self.stalled = stalled
        if self.broken:
            self._buffer.clear()
        self._changed.unpark_all()

    def _piece(self, most: int) -> int:
        return self._rng.randint(1, most) if most > 1 and self._rng.random() < 0.5 else most


class PipeTransport:
    """The server's side; implements `hubbub.connection.transport.Transport`."""

    def __init__(self, inbound: Direction, outbound: Direction) -> None:
        self.inbound = inbound
        self.outbound = outbound
        self.closed = False

    @property
    def send_bare(self) -> Callable[[bytes], int]:
        return self.send_nowait

    def send_nowait(self, data: bytes | memoryview) -> int:
        assert not self.closed, "a send after the close"
        return self.outbound.put_nowait(data)

    async def send_some(self, data: memoryview) -> int:
        return await self.outbound.put_some(data)

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self.inbound.get(bytes_max)

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


def make_pipe(rng: random.Random, capacity: int = 4096) -> tuple[PipeTransport, PipeStream]:
    """Return the two sides of a new connection."""
    to_server, to_client = Direction(capacity, rng), Direction(capacity, rng)
    return PipeTransport(to_server, to_client), PipeStream(to_client, to_server)
