"""The front door over real sockets: each way to get a request wrong has its status and its sentence, none is a bug."""

import base64
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from hubbub import __version__
from hubbub.web.site import SECURITY_HEADERS
from peers import SECONDS_MAX, HandshakeRefused, connect, handshake, open_peer, shake_hands
from servers import Server, open_server, until_quiet

HOST = "Host: localhost"
KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = (HOST, "Upgrade: websocket", "Connection: Upgrade")
HANDSHAKE = (*UPGRADE, "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")

NOTHING_HERE = "there is nothing here; there are /, /chat, /chat/ROOM, /connection/websocket, /health, /metrics"
NO_HOST = "Host: allowed: one name or address, with or without a port"
NO_KEY = "Sec-WebSocket-Key: allowed: once, 16 bytes in Base64"
NO_UPGRADE = "this address speaks WebSocket; connect with a WebSocket client"
BAD_ENCODING = "room name isn't percent-encoded UTF-8"
OUR_HOSTS = "loopback names and the bound address; see allowed_hosts"


def head(line: str, *fields: str) -> bytes:
    """A request head as bytes."""
    return ("\r\n".join((line, *fields)) + "\r\n\r\n").encode("latin-1")


def get(target: str, *fields: str) -> bytes:
    """A GET request to localhost."""
    return head(f"GET {target} HTTP/1.1", HOST, *fields)


class Answer(NamedTuple):
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A client that says what it is told to, and reads one answer after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(SECONDS_MAX):
            await self.stream.send_all(data)

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """Read one response; `bodiless` if it is one to a HEAD, or an interim one."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        lines, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        status_line, *fields = lines.decode("latin-1").split("\r\n")
        version, status, phrase = status_line.split(" ", 2)
        assert (version, phrase) == ("HTTP/1.1", HTTPStatus(int(status)).phrase)
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        assert len(headers) == len(fields), "no field comes twice"
        length = 0 if bodiless else int(headers["content-length"])
        self._buffer = bytearray(rest)
        while len(self._buffer) < length:
            await self._more()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return Answer(int(status), headers, body)

    async def ends(self) -> None:
        """Wait for the end of the stream; nothing may come before it."""
        assert not self._buffer
        with trio.fail_after(SECONDS_MAX):
            assert await self.stream.receive_some() == b""

    async def goes_on(self) -> None:
        """See that another request is answered."""
        await self.send(get("/health"))
        assert (await self.answer()).body == b"ok\n"

    async def _more(self) -> None:
        with trio.fail_after(SECONDS_MAX):
            data = await self.stream.receive_some()
        assert data, f"the answer ends early, after {bytes(self._buffer)!r}"
        self._buffer += data


@contextlib.asynccontextmanager
async def open_client(port: int) -> AsyncIterator[Client]:
    """Connect; the socket is closed on leaving."""
    stream = await connect(port)
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def open_door(**overrides: object) -> AsyncIterator[Server]:
    """A server in which nothing may go wrong on the inside, and of which nothing may be left."""
    with capture_logs() as logs:
        async with open_server(tls=None, **overrides) as server:
            yield server
            await until_quiet(server.node)
            assert b"\nhubbub_internal_errors_total 0.0\n" in server.node.metrics.text()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []


def sentence(answer: Answer) -> str:
    """What is behind `STATUS Phrase: ` in the body of a refusal."""
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    start, _, text = answer.body.decode().partition(": ")
    assert start == f"{answer.status} {HTTPStatus(answer.status).phrase}"
    assert text.endswith("\n")
    assert len(text) < 500
    return text.removesuffix("\n")


# After these the connection goes on: where the next request begins is known.
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no such page": (get("/nothing"), 404, NOTHING_HERE),
    "no such file": (get("/static/../static/hubbub.js"), 404, NOTHING_HERE),
    "no such file, encoded": (get("/%73tatic/hubbub.js"), 404, NOTHING_HERE),
    "folder": (get("/static/"), 404, NOTHING_HERE),
    "path like the room's": (get("/chatter"), 404, NOTHING_HERE),
    "path of an authority": (get("//localhost/health"), 404, NOTHING_HERE),
    "asterisk": (head("OPTIONS * HTTP/1.1", HOST), 404, NOTHING_HERE),
    "tunnel": (head("CONNECT localhost:22 HTTP/1.1", HOST), 404, NOTHING_HERE),
    "garbage as Host": (head("GET / HTTP/1.1", "Host: local host"), 400, NO_HOST),
    "empty Host": (head("GET / HTTP/1.1", "Host:"), 400, NO_HOST),
    "port out of range": (head("GET / HTTP/1.1", "Host: localhost:65536"), 400, NO_HOST),
    "Host with a user": (head("GET / HTTP/1.1", "Host: me@localhost"), 400, NO_HOST),
    "continued line": (head("GET / HTTP/1.1", HOST, " and more"), 400, NO_HOST),
    "garbage in an absolute target": (get("http:///"), 400, NO_HOST),
    "foreign Host": (
        head("GET / HTTP/1.1", "Host: example.com"),
        421,
        f"Host: got 'example.com', allowed: {OUR_HOSTS}",
    ),
    "foreign Host for a handshake": (
        head("GET /chat HTTP/1.1", "Host: Rebound.Example:8000", *HANDSHAKE[1:]),
        421,
        f"Host: got 'rebound.example', allowed: {OUR_HOSTS}",
    ),
    "foreign Host for the metrics": (
        head("GET /metrics HTTP/1.1", "Host: a." + 300 * "b"),
        421,
        f"Host: got 'a.{98 * 'b'}', allowed: {OUR_HOSTS}",
    ),
    "foreign host in an absolute target": (
        get("http://example.com/"),
        421,
        f"Host: got 'example.com', allowed: {OUR_HOSTS}",
    ),
    "no upgrade": (get("/chat"), 426, NO_UPGRADE),
    "another upgrade": (get("/chat", "Upgrade: h2c", "Connection: Upgrade"), 426, NO_UPGRADE),
    "upgrade without Connection": (head("GET /chat HTTP/1.1", HOST, *HANDSHAKE[3:], HANDSHAKE[1]), 426, NO_UPGRADE),
    "version 8": (
        head("GET /chat HTTP/1.1", *UPGRADE, "Sec-WebSocket-Version: 8", f"Sec-WebSocket-Key: {KEY}"),
        426,
        "Sec-WebSocket-Version: got '8', allowed: 13",
    ),
    "long version": (
        head("GET /chat HTTP/1.1", *UPGRADE, "Sec-WebSocket-Version: " + 1000 * "\xe4"),
        426,
        f"Sec-WebSocket-Version: got {80 * chr(0xE4)!a}, allowed: 13",
    ),
    "two versions": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Sec-WebSocket-Version: 8"),
        426,
        "Sec-WebSocket-Version: got '13, 8', allowed: 13",
    ),
    "no version": (
        head("GET /chat HTTP/1.1", *UPGRADE, f"Sec-WebSocket-Key: {KEY}"),
        426,
        "Sec-WebSocket-Version: got '', allowed: 13",
    ),
    "no key": (head("GET /chat HTTP/1.1", *HANDSHAKE[:4]), 400, NO_KEY),
    "empty key": (head("GET /chat HTTP/1.1", *HANDSHAKE[:4], "Sec-WebSocket-Key:"), 400, NO_KEY),
    "two keys": (head("GET /chat HTTP/1.1", *HANDSHAKE, HANDSHAKE[4]), 400, NO_KEY),
    "short key": (head("GET /chat HTTP/1.1", *HANDSHAKE[:4], "Sec-WebSocket-Key: AAAA"), 400, NO_KEY),
    "key without its padding": (
        head("GET /chat HTTP/1.1", *HANDSHAKE[:4], f"Sec-WebSocket-Key: {KEY[:22]}"),
        400,
        NO_KEY,
    ),
    "key with a stranger in it": (
        head("GET /chat HTTP/1.1", *HANDSHAKE[:4], f"Sec-WebSocket-Key: {KEY[:4]}!{KEY[4:]}"),
        400,
        NO_KEY,
    ),
    "key that isn't ASCII": (head("GET /chat HTTP/1.1", *HANDSHAKE[:4], "Sec-WebSocket-Key: \xe4"), 400, NO_KEY),
    "stray percent sign": (head("GET /chat/50% HTTP/1.1", *HANDSHAKE), 400, BAD_ENCODING),
    "bad percent encoding": (head("GET /chat/%zz HTTP/1.1", *HANDSHAKE), 400, BAD_ENCODING),
    "foreign origin": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Origin: https://evil.example"),
        403,
        "Origin: got 'https://evil.example', allowed: the same host and port; see allowed_origins",
    ),
    "null origin": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Origin: null"),
        403,
        "Origin: got 'null', allowed: the same host and port; see allowed_origins",
    ),
    "two origins": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Origin: http://localhost", "Origin: http://localhost"),
        403,
        "Origin: got 'http://localhost, http://localhost', allowed: the same host and port; see allowed_origins",
    ),
}


@pytest.mark.parametrize(("request_head", "status", "text"), REFUSED.values(), ids=REFUSED)
async def test_refused(request_head: bytes, status: int, text: str) -> None:
    """A request that can't be answered as asked is told why, and the connection goes on."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(request_head)
        answer = await client.answer()
        assert (answer.status, sentence(answer)) == (status, text)
        await client.goes_on()


# After these it can't go on: nobody knows where the next request would begin, or more would come than is read.
FATAL: dict[str, tuple[bytes, int, str]] = {
    "broken request line": (b"GET /\r\n\r\n", 400, "illegal request line: bytearray(b'GET /')"),
    "request line with too much": (
        b"GET / / HTTP/1.1\r\n\r\n",
        400,
        "illegal request line: bytearray(b'GET / / HTTP/1.1')",
    ),
    "raw UTF-8": (
        "GET /ä HTTP/1.1\r\n\r\n".encode(),
        400,
        r"illegal request line: bytearray(b'GET /\xc3\xa4 HTTP/1.1')",
    ),
    "no request line": (b"\r\n\r\n", 400, "no request line received"),
    "header without a colon": (get("/", "header"), 400, "illegal header line: bytearray(b'header')"),
    "space before the colon": (get("/", "name : value"), 400, "illegal header line: bytearray(b'name : value')"),
    "NUL in a header": (get("/", "name: \0"), 400, r"illegal header line: bytearray(b'name: \x00')"),
    "a long bad header": (get("/", 9000 * "x"), 400, "illegal header line: bytearray(b'" + 167 * "x"),
    "no Host": (head("GET / HTTP/1.1"), 400, "Missing mandatory Host: header"),
    "two Hosts": (get("/", HOST), 400, "Found multiple Host: headers"),
    "HTTP/1.0 without Host": (head("GET / HTTP/1.0"), 400, NO_HOST),
    "HTTP/1.0 handshake": (
        head("GET /chat HTTP/1.0", *HANDSHAKE),
        400,
        "a WebSocket handshake needs HTTP/1.1, not 1.0",
    ),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP version: got 2.0, allowed: 1.1, 1.0"),
    "length that is no number": (get("/", "Content-Length: ten"), 400, "bad Content-Length"),
    "two lengths": (get("/", "Content-Length: 1", "Content-Length: 2"), 400, "conflicting Content-Length headers"),
    "length and chunks": (
        get("/", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
        "body: got Content-Length and Transfer-Encoding, allowed: one of them",
    ),
    "bad chunk": (
        get("/", "Transfer-Encoding: chunked") + b"ten\r\n",
        400,
        r"illegal chunk header: bytearray(b'ten\r\n')",
    ),
    "another coding": (get("/", "Transfer-Encoding: gzip"), 501, "Only Transfer-Encoding: chunked is supported"),
    "handshake with a body": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Content-Length: 2") + b"hi",
        400,
        "a WebSocket handshake has no body",
    ),
    "handshake with chunks": (
        head("GET /chat HTTP/1.1", *HANDSHAKE, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
        "a WebSocket handshake has no body",
    ),
    "declared body over the limit": (get("/", "Content-Length: 1001"), 413, "body is over 1000 bytes"),
    "number beyond all limits": (get("/", "Content-Length: " + 19 * "9"), 413, "body is over 1000 bytes"),
    "chunked body over the limit": (
        get("/", "Transfer-Encoding: chunked") + 11 * (b"64\r\n" + 100 * b"x" + b"\r\n"),
        413,
        "body is over 1000 bytes",
    ),
    "body that would be waited for": (
        get("/", "Content-Length: 1001", "Expect: 100-continue"),
        413,
        "body is over 1000 bytes",
    ),
    "long request line": (get("/" + 30_000 * "x"), 431, "request head is over 16384 bytes"),
    "long header": (get("/", f"name: {30_000 * 'x'}"), 431, "request head is over 16384 bytes"),
    "many headers": (get("/", *(3000 * ["name: value"])), 431, "request head is over 16384 bytes"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400, "illegal request line"),
    "bytes": (bytes(range(256)), 400, "illegal request line"),
}


@pytest.mark.parametrize(("request_head", "status", "text"), FATAL.values(), ids=FATAL)
async def test_refused_for_good(request_head: bytes, status: int, text: str) -> None:
    """What can't be followed by another request is answered, and the connection is ended."""
    async with open_door(body_bytes_max=1000) as server, open_client(server.port) as client:
        await client.send(request_head)
        answer = await client.answer()
        assert (answer.status, sentence(answer)) == (status, text)
        assert answer.headers["connection"] == "close"
        await client.ends()


@pytest.mark.parametrize("part", [b"GET / HT", get("/", "Content-Length: 5") + b"he", b"no request"])
async def test_half_a_request_and_no_more(part: bytes) -> None:
    """A client that stops sending in the middle is told so."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(part)
        await client.stream.send_eof()
        answer = await client.answer()
        assert answer.status == 400
        assert "closed connection" in sentence(answer)
        await client.ends()


ALLOW = [
    ("POST", "/", "GET, HEAD"),
    ("DELETE", "/static/hubbub.js", "GET, HEAD"),
    ("OPTIONS", "/health", "GET, HEAD"),
    ("PUT", "/metrics", "GET, HEAD"),
    ("HEAD", "/chat", "GET"),
    ("POST", "/chat/room", "GET"),
    ("get", "/", "GET, HEAD"),
]


@pytest.mark.parametrize(("method", "path", "allowed"), ALLOW)
async def test_other_methods(method: str, path: str, allowed: str) -> None:
    """405 names the methods that would do, and the connection goes on."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head(f"{method} {path} HTTP/1.1", HOST))
        answer = await client.answer(bodiless=method == "HEAD")
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert sentence(answer) == f"method: got '{method}', allowed: {allowed}"
        await client.goes_on()


async def test_426_says_how_to_go_on() -> None:
    """RFC 9110 section 15.5.22 and RFC 6455 section 4.4: the fields that tell the client what to speak."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/chat"))
        headers = (await client.answer()).headers
        assert (headers["upgrade"], headers["connection"].lower()) == ("websocket", "upgrade")
        await client.send(head("GET /chat HTTP/1.1", *UPGRADE, "Sec-WebSocket-Version: 8"))
        assert (await client.answer()).headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "[::1]", "[0:0:0:0:0:0:0:1]:80"]
)
async def test_names_of_this_machine(host: str) -> None:
    """Loopback names are answered to, however they are written."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head("GET / HTTP/1.1", f"Host: {host}"))
        assert (await client.answer()).status == 200


async def test_configured_names_and_origins() -> None:
    """allowed_hosts and allowed_origins replace the defaults, and the refusals name them."""
    names = {"allowed_hosts": ["chat.example"], "allowed_origins": ["https://*.example"]}
    async with open_door(**names) as server, open_client(server.port) as client:
        await client.send(get("/"))
        assert sentence(await client.answer()) == "Host: got 'localhost', allowed: chat.example"
        ours = ("GET /chat HTTP/1.1", "Host: chat.example:443", *HANDSHAKE[1:])
        await client.send(head(*ours, "Origin: http://chat.example"))
        assert sentence(await client.answer()) == "Origin: got 'http://chat.example', allowed: https://*.example"
        await client.send(head(*ours, "Origin: https://www.example"))
        assert (await client.answer(bodiless=True)).status == 101


@pytest.mark.parametrize("host", ["", "localhost", "example.com", "local host"])
async def test_health_needs_no_host(host: str) -> None:
    """A load balancer may ask /health under any name."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head("GET /health HTTP/1.1", f"Host: {host}"))
        assert (await client.answer()).body == b"ok\n"
        await client.send(head("GET /health HTTP/1.0"))
        assert (await client.answer()).body == b"ok\n"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET http://localhost/health HTTP/1.1", ["Host: localhost"]),
        ("GET HTTP://localhost/ HTTP/1.1", ["Host: example.com"]),
        ("GET http://localhost:8000 HTTP/1.1", ["Host: localhost"]),
        ("GET http://127.0.0.1?query HTTP/1.1", ["Host: localhost"]),
        ("GET https://[::1]:1/metrics HTTP/1.1", ["Host: localhost"]),
        ("GET http://localhost/ HTTP/1.0", []),
    ],
)
async def test_absolute_target(line: str, fields: list[str]) -> None:
    """RFC 9112 section 3.2.2: an absolute target is accepted, and its host counts, not the Host field's."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head(line, *fields))
        assert (await client.answer()).status == 200


async def test_absolute_target_of_a_handshake() -> None:
    """A proxy may write it so."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head("GET http://localhost/chat/%61?history=1 HTTP/1.1", *HANDSHAKE))
        assert (await client.answer(bodiless=True)).status == 101
        assert "a" in server.node.rooms


# -- time and limits


@pytest.mark.parametrize(
    "part", [b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n", get("/", "Content-Length: 5"), b"\xff no line at all"]
)
async def test_head_that_takes_too_long(part: bytes) -> None:
    """408 once the deadline is over, then the end."""
    async with open_door(head_seconds_max=0.3) as server, open_client(server.port) as client:
        await client.send(part)
        answer = await client.answer()
        assert (answer.status, sentence(answer)) == (408, "no request within 0.3 s")
        await client.ends()


async def test_next_head_that_takes_too_long() -> None:
    """The deadline of the second request starts with its first byte."""
    async with open_door(head_seconds_max=0.3) as server, open_client(server.port) as client:
        await client.goes_on()
        await client.send(b"GET")
        assert (await client.answer()).status == 408
        await client.ends()


async def test_nothing_said_at_all() -> None:
    """Who says nothing is told nothing."""
    async with open_door(head_seconds_max=0.3) as server, open_client(server.port) as client:
        await client.ends()


async def test_nothing_more_said() -> None:
    """An idle connection ends after keepalive_seconds_max, and doesn't wait for a head on top of that."""
    limits = {"keepalive_seconds_max": 0.3, "head_seconds_max": 600}
    async with open_door(**limits) as server, open_client(server.port) as client:
        await client.goes_on()
        await client.ends()


async def test_one_byte_at_a_time() -> None:
    """How a request is cut into packets doesn't matter."""
    async with open_door() as server, open_client(server.port) as client:
        for byte in get("/nothing") + head("GET /chat HTTP/1.1", *HANDSHAKE):
            await client.send(bytes((byte,)))
        assert (await client.answer()).status == 404
        assert (await client.answer(bodiless=True)).status == 101


@pytest.mark.parametrize(
    ("start", "more", "status"),
    [
        (b"GET / HTTP/1.1\r\nname: ", b"x" * 1000, 431),
        (b"GET / HTTP/1.1\r\n", b"name: value\r\n", 431),
        (get("/", "Content-Length: 1000000000"), b"x" * 10_000, 413),
        (get("/", "Transfer-Encoding: chunked"), b"1\r\nx\r\n" * 100, 413),
        (b"GET\r\n\r\n", b"x" * 10_000, 400),
    ],
)
async def test_answer_reaches_who_goes_on_sending(start: bytes, more: bytes, status: int) -> None:
    """An endless request is answered, and the answer isn't destroyed by a reset."""

    async def send_on(client: Client) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await client.stream.send_all(start)
            while True:
                await client.stream.send_all(more)

    async with (
        open_door(body_bytes_max=20_000, linger_bytes_max=1_000_000) as server,
        open_client(server.port) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_on, client)
        answer = await client.answer()
        assert answer.status == status
        assert sentence(answer)
        await client.ends()
        nursery.cancel_scope.cancel()


async def test_answer_reaches_who_reads_late() -> None:
    """A client that first sends all of its body, and only then reads, finds the answer."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/", "Content-Length: 500000") + bytes(500_000))
        assert (await client.answer()).status == 413
        await client.ends()


async def test_full() -> None:
    """Above connections_max there is 503, but an operator can still look inside."""
    async with open_door(connections_max=1) as server:
        async with open_peer(server.port) as peer:
            with pytest.raises(HandshakeRefused) as refused:
                async with open_peer(server.port):
                    pytest.fail("there is no room for it")
            assert refused.value.status == 503
            async with open_client(server.port) as client:
                await client.send(get("/"))
                answer = await client.answer()
                assert (answer.status, sentence(answer)) == (503, "there are connections_max = 1 already")
                await client.ends()
            for path in ("/health", "/metrics"):
                async with open_client(server.port) as client:
                    await client.send(get(path))
                    assert (await client.answer()).status == 200
            await peer.send("still here")
            assert await peer.receive() == "still here"
        await until_quiet(server.node)
        async with open_client(server.port) as client:
            await client.send(get("/"))
            assert (await client.answer()).status == 200


async def test_too_many_rooms() -> None:
    """Above rooms_max there is 503 instead of 101; rooms that exist can be joined."""
    async with open_door(rooms_max=1) as server, open_peer(server.port, "/chat/one"):
        async with open_client(server.port) as client:
            await client.send(head("GET /chat/two HTTP/1.1", *HANDSHAKE))
            answer = await client.answer()
            assert (answer.status, sentence(answer)) == (503, "there are rooms_max rooms already")
            await client.ends()
        async with open_peer(server.port, "/chat/one") as peer:
            await peer.send("hello")
            assert await peer.receive() == "hello"


# -- more than one request


async def test_requests_in_a_row() -> None:
    """One connection, one request after the other."""
    async with open_door() as server, open_client(server.port) as client:
        for path, status in (("/", 200), ("/nothing", 404), ("/chat", 426), ("/metrics", 200)):
            await client.send(get(path))
            answer = await client.answer()
            assert answer.status == status
            assert "close" not in answer.headers.get("connection", "").lower()


async def test_requests_all_at_once() -> None:
    """Pipelined requests are answered in their order, and the handshake behind them too."""
    async with open_door() as server, open_client(server.port) as client:
        requests = [get("/health"), get("/nothing"), get("/static/hubbub.css"), get("/health")]
        await client.send(b"".join(requests) * 20 + head("GET /chat HTTP/1.1", *HANDSHAKE))
        for _ in range(20):
            assert [(await client.answer()).status for _ in requests] == [200, 404, 200, 200]
        assert (await client.answer(bodiless=True)).status == 101


@pytest.mark.parametrize(
    "request_head",
    [
        head("GET /health HTTP/1.0", HOST),
        head("GET /health HTTP/1.0", HOST, "Connection: keep-alive"),
        get("/health", "Connection: close"),
        get("/nothing", "Connection: foo, Close"),
    ],
)
async def test_last_request(request_head: bytes) -> None:
    """HTTP/1.0 and `Connection: close` end the connection after the answer, even if more has been asked."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(request_head + get("/health"))
        answer = await client.answer()
        assert answer.headers["connection"].lower() == "close"
        await client.ends()


@pytest.mark.parametrize("path", ["/", "/static/hubbub.js", "/health", "/nothing"])
async def test_head(path: str) -> None:
    """HEAD has the fields of GET and no body; the connection goes on."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get(path))
        expected = await client.answer()
        await client.send(head(f"HEAD {path} HTTP/1.1", HOST))
        answer = await client.answer(bodiless=True)
        del expected.headers["date"], answer.headers["date"]
        assert answer == expected._replace(body=b"")
        await client.goes_on()


async def test_an_error_behind_a_head_has_a_body() -> None:
    """What kind of request the last one was doesn't matter to the next one."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(head("HEAD / HTTP/1.1", HOST) + b"GET\r\n\r\n")
        await client.answer(bodiless=True)
        assert sentence(await client.answer()).startswith("illegal request line")
        await client.ends()


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (["Content-Length: 65536"], bytes(65536)),
        (["Content-Length: 0"], b""),
        (["Transfer-Encoding: chunked"], b"5;extension\r\nhello\r\n0\r\ntrailer: x\r\n\r\n"),
    ],
)
async def test_body_is_discarded(fields: list[str], body: bytes) -> None:
    """A body within the limit is read over, and the next request is found behind it."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/health", *fields) + body + get("/nothing"))
        assert [(await client.answer()).status for _ in range(2)] == [200, 404]
        await client.send(head("POST /health HTTP/1.1", HOST, *fields) + body)
        assert (await client.answer()).status == 405
        await client.goes_on()


async def test_body_that_is_waited_for() -> None:
    """`Expect: 100-continue` is told to go on."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/health", "Content-Length: 5", "Expect: 100-continue"))
        assert (await client.answer(bodiless=True)).status == 100
        await client.send(b"hello")
        assert (await client.answer()).status == 200
        await client.goes_on()


async def test_handshake_after_a_page() -> None:
    """A connection that has had a page may become a WebSocket; frames sent along with the handshake count."""
    async with open_door() as server, open_client(server.port) as client:
        await client.goes_on()
        peer = await shake_hands(client.stream, handshake())
        await peer.send("hello")
        assert await peer.receive() == "hello"


async def test_half_closed_client_is_answered() -> None:
    """Who sends a request and its FIN still gets the answer."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/"))
        await client.stream.send_eof()
        assert (await client.answer()).status == 200
        await client.ends()


# -- what there is


@pytest.mark.parametrize(
    ("path", "content_type", "start"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/?room=x", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/static/hubbub.css", "text/css; charset=utf-8", b""),
        ("/static/hubbub.js", "text/javascript; charset=utf-8", b""),
        ("/static/favicon.svg", "image/svg+xml", b"<svg"),
    ],
)
async def test_page(path: str, content_type: str, start: bytes) -> None:
    """The page's files have their type, and the policy that keeps foreign scripts out."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get(path))
        answer = await client.answer()
        assert (answer.status, answer.headers["content-type"]) == (200, content_type)
        assert answer.body.lower().startswith(start)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'; script-src 'self';" in answer.headers["content-security-policy"]
        assert tuple((name, answer.headers[name.lower()]) for name, _ in SECURITY_HEADERS) == SECURITY_HEADERS


async def test_health() -> None:
    """As short as can be."""
    async with open_door() as server, open_client(server.port) as client:
        await client.send(get("/health"))
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"


FAMILIES = {
    "gauge": "connections rooms subscriptions outboxes_queued outboxes_queued_bytes inbox_commands inbox_bytes "
    "inbox_readers_waiting histories history_publications history_bytes idempotency_keys tasks build_info "
    "hook_questions_waiting hook_questions_under_way hook_notices_waiting hook_notices_waiting_bytes",
    "counter": "publications deliveries gaps commands_refused histories_evicted rate_pauses rooms_failed "
    "connections_opened connections_ended http_responses internal_errors refusals "
    "hook_questions hook_notices hook_notices_lost hook_deliveries_failed",
}


async def test_metrics() -> None:
    """Prometheus can read them, and they say what has happened."""
    async with open_door() as server, open_peer(server.port) as peer, open_client(server.port) as client:
        await peer.send("hello")
        await peer.receive()
        await client.send(get("/nothing"))
        await client.answer()
        await client.send(get("/metrics"))
        answer = await client.answer()
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        assert answer.headers["content-type"].startswith("text/plain; version=")
        types = {f"hubbub_{name}": kind for kind, names in FAMILIES.items() for name in names.split()}
        assert {name: family.type for name, family in families.items() if name.startswith("hubbub_")} == types
        assert all(family.documentation for family in families.values())
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert samples["hubbub_connections",] == samples["hubbub_rooms",] == samples["hubbub_publications_total",] == 1
        assert samples["hubbub_http_responses_total", "404"] == 1
        assert samples["hubbub_connections_ended_total", "peer_closed"] == 0
        assert samples["hubbub_build_info", __version__] == 1
        assert samples["process_open_fds",] > 0


# -- anything at all

VALID = [
    head("GET /chat/room?history=5 HTTP/1.1", *HANDSHAKE, "Origin: http://localhost"),
    get("/"),
    get("/metrics", "Connection: close"),
    head("HEAD /health HTTP/1.0"),
    head("POST / HTTP/1.1", HOST, "Content-Length: 5", "Expect: 100-continue") + b"hello" + get("/health"),
    get("http://localhost/static/hubbub.js", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n" + get("/"),
]
CHANGE = st.tuples(st.integers(0, 300), st.integers(0, 20), st.binary(max_size=5) | st.sampled_from(VALID))


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with some pieces replaced."""
    for at, length, new in changes:
        data = data[:at] + new + data[at + length :]
    return data


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@settings(deadline=None, max_examples=300)
@given(
    data=st.binary(max_size=300) | st.builds(changed, st.sampled_from(VALID), st.lists(CHANGE, max_size=4)),
    cuts=st.lists(st.integers(0, 600), max_size=4).map(sorted),
)
def test_any_bytes_are_answered_or_the_connection_ends(data: bytes, cuts: list[int]) -> None:
    """Whatever arrives, however it is cut: an answer or the end, never an error of ours, and nothing is left."""

    async def talk() -> None:
        async with open_door(close_seconds_max=0.2) as server, open_client(server.port) as client:
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send(data[start:stop])
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
            with contextlib.suppress(trio.BrokenResourceError):
                await client.stream.send_eof()
            received = b""
            with trio.fail_after(SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError):
                async for some in client.stream:
                    received += some
            if received:
                version, status, _ = received.split(b" ", 2)
                assert version == b"HTTP/1.1"
                assert int(status) in (100, 101, 200, *range(400, 500), 501, 503, 505)

    trio.run(talk)
