"""What hostile clients do, each for some seconds: `python -m hostile.attacks NAME PORT SECONDS` (from tests/).

They run in a process of their own, so that their work isn't counted as a bystander's wait. In the end there is one
line of JSON on stdout: what happened to the attackers, and how often (`Close 1008 too many control frames`, …).
"""

import contextlib
import json
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import trio

from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, MASKED, PING, PONG, TEXT
from peers import HandshakeRefused, client_frame, connect, handshake, reset, shake_hands

SEGMENT_BYTES = 64 * 1024
CROWD = 20
NICENESS = 5
"""The attackers share two cores with the daemon and the bystanders; in life they have machines of their own."""

Seen = Counter[str]
Client = Callable[[int, Seen], Awaitable[None]]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame masked with zeros, which costs nothing."""
    return client_frame(opcode, payload, fin=fin, mask=bytes(4))


def repeated(data: bytes) -> bytes:
    """Return about 64 KiB of it."""
    return data * (SEGMENT_BYTES // len(data))


@contextlib.contextmanager
def noting(seen: Seen) -> Iterator[None]:
    """Count what ended the attempt, if the server did."""
    try:
        yield
    except HandshakeRefused as refused:
        seen[f"refused {refused.status}"] += 1
    except (trio.BrokenResourceError, trio.TooSlowError, OSError):
        seen["broken"] += 1


async def send_forever(stream: trio.SocketStream, first: bytes, then: bytes) -> None:
    """Send until that fails."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(first)
        while True:
            await stream.send_all(then)


async def read_to_the_end(stream: trio.SocketStream, *, stubborn: bool = False) -> str:
    """Read and discard; return what the end was: a status, a Close, or no word. Who is stubborn needs a FIN, too."""
    head = tail = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(SEGMENT_BYTES):
            head = head or data[:12]
            tail = (tail + data)[-256:]
            if not stubborn and (close := _close_at_the_end(tail)):
                return close
    return head[9:].decode() if head.startswith(b"HTTP/1.1 ") else _close_at_the_end(tail) or "no word"


def _close_at_the_end(tail: bytes) -> str:
    at = tail.rfind(bytes((FIN | CLOSE,)))
    if at < 0 or len(tail) != at + 2 + tail[at + 1]:
        return ""
    return f"Close {int.from_bytes(tail[at + 2 : at + 4], 'big')} {tail[at + 4 :].decode(errors='replace')}"


async def flood(port: int, seen: Seen, *, first: bytes, then: bytes = b"", upgrade: bool = True) -> None:
    """Send `first`, then `then` again and again, until the server ends it; come back and go on.

    Every other client doesn't take a Close for an end, and is a nuisance until it is cut off.
    """
    seen["clients"] += 1
    stubborn = seen["clients"] % 2 == 0
    while True:
        with noting(seen):
            stream = await connect(port)
            try:
                if upgrade:
                    await shake_hands(stream, handshake("/chat/hostile"))
                seen["begun"] += 1
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_forever, stream, first, then or first)
                    seen[await read_to_the_end(stream, stubborn=stubborn)] += 1
                    nursery.cancel_scope.cancel()
            finally:
                await trio.aclose_forcefully(stream)


async def wait_in_head(port: int, seen: Seen, *, within: float) -> None:
    """Connect, at some moment within that time; send half a head, wait, and leave as slowly."""
    await trio.sleep(random.random() * within)
    stream = await connect(port)
    try:
        await stream.send_all(handshake("/chat/hostile")[:60])
        seen["begun"] += 1
        with trio.move_on_after(random.random() * within + 0.1) if within else contextlib.nullcontext():
            seen[await read_to_the_end(stream)] += 1
    finally:
        await trio.aclose_forcefully(stream)


async def drip_head(port: int, seen: Seen) -> None:
    """Send a head a byte at a time."""
    while True:
        with noting(seen):
            stream = await connect(port)
            try:
                seen["begun"] += 1
                for byte in handshake("/chat/hostile"):
                    await stream.send_all(bytes((byte,)))
                    await trio.sleep(0.02)
            finally:
                await trio.aclose_forcefully(stream)


async def connect_and_reset(port: int, seen: Seen) -> None:
    """200 a second: some at once, some within the head, some in the handshake."""
    rng = random.Random(0)
    begin = trio.current_time()
    for count in range(1_000_000):
        await trio.sleep_until(begin + count / 200)
        with noting(seen):
            stream = await connect(port)
            request = handshake("/chat/hostile")
            await stream.send_all(request[: rng.choice((0, 10, len(request)))])
            await reset(stream)
            seen["begun"] += 1


async def never_read(port: int, seen: Seen) -> None:
    """Ten join a busy room and never read; one makes it busy, at the speed that it is allowed."""
    streams = [await connect(port, receive_buffer=2048) for _ in range(10)]
    for stream in streams:
        await shake_hands(stream, handshake("/chat/hostile"))
        seen["begun"] += 1
    await flood(port, seen, first=frame(BINARY, bytes(32_000)))


async def shout_in_a_crowd(port: int, seen: Seen) -> None:
    """A publisher at full speed in a room of a thousand who all read."""
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            stream = await connect(port)
            await shake_hands(stream, handshake("/chat/hostile"))
            seen["begun"] += 1
            nursery.start_soon(read_to_the_end, stream)
        await flood(port, seen, first=repeated(frame(TEXT, b"hear, hear!")))


async def try_names(port: int, seen: Seen) -> None:
    """Open one room after the other, say something, and leave."""
    for number in range(100_000):
        with noting(seen):
            stream = await connect(port)
            peer = await shake_hands(stream, handshake(f"/chat/{number}"))
            await peer.send("mine")
            await peer.receive()
            await reset(stream)
            seen["begun"] += 1


class Attack:
    """So many clients of one kind."""

    def __init__(self, client: Client, clients: int = CROWD) -> None:
        self.client = client
        self.clients = clients

    async def run(self, port: int, seconds: float) -> Seen:
        """Let them all do it for that long."""
        seen: Seen = Counter()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(self.clients):
                    nursery.start_soon(self.client, port, seen)
        return seen


def flooding(first: bytes, then: bytes = b"", *, upgrade: bool = True) -> Attack:
    """Return an attack by floods."""
    return Attack(partial(flood, first=first, then=then, upgrade=upgrade))


HUGE = struct.pack("!BBQ", FIN | BINARY, MASKED | 127, 2**62) + bytes(4)
FRAGMENTED = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 62 + frame(CONTINUATION)

ATTACKS = {
    "empty fragments": flooding(
        frame(TEXT, fin=False) + repeated(frame(CONTINUATION, fin=False)), repeated(frame(CONTINUATION, fin=False))
    ),
    "two-byte fragments": flooding(
        frame(TEXT, b"ab", fin=False) + repeated(frame(CONTINUATION, b"ab", fin=False)),
        repeated(frame(CONTINUATION, b"ab", fin=False)),
    ),
    "as many fragments as allowed": flooding(repeated(FRAGMENTED)),
    "pings": flooding(repeated(frame(PING, b"hello"))),
    "pongs": flooding(repeated(frame(PONG))),
    "half-open handshakes": Attack(partial(wait_in_head, within=0.5), 1000),
    "half-open handshakes at one moment": Attack(partial(wait_in_head, within=0.0), 1000),
    "never reading": Attack(never_read, 1),
    "connecting and resetting": Attack(connect_and_reset, 1),
    "full speed into a full room": Attack(shout_in_a_crowd, 1),
    "tiny messages": flooding(repeated(frame(TEXT))),
    "frames of 2^62 bytes": flooding(HUGE, bytes(SEGMENT_BYTES)),
    "garbage before the head": flooding(repeated(random.Random(0).randbytes(500) + b"\r\n\r\n"), upgrade=False),
    "a head of garbage": flooding(random.Random(0).randbytes(SEGMENT_BYTES), upgrade=False),
    "endless heads": flooding(b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 10_000, upgrade=False),
    "dripping heads": Attack(drip_head, 200),
    "bad UTF-8": flooding(repeated(frame(TEXT, b"\xff\xfe"))),
    "room names": Attack(try_names, 1),
}


if __name__ == "__main__":
    os.nice(NICENESS)
    _, name, port, seconds = sys.argv
    print(json.dumps(trio.run(ATTACKS[name].run, int(port), float(seconds))))  # noqa: T201
