"""hubbub over TLS: the same chat, and a port that stays calm whatever is said to it in place of a handshake."""

import contextlib
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trustme
from structlog.testing import capture_logs

from hubbub.core.frames import CLOSE, TEXT
from peers import SECONDS_MAX, Closed, Peer, client_frame, close_payload, connect, handshake, reset, shake_hands
from servers import Server, open_daemon, open_server, until_quiet

Tls = trio.SSLStream[trio.SocketStream]


class Keys(NamedTuple):
    """A server's certificate, and a client that trusts it."""

    cert: trustme.LeafCert
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def keys() -> Keys:
    """Made once: it takes a moment."""
    authority = trustme.CA()
    keys = Keys(
        authority.issue_cert("localhost", "127.0.0.1"),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    keys.cert.configure_cert(keys.server)
    authority.configure_trust(keys.client)
    return keys


@contextlib.asynccontextmanager
async def open_tls_server(keys: Keys, **overrides: object) -> AsyncIterator[Server]:
    """A TLS server in which nothing may go wrong on the inside, and of which nothing may be left."""
    with capture_logs() as logs:
        async with open_server(tls=keys.server, **overrides) as server:
            yield server
            await until_quiet(server.node)
            assert b"\nhubbub_internal_errors_total 0.0\n" in server.node.metrics.text()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []


@contextlib.asynccontextmanager
async def open_tls(port: int, keys: Keys) -> AsyncIterator[Tls]:
    """Connect and shake hands; on leaving the socket is closed, and nothing said."""
    stream = trio.SSLStream(await connect(port), keys.client, server_hostname="localhost")
    try:
        with trio.fail_after(SECONDS_MAX):
            await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def open_tls_peer(port: int, keys: Keys, path: str = "/chat") -> AsyncIterator[Peer]:
    """A WebSocket client over TLS."""
    async with open_tls(port, keys) as stream:
        yield await shake_hands(stream, handshake(path))


@contextlib.contextmanager
def open_tls_daemon(keys: Keys, folder: Path) -> Iterator[str]:
    """The daemon with a certificate; gives its URL."""
    chain = b"".join(blob.bytes() for blob in keys.cert.cert_chain_pems)
    (folder / "cert.pem").write_bytes(chain)
    keys.cert.private_key_pem.write_to_path(str(folder / "key.pem"))
    with open_daemon("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")) as daemon:
        yield daemon.url


async def end_of(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end of the stream."""
    received = b""
    with trio.fail_after(SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            received += data
    return received


# -- what works


async def test_chat(keys: Keys) -> None:
    """Two clients, one order."""
    async with (
        open_tls_server(keys) as server,
        open_tls_peer(server.port, keys) as one,
        open_tls_peer(server.port, keys) as two,
    ):
        for number in range(100):
            await (one if number % 2 else two).send(f"message {number}")
        received = await one.receive_texts(100)
        assert await two.receive_texts(100) == received
        for sent in (range(0, 100, 2), range(1, 100, 2)):
            texts = [f"message {number}" for number in sent]
            assert [text for text in received if text in texts] == texts


async def test_large_messages(keys: Keys) -> None:
    """More than one TLS record each."""
    async with open_tls_server(keys) as server, open_tls_peer(server.port, keys) as peer:
        for size in (16_384, 16_385, 65_536):
            await peer.send(size * "x")
            assert await peer.receive() == size * "x"


async def test_requests_in_a_row(keys: Keys) -> None:
    """Keep-alive over TLS, with a close_notify at the end."""
    async with open_tls_server(keys) as server, open_tls(server.port, keys) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        with trio.fail_after(SECONDS_MAX):  # without close_notify this stream would be broken, not ended
            async for data in stream:
                received += data
        assert received.count(b"\r\n\r\nok\n") == 2
        assert b"\r\n\r\n404 Not Found: " in received


async def test_origin_has_the_port_of_https(keys: Keys) -> None:
    """A page from https://localhost, port 443 unsaid, may connect to Host localhost; http://localhost may not."""
    async with open_tls_server(keys) as server:
        for origin, answer in (("https://localhost", b" 101 "), ("http://localhost", b" 403 ")):
            async with open_tls(server.port, keys) as stream:
                await stream.send_all(handshake(headers=(("Origin", origin),)))
                with trio.fail_after(SECONDS_MAX):
                    assert answer in await stream.receive_some()


async def test_page(keys: Keys, tmp_path: Path) -> None:
    """The daemon announces https and serves the page to a client that checks its certificate."""
    with open_tls_daemon(keys, tmp_path) as url:
        assert url.startswith("https://127.0.0.1:")

        def fetch(context: ssl.SSLContext) -> tuple[int, bytes]:
            with urllib.request.urlopen(url, timeout=SECONDS_MAX, context=context) as response:
                return response.status, response.read()

        status, page = await trio.to_thread.run_sync(fetch, keys.client)
        assert (status, page[:9].lower()) == (200, b"<!doctype")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            await trio.to_thread.run_sync(fetch, ssl.create_default_context())
        assert (await trio.to_thread.run_sync(fetch, keys.client))[0] == 200


# -- how it ends


async def test_closing_handshake(keys: Keys) -> None:
    """The peer's Close is answered, then TLS ends with close_notify, not with a broken connection."""
    async with (
        open_tls_server(keys) as server,
        open_tls_peer(server.port, keys) as peer,
        open_tls_peer(server.port, keys) as other,
    ):
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await peer.send("bye")
        _, closed = await peer.close()
        assert closed.code == 1000
        with trio.fail_after(SECONDS_MAX):
            assert await peer.stream.receive_some() == b""
        assert await other.receive_texts(2) == ["hello", "bye"]


async def test_drain(keys: Keys) -> None:
    """All that was published before, and 1001."""
    async with (
        open_tls_server(keys) as server,
        open_tls_peer(server.port, keys) as one,
        open_tls_peer(server.port, keys) as two,
    ):
        texts = [f"{number}" + 1000 * "x" for number in range(200)]
        for text in texts:
            await one.send(text)
        assert await one.receive_texts(200) == texts
        await server.node.drain()
        for peer, expected in ((two, texts), (one, [])):
            messages, closed = await peer.receive_until_closed()
            assert (messages, closed.code) == (expected, 1001)


@pytest.mark.parametrize(
    ("last", "code"),
    [(client_frame(CLOSE, close_payload(1000)), 1000), (client_frame(TEXT, bytes(2000)), 1009)],
    ids=["Close", "message too large"],
)
async def test_the_end_reaches_who_goes_on_sending(keys: Keys, last: bytes, code: int) -> None:
    """Messages and the Close aren't destroyed by a reset because the client hasn't stopped to talk."""

    async def send_on(stream: Tls) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await stream.send_all(client_frame(TEXT, bytes(1000)))

    limits = {"message_bytes_max": 1000}
    async with open_tls_server(keys, **limits) as server, open_tls(server.port, keys) as stream:
        witness = await shake_hands(stream, handshake())
        async with open_tls(server.port, keys) as sending:
            peer = await shake_hands(sending, handshake())
            texts = [f"message {number}" for number in range(50)]
            for text in texts:
                await witness.send(text)
            assert await witness.receive_texts(50) == texts
            async with trio.open_nursery() as nursery:
                await peer.send_raw(last)
                nursery.start_soon(send_on, sending)
                frames = [await peer.receive_frame() for _ in range(51)]
                nursery.cancel_scope.cancel()
        assert [payload.decode() for _, payload in frames[:50]] == texts
        assert frames[50][0] & 0x0F == CLOSE
        assert int.from_bytes(frames[50][1][:2], "big") == code


@pytest.mark.parametrize("how", ["reset", "end of stream", "in the middle of a record"])
async def test_client_that_vanishes(keys: Keys, how: str) -> None:
    """No close_notify, no Close: the others go on, and nothing is left of it."""
    async with open_tls_server(keys) as server, open_tls_peer(server.port, keys) as witness:
        async with open_tls(server.port, keys) as stream:
            peer = await shake_hands(stream, handshake())
            await peer.send("hello")
            assert await peer.receive() == "hello"
            match how:
                case "reset":
                    await reset(stream.transport_stream)
                case "end of stream":
                    await stream.transport_stream.send_eof()
                    await end_of(stream.transport_stream)
                case _:
                    await stream.transport_stream.send_all(b"\x17\x03\x03" + struct.pack("!H", 1000) + bytes(10))
        with trio.fail_after(SECONDS_MAX):
            while len(server.node.connections) > 1:
                await trio.sleep(0.01)
        await witness.send("still here")
        assert await witness.receive_texts(2) == ["hello", "still here"]


# -- what isn't TLS

NOT_TLS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a handshake of WebSocket": handshake(),
    "bytes": bytes(range(256)),
    "text": b"hello\r\n" * 1000,
    "a record that isn't one": b"\x16\x03\x01\x02\x00" + bytes(512),
    "a record of the wrong kind": b"\x17\x03\x03\x00\x10" + bytes(16),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
}


@pytest.mark.parametrize("garbage", NOT_TLS.values(), ids=NOT_TLS)
async def test_something_else_than_tls(keys: Keys, garbage: bytes) -> None:
    """The connection ends at once, and nobody else notices."""
    async with open_tls_server(keys, head_seconds_max=600) as server, open_tls_peer(server.port, keys) as peer:
        async with await connect(server.port) as stream:
            await stream.send_all(garbage)
            assert b"HTTP" not in await end_of(stream)
        await peer.send("hello")
        assert await peer.receive() == "hello"


async def test_garbage_behind_the_tls_handshake(keys: Keys) -> None:
    """A record that can't be decrypted ends the connection as a vanished peer does."""
    async with open_tls_server(keys) as server, open_tls(server.port, keys) as stream:
        peer = await shake_hands(stream, handshake())
        await stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(Closed):
            await peer.receive()


@pytest.mark.parametrize("part", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_tls_handshake_that_takes_too_long(keys: Keys, part: bytes) -> None:
    """Who connects and says nothing, or begins and stops, is let go after the deadline."""
    async with open_tls_server(keys, head_seconds_max=0.3) as server, await connect(server.port) as stream:
        await stream.send_all(part)
        assert await end_of(stream) == b""


async def test_drain_waits_for_no_tls_handshake(keys: Keys) -> None:
    """Nobody has been promised anything yet, so nobody is waited for."""
    async with open_tls_server(keys, head_seconds_max=600) as server, await connect(server.port) as stream:
        with trio.fail_after(SECONDS_MAX):
            while not server.node.front_door.serving:
                await trio.sleep(0.01)
        await server.node.drain()
        assert await end_of(stream) == b""


async def test_untrusting_client(keys: Keys) -> None:
    """A client that refuses the certificate says so in an alert; that is its affair."""
    async with open_tls_server(keys, head_seconds_max=600) as server, await connect(server.port) as stream:
        client = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(SECONDS_MAX):
            await client.do_handshake()
