"""Room names and the history option, as they come in a URL: which room it is, or what is wrong with it."""

import contextlib

import pytest
import trio

from peers import SECONDS_MAX, HandshakeRefused, connect, handshake, open_peer, shake_hands
from servers import open_server, until_quiet

LONG = "room name has 256 characters; allowed: 1 to 255"
NOT_UTF8 = "room name isn't percent-encoded UTF-8"


def unprintable(code: str) -> str:
    """What is said of a character that can't be printed."""
    return f"room name holds U+{code}; allowed: printable characters only"


ACCEPTED = [
    ("/chat", "chat"),
    ("/chat?", "chat"),
    ("/chat/chat", "chat"),
    ("/chat/x", "x"),
    ("/chat/" + 255 * "x", 255 * "x"),
    ("/chat/" + 255 * "%F0%9F%8E%89", 255 * "🎉"),
    ("/chat/%F0%9F%8E%89", "🎉"),
    ("/chat/%f0%9f%8e%89", "🎉"),
    ("/chat/%F0%9F%91%A9%F0%9F%8F%BD", "👩🏽"),
    ("/chat/two%20words", "two words"),
    ("/chat/%20", " "),
    ("/chat/a%2Fb", "a/b"),
    ("/chat/%2f", "/"),
    ("/chat/50%25", "50%"),
    ("/chat/%2541", "%41"),
    ("/chat/a%3Fb%23c", "a?b#c"),
    ("/chat/a+b", "a+b"),
    ("/chat/a%2Bb", "a+b"),
    ("/chat/%41", "A"),
    ("/chat/a", "a"),
    ("/chat/..", ".."),
    ("/chat/~!$&'()*,;=@._-", "~!$&'()*,;=@._-"),
    ("/chat/%C3%A4", "\xe4"),
    ("/chat/a%CC%88", "a\u0308"),
    ("/chat/%EF%BF%BD", "\ufffd"),
    ("http://localhost/chat/%41", "A"),
]


@pytest.mark.parametrize(("path", "name"), ACCEPTED)
async def test_accepted(path: str, name: str) -> None:
    """The room has exactly the name that was meant: decoded once, nothing normalised."""
    async with open_server() as server:
        async with open_peer(server.port, path):
            assert server.node.rooms.names() == [name]
        await until_quiet(server.node)


REFUSED = [
    ("/chat/", "room name has 0 characters; allowed: 1 to 255"),
    ("/chat/?history=1", "room name has 0 characters; allowed: 1 to 255"),
    ("/chat/" + 256 * "x", LONG),
    ("/chat/" + 256 * "%F0%9F%8E%89", LONG),
    ("/chat/%00", unprintable("0000")),
    ("/chat/a%0Ab", unprintable("000A")),
    ("/chat/a%0D", unprintable("000D")),
    ("/chat/%09", unprintable("0009")),
    ("/chat/%1B[31m", unprintable("001B")),
    ("/chat/%7F", unprintable("007F")),
    ("/chat/%C2%85", unprintable("0085")),
    ("/chat/%C2%A0", unprintable("00A0")),
    ("/chat/%E2%80%A8", unprintable("2028")),
    ("/chat/%E2%80%AE", unprintable("202E")),
    ("/chat/%EF%BB%BF", unprintable("FEFF")),
    ("/chat/%EE%80%80", unprintable("E000")),
    ("/chat/%F4%8F%BF%BF", unprintable("10FFFF")),
    ("/chat/%ED%A0%80", NOT_UTF8),
    ("/chat/%ED%A0%BD%ED%B8%80", NOT_UTF8),
    ("/chat/%C0%AF", NOT_UTF8),
    ("/chat/%C1%81", NOT_UTF8),
    ("/chat/%E0%80%AF", NOT_UTF8),
    ("/chat/%F4%90%80%80", NOT_UTF8),
    ("/chat/%FF", NOT_UTF8),
    ("/chat/%C3", NOT_UTF8),
    ("/chat/%A4", NOT_UTF8),
    ("/chat/%E4", NOT_UTF8),
    ("/chat/50%", NOT_UTF8),
    ("/chat/%4", NOT_UTF8),
    ("/chat/%zz", NOT_UTF8),
    ("/chat/%%41", NOT_UTF8),
    ("/chat/%u0041", NOT_UTF8),
    ("/chat/%+1", NOT_UTF8),
    ("/chat/%_41", NOT_UTF8),
    ("/chat/a/b", "room name: write a slash in it as %2F"),
    ("/chat//", "room name: write a slash in it as %2F"),
    ("/chat/a/", "room name: write a slash in it as %2F"),
]


@pytest.mark.parametrize(("path", "text"), REFUSED)
async def test_refused(path: str, text: str) -> None:
    """A name that isn't allowed is answered with what is wrong with it, and opens no room."""
    async with open_server() as server:
        assert await refusal(server.port, path) == f"400 Bad Request: {text}\n"
        await until_quiet(server.node)


ALIKE = ["/chat/%C3%A4", "/chat/a%CC%88", "/chat/%C3%84", "/chat/a", "/chat/A", "/chat/%D0%B0", "/chat/a%20"]


async def test_names_that_look_alike_are_different_rooms() -> None:
    """Composed and decomposed, upper and lower case, Latin and Cyrillic: each is heard in its own room only."""
    async with open_server() as server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(open_peer(server.port, path)) for path in ALIKE]
        assert len(server.node.rooms) == len(ALIKE)
        for text in ("first", "last"):
            for peer, path in zip(peers, ALIKE, strict=True):
                await peer.send(path + text)
            for peer, path in zip(peers, ALIKE, strict=True):
                assert await peer.receive() == path + text


async def test_encodings_of_one_name_are_one_room() -> None:
    """However it is written, it is the name that counts."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/%61%2db") as one,
        open_peer(server.port, "/chat/a-b") as two,
    ):
        await one.send("hello")
        assert await two.receive() == "hello"


HISTORY = [
    ("", 0),
    ("?", 0),
    ("?history=0", 0),
    ("?history=1", 1),
    ("?history=5", 5),
    ("?history=005", 5),
    ("?history=7", 7),
    ("?history=8", 7),
    ("?history=1000", 7),
    ("?name=value&history=2&&x", 2),
    ("?History=5", 0),
    ("?%68istory=5", 0),
    ("?history[]=5", 0),
    ("?x=history=5", 0),
]


@pytest.mark.parametrize(("query", "count"), HISTORY)
async def test_history(query: str, count: int) -> None:
    """The last so many of seven come first, then what is new; options that nobody knows are ignored."""
    async with open_server() as server, open_peer(server.port) as first:
        published = [f"message {number}" for number in range(7)]
        for text in published:
            await first.send(text)
        assert await first.receive_texts(7) == published
        async with open_peer(server.port, "/chat" + query) as second:
            await first.send("new")
            assert await second.receive_texts(count + 1) == [*published[7 - count :], "new"]


REFUSED_HISTORY = [
    ("?history", ""),
    ("?history=", ""),
    ("?history=1001", "1001"),
    ("?history=1000000000000", "1000000000000"),
    ("?history=" + 10_000 * "9", 80 * "9"),
    ("?history=-1", "-1"),
    ("?history=+1", "+1"),
    ("?history=%31", "%31"),
    ("?history=abc", "abc"),
    ("?history=1e3", "1e3"),
    ("?history=5.0", "5.0"),
    ("?history=1_0", "1_0"),
    ("?history=0x5", "0x5"),
    ("?history=%EF%BC%95", "%EF%BC%95"),  # a full-width five
    ("?history=5?", "5?"),
    ("?history=5&history=5", "5, 5"),
    ("?history=5&x=1&history=", "5, "),
]


@pytest.mark.parametrize(("query", "got"), REFUSED_HISTORY)
async def test_refused_history(query: str, got: str) -> None:
    """Anything but one number from 0 to 1000 is answered with what was got."""
    async with open_server() as server:
        expected = f"400 Bad Request: history: got {got!a}, allowed: one number from 0 to 1000\n"
        assert await refusal(server.port, "/chat" + query) == expected


async def refusal(port: int, path: str) -> str:
    """The body of the answer to a handshake that must be refused."""
    stream = await connect(port)
    try:
        # The server ends the connection after its answer, so its end is the body's end.
        peer = await shake_hands(stream, handshake(path, headers=(("Connection", "close"),)))
        return f"accepted: {peer}"
    except HandshakeRefused as refused:
        response = refused.response
        with trio.fail_after(SECONDS_MAX):
            async for data in stream:
                response += data
        return response.partition(b"\r\n\r\n")[2].decode()
    finally:
        await trio.aclose_forcefully(stream)
