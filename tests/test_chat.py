"""The plain dialect over real sockets: what the article shows, and a little more."""

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from hubbub.core.frames import BINARY, CLOSE, PING, PONG, TEXT
from peers import Closed, Peer, client_frame, close_payload, open_peer, reset
from servers import open_daemon, open_server, until_quiet
from tools import need_node_with_websocket

ARTICLE_CLIENT = """
const socket = new WebSocket(process.argv[1]);
socket.onopen = () => socket.send('hello from Node');
socket.onmessage = event => { console.log(event.data); socket.close(); };
"""


async def test_everyone_in_the_room_receives_it_the_sender_included() -> None:
    """Two clients, one message each: both see both, in one order."""
    async with open_server() as server, open_peer(server.port) as one, open_peer(server.port) as two:
        await one.send("hello")
        assert await one.receive() == "hello"
        assert await two.receive() == "hello"
        await two.send("wörld")
        assert await one.receive() == "wörld"
        assert await two.receive() == "wörld"


async def test_rooms_do_not_hear_each_other() -> None:
    """A message stays in its room; /chat is the room chat."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/red") as red,
        open_peer(server.port, "/chat") as chat,
        open_peer(server.port, "/chat/chat") as same,
    ):
        await red.send("red only")
        await chat.send("for chat")
        assert await red.receive() == "red only"
        assert await chat.receive() == "for chat"
        assert await same.receive() == "for chat"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\xff" * 50, bytes(range(256)) * 16, b"x" * 65_535, b"y" * 65_536],
    ids=["empty", "small", "4 KiB", "64 KiB less one", "64 KiB"],
)
async def test_binary_stays_binary(data: bytes) -> None:
    """Binary frames arrive as they were sent, of every size class of the header."""
    async with open_server() as server, open_peer(server.port) as peer:
        await peer.send_frame(BINARY, data)
        first, payload = await peer.receive_frame()
        assert (first & 0x0F, payload) == (BINARY, data)


async def test_text_of_the_largest_size() -> None:
    """The limit counts bytes: 64 KiB of text pass, a byte more is 1009."""
    async with open_server() as server, open_peer(server.port) as peer:
        largest = "é" * 32_768
        await peer.send(largest)
        assert await peer.receive() == largest
        await peer.send(largest + "!")
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert (closed.value.code, closed.value.reason) == (1009, "message too large")
        await until_quiet(server.node)


async def test_history_comes_first_and_joins_the_live_stream() -> None:
    """The last N, then what comes: no gap, no double, whatever was published meanwhile."""
    async with open_server() as server, open_peer(server.port) as publisher:
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(300):
                    await publisher.send(str(number))

            async def read(peer: Peer, sink: list[str]) -> None:
                while not sink or sink[-1] != "299":
                    sink.append(str(await peer.receive()))

            seen: list[list[str]] = [[] for _ in range(8)]
            nursery.start_soon(read, publisher, seen[0])
            nursery.start_soon(publish)
            for sink in seen[1:]:
                await trio.testing.wait_all_tasks_blocked()

                async def join(sink: list[str]) -> None:
                    async with open_peer(server.port, "/chat?history=20") as late:
                        await read(late, sink)

                nursery.start_soon(join, sink)
        assert seen[0] == [str(number) for number in range(300)]
        for sink in seen[1:]:
            assert sink == seen[0][-len(sink) :]


async def test_history_of_a_quiet_room() -> None:
    """?history=N gives the last N of what is kept, oldest first; without it nothing."""
    async with open_server(history_size=3) as server:
        async with open_peer(server.port) as publisher:
            for text in ("a", "b", "c", "d"):
                await publisher.send(text)
            assert await publisher.receive_texts(4) == ["a", "b", "c", "d"]
        async with (
            open_peer(server.port, "/chat?history=2") as two,
            open_peer(server.port, "/chat?history=100") as all_of_it,
            open_peer(server.port) as none,
        ):
            await none.send("e")
            assert await two.receive_texts(3) == ["c", "d", "e"]
            assert await all_of_it.receive_texts(4) == ["b", "c", "d", "e"]
            assert await none.receive() == "e"


async def test_ping_is_answered_with_its_payload() -> None:
    """RFC 6455 section 5.5.3."""
    async with open_server() as server, open_peer(server.port) as peer:
        await peer.send_frame(PING, b"are you there?")
        first, payload = await peer.receive_frame()
        assert (first & 0x0F, payload) == (PONG, b"are you there?")


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x0f\xa0bye"], ids=["no code", "1000", "4000 bye"])
async def test_close_is_answered_with_the_same_code(payload: bytes) -> None:
    """RFC 6455 section 5.5.1; then the stream ends, from our side first."""
    async with open_server() as server, open_peer(server.port) as peer:
        await peer.send_frame(CLOSE, payload)
        first, answer = await peer.receive_frame()
        assert first & 0x0F == CLOSE
        assert answer == payload
        with pytest.raises(Closed) as closed:
            await peer.receive_frame()
        assert closed.value.reason == "end of stream"
        await until_quiet(server.node)


async def test_who_closes_and_resets_has_broken_no_protocol() -> None:
    """It has closed, although it couldn't be answered; or the reset was seen first."""
    async with open_server() as server:
        with capture_logs() as logs:
            for _ in range(20):
                async with open_peer(server.port) as peer:
                    await peer.send_frame(CLOSE, close_payload(1000))
                    assert isinstance(peer.stream, trio.SocketStream)
                    await reset(peer.stream)
            await until_quiet(server.node)
    reasons = [entry["reason"] for entry in logs if entry["event"] == "connection ended"]
    assert len(reasons) == 20
    assert set(reasons) <= {"peer_closed", "peer_reset"}


VIOLATIONS = {
    "not masked": (1002, b"\x81\x02hi"),
    "reserved bit": (1002, client_frame(TEXT, b"x", rsv=0x40)),
    "unknown data opcode": (1002, client_frame(0x3, b"x")),
    "unknown control opcode": (1002, client_frame(0xB, b"x")),
    "continuation of nothing": (1002, client_frame(0x0, b"x")),
    "long ping": (1002, client_frame(PING, b"x" * 126)),
    "fragmented ping": (1002, client_frame(PING, b"x", fin=False)),
    "length not minimal": (1002, b"\x81\xfe\x00\x01\x00\x00\x00\x00x"),
    "message within a message": (1002, client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b")),
    "not UTF-8": (1007, client_frame(TEXT, b"\xc3\x28")),
    "a surrogate": (1007, client_frame(TEXT, b"\xed\xa0\x80")),
    "close with half a code": (1002, client_frame(CLOSE, b"x")),
    "close with 1005": (1002, client_frame(CLOSE, b"\x03\xed")),
    "close reason not UTF-8": (1007, client_frame(CLOSE, b"\x03\xe8\xff")),
}


@pytest.mark.parametrize(("code", "frame"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_protocol_violation_is_answered_with_a_close(code: int, frame: bytes) -> None:
    """RFC 6455 sections 5 and 7.1.7: trio-websocket's verdict, our Close; a bystander is not disturbed."""
    async with open_server() as server, open_peer(server.port) as peer, open_peer(server.port) as bystander:
        await peer.send("before")
        assert await peer.receive() == "before"
        await peer.send_raw(frame + client_frame(TEXT, b"after"))
        messages, closed = await peer.receive_until_closed()
        assert (messages, closed.code) == ([], code)
        await bystander.send("still here")
        assert await bystander.receive_texts(2) == ["before", "still here"]


async def test_too_many_fragments() -> None:
    """Fragments cost most when they are empty: their number is limited, too."""
    async with open_server(message_fragments_max=8) as server, open_peer(server.port) as peer:
        await peer.send_raw(client_frame(TEXT, b"", fin=False) + client_frame(0, b"", fin=False) * 8)
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert closed.value.code == 1008


async def test_declared_length_is_refused_before_it_is_sent() -> None:
    """A frame that declares 2^62 bytes is answered at once, and the peer's Close behind it isn't waited for in vain."""
    async with open_server() as server, open_peer(server.port) as peer:
        await peer.send_raw(b"\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00mask")
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert closed.value.code == 1009


async def test_exception_in_the_dialect_ends_that_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is told to its connection (1011), and to nobody else."""
    from hubbub.dialects.plain import PlainConversation

    receive_run = PlainConversation.receive_run

    def trip(self: PlainConversation, messages: Sequence[bytes], binary: bool) -> object:
        if b"boom" in messages:
            raise ZeroDivisionError
        return receive_run(self, messages, binary)

    monkeypatch.setattr(PlainConversation, "receive_run", trip)
    async with open_server() as server, open_peer(server.port) as peer, open_peer(server.port) as bystander:
        await peer.send("boom")
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert closed.value.code == 1011
        await bystander.send("fine")
        assert await bystander.receive() == "fine"


async def test_exception_in_a_rooms_step_ends_that_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its subscribers are told (1011), other rooms go on, and so does a room of that name afterwards."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/bad") as one,
        open_peer(server.port, "/chat/bad") as two,
        open_peer(server.port, "/chat/good") as bystander,
    ):
        append_all = server.node.engine.append_all

        def trip(room: str, messages: Sequence[bytes], *more: Any) -> object:
            if b"boom" in messages:
                raise ZeroDivisionError
            return append_all(room, messages, *more)

        monkeypatch.setattr(server.node.engine, "append_all", trip)
        await one.send("boom")
        for peer in (one, two):
            with pytest.raises(Closed) as closed:
                await peer.receive()
            assert closed.value.code == 1011
        await bystander.send("fine")
        assert await bystander.receive() == "fine"
        async with open_peer(server.port, "/chat/bad?history=9") as again:
            await again.send("new life")
            assert await again.receive() == "new life"


def test_the_articles_client_from_node() -> None:
    """`open`, `onmessage`, `send` against /chat, in Node, whose WebSocket is the browsers' one."""
    node = need_node_with_websocket()

    with open_daemon() as daemon:
        url = f"ws://localhost:{daemon.port}/chat"
        command = [*node, "-e", ARTICLE_CLIENT, url]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.stdout == "hello from Node\n", result.stderr
