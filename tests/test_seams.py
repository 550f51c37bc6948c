"""Order where two ways meet: the short way and trio-websocket's, the direct send and the backlog, HTTP and WebSocket.

Each test runs over TCP, TLS and the bounded pipe, and, where input is cut, with every cut there is.
"""

import pytest
import trio
import trio.testing

from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT
from hubbub.model.end import End
from peers import Closed, Peer, client_frame, close_payload, handshake, shake_hands
from servers import until_quiet
from worlds import KINDS, World, open_world

pytestmark = pytest.mark.parametrize("kind", KINDS)

MIXED = [
    client_frame(TEXT, b"one", mask=b"abcd"),
    client_frame(TEXT, b"tw", fin=False, mask=b"efgh"),
    client_frame(PING, b"!", mask=b"ijkl"),
    client_frame(CONTINUATION, b"o", mask=b"mnop"),
    client_frame(TEXT, "drei ✓".encode(), mask=b"qrst"),
    client_frame(BINARY, b"", mask=b"uvwx"),
    client_frame(TEXT, b"f", fin=False, mask=b"yzab"),
    client_frame(CONTINUATION, b"", fin=False, mask=b"cdef"),
    client_frame(CONTINUATION, b"our", mask=b"ghij"),
    client_frame(TEXT, b"x" * 130, mask=b"klmn"),
]
MIXED_MESSAGES = ["one", "two", "drei ✓", b"", "four", "x" * 130]


async def receive_messages_and_pongs(peer: Peer, count: int) -> tuple[list[str | bytes], list[bytes]]:
    """Return the next `count` messages, and the pongs that came among them."""
    messages: list[str | bytes] = []
    pongs: list[bytes] = []
    while len(messages) < count:
        first, payload = await peer.receive_frame()
        if first & 0x0F == PONG:
            pongs.append(payload)
        else:
            messages.append(payload.decode() if first & 0x0F == TEXT else payload)
    return messages, pongs


async def test_fragments_between_ordinary_messages_in_one_piece(kind: str) -> None:
    """Nothing overtakes a message that goes through trio-websocket."""
    async with open_world(kind) as world:
        peer = await world.open_peer()
        await peer.send_raw(b"".join(MIXED))
        messages, pongs = await receive_messages_and_pongs(peer, len(MIXED_MESSAGES))
        assert messages == MIXED_MESSAGES
        assert pongs in ([b"!"], [])  # a pong may come before or after: it has no place in the order
        assert pongs or (await peer.receive_frame()) == (FIN | PONG, b"!")


async def test_fragments_between_ordinary_messages_cut_everywhere(kind: str) -> None:
    """The same bytes, cut in two at every place, and once byte by byte."""
    data = b"".join(MIXED)
    step = 1 if kind == "pipe" else 7  # every place at the pipe, enough of them over sockets
    async with open_world(kind) as world:
        peer = await world.open_peer()
        for cut in range(1, len(data), step):
            await peer.send_raw(data[:cut])
            await trio.testing.wait_all_tasks_blocked(0.001 if kind != "pipe" else 0)
            await peer.send_raw(data[cut:])
            messages, _ = await receive_messages_and_pongs(peer, len(MIXED_MESSAGES))
            assert messages == MIXED_MESSAGES, cut
        for index in range(len(data)):
            await peer.send_raw(data[index : index + 1])
        messages, _ = await receive_messages_and_pongs(peer, len(MIXED_MESSAGES))
        assert messages == MIXED_MESSAGES


async def test_data_in_the_same_segment_as_the_upgrade(kind: str) -> None:
    """What comes behind the request head isn't lost, and comes first."""
    async with open_world(kind) as world:
        request = handshake()
        for behind in (b"".join(MIXED), b"".join(MIXED)[:5]):
            stream = await world.dial()
            peer = await shake_hands(stream, request + behind)
            await peer.send_raw(b"".join(MIXED)[len(behind) :] + client_frame(TEXT, b"last"))
            messages, _ = await receive_messages_and_pongs(peer, len(MIXED_MESSAGES) + 1)
            assert messages == [*MIXED_MESSAGES, "last"]
            await peer.close()


async def fill(world: World, reader: Peer, publisher: Peer, bytes_min: int) -> list[str]:
    """Let the publisher send until that much waits for the reader, who doesn't read; return what was sent."""
    sent: list[str] = []
    connection = next(iter(world.node.connections))  # the reader came first and is alone in it
    others = [other for other in world.node.connections if other.pulse is not connection.pulse]
    while max(box.outbox.bytes_queued for box in (connection, *others)) < bytes_min:
        text = f"{len(sent)}:" + "z" * 16_000
        await publisher.send(text)
        assert await publisher.receive() == text
        sent.append(text)
    del reader
    return sent


async def test_the_rest_of_a_partial_write_comes_first(kind: str) -> None:
    """A peer that doesn't read for a while gets everything, in order, byte by byte."""
    async with open_world(kind, outbox_bytes_max=8_000_000) as world:
        reader, publisher = await world.open_peer(), await world.open_peer()
        sent = await fill(world, reader, publisher, 300_000)
        for text in ("a", "b", "c"):
            await publisher.send(text)
        assert await reader.receive_texts(len(sent) + 3) == [*sent, "a", "b", "c"]


async def test_pong_and_close_under_backlog(kind: str) -> None:
    """A ping sent while much is queued is answered behind it, and the Close behind that, with its code."""
    async with open_world(kind, outbox_bytes_max=8_000_000) as world:
        reader, publisher = await world.open_peer(), await world.open_peer()
        sent = await fill(world, reader, publisher, 300_000)
        await reader.send_frame(PING, b"late")
        await reader.send_frame(CLOSE, close_payload(4001, "enough"))
        got = []
        while True:
            first, payload = await reader.receive_frame()
            if first & 0x0F != TEXT:
                break
            got.append(payload.decode())
        assert got == sent
        assert (first, payload) == (FIN | PONG, b"late")
        assert await reader.receive_frame() == (FIN | CLOSE, close_payload(4001, "enough"))
        with pytest.raises(Closed):
            await reader.receive_frame()


@pytest.mark.parametrize("answers_close", [True, False], ids=["answers the Close", "never answers"])
async def test_the_last_metre(kind: str, answers_close: bool) -> None:
    """A peer that sends all the time, 1 MB queued for it, then our Close: all of it arrives, and the code."""
    async with open_world(kind, outbox_bytes_max=8_000_000, close_seconds_max=1.5) as world:
        reader = await world.open_peer()
        (connection,) = world.node.connections
        publisher = await world.open_peer()
        sent = await fill(world, reader, publisher, 1_000_000)
        noise = client_frame(TEXT, b"n" * 500) * 50
        async with trio.open_nursery() as nursery:

            async def make_noise() -> None:
                while True:
                    try:
                        await reader.stream.send_all(noise)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return

            connection.end(End.SHUTDOWN)
            nursery.start_soon(make_noise)
            got = []
            while True:
                first, payload = await reader.receive_frame()
                if first & 0x0F == CLOSE:
                    break
                got.append(payload.decode())
            assert got == sent
            assert payload == close_payload(1001, "server is shutting down")
            nursery.cancel_scope.cancel()
        if answers_close and kind != "tls":  # a TLS stream whose sending was cancelled can't send any more
            await reader.send_raw(client_frame(CLOSE, payload[:2]))
        await publisher.close()
        await until_quiet(world.node, 10)


async def test_an_evicted_peer_gets_a_whole_frame_and_the_reason(kind: str) -> None:
    """A slow consumer, once it reads again: whole frames in order up to the eviction, then 1013."""
    async with open_world(kind, outbox_bytes_max=100_000) as world:
        reader, publisher = await world.open_peer(), await world.open_peer()
        sent: list[str] = []
        while len(world.node.connections) == 2 and not any(box.ended for box in world.node.connections):
            text = f"{len(sent)}:" + "z" * 16_000
            await publisher.send(text)
            assert await publisher.receive() == text
            sent.append(text)
        messages, closed = await reader.receive_until_closed()
        assert messages == sent[: len(messages)]
        assert (closed.code, closed.reason) == (1013, "slow consumer")
        await publisher.send("on it goes")
        assert await publisher.receive() == "on it goes"
        await publisher.close()
        await until_quiet(world.node, 10)
