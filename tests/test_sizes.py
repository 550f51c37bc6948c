"""Messages of every size, next to each other, cut anywhere: the room hears what was sent, message by message."""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from hubbub.core.frames import BINARY, CONTINUATION, OPCODE, PING, PONG, TEXT
from peers import Peer, client_frame, open_peer
from servers import open_server

SHORT = (0, 1, 5, 124, 125, 126, 127, 130, 500)
LONG = (1023, 1024, 1025, 3000, 4090, 4096, 5000, 65_535, 65_536, 70_000)
PIECES = (1, 7, 100, 133, 1000, 4096, 65_536, 131_072, 300_000)
SENDERS, MESSAGES = 3, 60

Message = tuple[int, bytes]


def compose(rng: random.Random, sender: int) -> tuple[list[Message], bytes]:
    """Return messages that name their sender, and the frames that say them, with pings and pongs between."""
    messages: list[Message] = []
    data = bytearray()
    for number in range(MESSAGES):
        size = rng.choice(LONG if rng.random() < 0.2 else SHORT)
        opcode = rng.choice((TEXT, TEXT, BINARY))
        body = rng.randbytes(size) if opcode == BINARY else rng.choice(("e", "é")).encode() * (size // 2)
        payload = b"%d:%d:" % (sender, number) + body
        messages.append((opcode, payload))
        if rng.random() < 0.1:
            cut = rng.randint(0, len(payload))
            data += client_frame(opcode, payload[:cut], fin=False)
            data += client_frame(PING, b"between") if rng.random() < 0.5 else b""
            data += client_frame(CONTINUATION, payload[cut:])
        else:
            data += client_frame(opcode, payload)
        if rng.random() < 0.05:
            data += client_frame(rng.choice((PING, PONG)), b"behind")
    return messages, bytes(data)


@contextlib.asynccontextmanager
async def open_peers(count: int, **settings: object) -> AsyncIterator[list[Peer]]:
    """Run a server with so many peers in one room."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_server(log_level="error", **settings))  # type: ignore[arg-type]
        yield [await stack.enter_async_context(open_peer(server.port)) for _ in range(count)]


async def say(peer: Peer, data: bytes, rng: random.Random) -> None:
    """Send it in pieces, some at once."""
    at = 0
    while at < len(data):
        size = rng.choice(PIECES)
        await peer.stream.send_all(data[at : at + size])
        at += size
        if rng.random() < 0.7:
            await trio.sleep(rng.choice((0, 0, 0.001, 0.003)))


async def drain(peer: Peer) -> None:
    """Read, and look at nothing."""
    while await peer.stream.receive_some(1 << 20):
        pass


async def hear(peer: Peer) -> list[list[Message]]:
    """Return what each sender has said, in the order in which it comes."""
    heard: list[list[Message]] = [[] for _ in range(SENDERS)]
    for _ in range(SENDERS * MESSAGES):
        first, payload = await peer.receive_frame()
        assert first & OPCODE in (TEXT, BINARY), (first, payload[:50])
        assert payload[:1].isdigit(), payload[:50]
        heard[int(payload[:1])].append((first & OPCODE, payload))
    return heard


@pytest.mark.parametrize("seed", range(24))
async def test_all_sizes_and_cuts(seed: int) -> None:
    """Three speak at once; with tight bounds on everything that could make one of them wait, or without."""
    rng = random.Random(seed)
    bounds: dict[str, object] = {
        "publications_per_second_max": rng.choice((300, 10**7)),
        "publications_burst_max": rng.choice((16, 10**7)),
        "inbox_commands_max": rng.choice((1, 3, 4096)),
        "inbox_bytes_max": rng.choice((300_000, 16 << 20)),
        "frames_at_once_max": rng.choice((1, 3, 32)),
        "gather_passes_max": rng.choice((0, 2, 16)),
        "message_bytes_max": 200_000,
        "outbox_bytes_max": 64 << 20,
        "outbox_frames_max": 10**6,
    }
    async with open_peers(SENDERS + 1, **bounds) as (listener, *senders):
        composed = [compose(rng, sender) for sender in range(SENDERS)]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for peer, (_, data) in zip(senders, composed, strict=True):
                    nursery.start_soon(drain, peer)
                    nursery.start_soon(say, peer, data, random.Random(rng.random()))
                heard = await hear(listener)
                nursery.cancel_scope.cancel()
        assert heard == [messages for messages, _ in composed]


def frames_of(sizes: Sequence[int]) -> bytes:
    """Return binary messages of these sizes."""
    return b"".join(client_frame(BINARY, b"x" * size) for size in sizes)


@pytest.mark.parametrize("sizes", [(2, 65_536), (2, 2, 70_000, 2), (65_535, 65_536)], ids=str)
async def test_a_long_one_behind_short_ones(sizes: tuple[int, ...]) -> None:
    """In one send, within the limits that hold by default or a little above them."""
    async with open_peers(2, message_bytes_max=max(sizes)) as (speaker, listener):
        await speaker.stream.send_all(frames_of(sizes))
        for size in sizes:
            assert await listener.receive() == b"x" * size


async def test_the_beginning_of_a_long_one_is_no_message() -> None:
    """Though it is as long as a frame of 127 bytes would be."""
    async with open_peers(2) as (speaker, listener):
        await speaker.send("hello")  # from now on the reader waits, and others read for it
        assert await listener.receive() == "hello"
        frame = client_frame(BINARY, b"x" * 65_536)
        for piece in (frame[:133], frame[133:]):
            await speaker.stream.send_all(piece)
            await trio.sleep(0.05)
        assert await listener.receive() == b"x" * 65_536


@pytest.mark.parametrize("mask", [None, b"\x80\x80\x80\x80"], ids=["any mask", "a mask that hides what isn't UTF-8"])
@pytest.mark.parametrize("limit", [256, 65_536])
async def test_short_ones_before_one_that_isnt_utf8(mask: bytes | None, limit: int) -> None:
    """They are heard, each by itself; it is refused, and nothing after it is heard."""
    async with open_peers(3, message_bytes_max=limit) as (speaker, listener, other):
        texts = [f"{number}" * 100 for number in range(10)]
        good = b"".join(client_frame(TEXT, text.encode(), mask=mask) for text in texts)
        bad = client_frame(TEXT, b"\xa2\xc8", mask=b"\xe1\xe1\xe1\xe1")
        await speaker.stream.send_all(good + bad + client_frame(TEXT, b"too late"))
        assert await listener.receive_texts(10) == texts
        _, closed = await speaker.receive_until_closed()
        assert closed.code == 1007
        await other.send("and then")
        assert await listener.receive() == "and then"
