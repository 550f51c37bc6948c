"""Clients for tests: a WebSocket peer made by hand over any byte stream, so that it can also misbehave."""

import base64
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import Protocol

import trio

from hubbub.core.frames import BINARY, CLOSE, FIN, MASKED, PING, PONG, TEXT

SECONDS_MAX = 20.0
"""A test's client never waits longer for anything."""


class ByteStream(Protocol):
    """What a peer needs of its side of a connection: a Trio stream, or the simulation's pipe."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


def client_frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = None, rsv: int = 0) -> bytes:
    """Return a masked frame as a client sends it."""
    mask = os.urandom(4) if mask is None else mask
    first = (FIN if fin else 0) | rsv | opcode
    length = len(payload)
    if length < 126:
        header = struct.pack("!BB", first, MASKED | length)
    elif length < 65536:
        header = struct.pack("!BBH", first, MASKED | 126, length)
    else:
        header = struct.pack("!BBQ", first, MASKED | 127, length)
    key = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")  # at once: a byte at a time takes long
    return header + mask + masked.to_bytes(length, "big")


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a Close frame."""
    return struct.pack("!H", code) + reason.encode()


def handshake(path: str = "/chat", host: str = "localhost", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a well-formed upgrade request."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Closed(Exception):
    """The server has closed: with this code and reason, or 1006 without a Close frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Peer:
    """One WebSocket client, after its handshake. Answers pings and Closes only where it says so."""

    def __init__(self, stream: ByteStream, received: bytes = b"") -> None:
        self.stream = stream
        self._buffer = bytearray(received)

    async def send(self, text: str) -> None:
        """Send a text message."""
        await self.send_frame(TEXT, text.encode())

    async def send_frame(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        """Send one frame."""
        with trio.fail_after(SECONDS_MAX):
            await self.stream.send_all(client_frame(opcode, payload, fin=fin))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(SECONDS_MAX):
            await self.stream.send_all(data)

    async def receive_frame(self) -> tuple[int, bytes]:
        """Return the next frame: first byte and payload.

        Raises:
            Closed: 1006, the stream has ended.
        """
        while True:
            frame = self._parse()
            if frame is not None:
                return frame
            try:
                with trio.fail_after(SECONDS_MAX):
                    data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                raise Closed(1006, "reset") from None
            if not data:
                raise Closed(1006, "end of stream" if not self._buffer else "end of stream within a frame")
            self._buffer += data

    async def receive(self) -> str | bytes:
        """Return the next message; answers pings, skips pongs.

        Raises:
            Closed: a Close frame has come, and was answered; or the stream has ended (1006).
        """
        while True:
            first, payload = await self.receive_frame()
            assert first & 0x70 == 0
            assert first & FIN, "the server doesn't fragment"
            opcode = first & 0x0F
            if opcode == TEXT:
                return payload.decode()
            if opcode == BINARY:
                return payload
            if opcode == PING:
                await self.send_frame(PONG, payload)
            elif opcode == CLOSE:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.send_frame(CLOSE, payload[:2])
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                raise Closed(code, payload[2:].decode())

    async def receive_texts(self, count: int) -> list[str]:
        """Return the next `count` messages, all text."""
        messages = [await self.receive() for _ in range(count)]
        assert all(isinstance(message, str) for message in messages)
        return [str(message) for message in messages]

    async def receive_until_closed(self) -> tuple[list[str | bytes], Closed]:
        """Return all messages up to the end, and the end."""
        messages: list[str | bytes] = []
        while True:
            try:
                messages.append(await self.receive())
            except Closed as closed:
                return messages, closed

    async def close(self) -> tuple[list[str | bytes], Closed]:
        """Say Close and return what still comes, up to the server's answer."""
        await self.send_frame(CLOSE, close_payload(1000))
        return await self.receive_until_closed()

    def _parse(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        assert not buffer[1] & MASKED, "a server doesn't mask"
        start, length = 2, buffer[1]
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + length:
            return None
        first, payload = buffer[0], bytes(buffer[start : start + length])
        del buffer[: start + length]
        return first, payload


class HandshakeRefused(Exception):
    """The server answered something else than 101."""

    def __init__(self, status: int, response: bytes) -> None:
        super().__init__(status, response)
        self.status = status
        self.response = response


async def shake_hands(stream: ByteStream, request: bytes) -> Peer:
    """Send an upgrade request and read the answer.

    Raises:
        HandshakeRefused: it isn't 101 (0 if there is none).
    """
    with trio.fail_after(SECONDS_MAX):
        await stream.send_all(request)
        received = b""
        while b"\r\n\r\n" not in received:
            try:
                data = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise HandshakeRefused(0, received)
            received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 101:
        raise HandshakeRefused(status, received)
    return Peer(stream, rest)


@contextlib.asynccontextmanager
async def open_peer(port: int, path: str = "/chat", *, receive_buffer: int | None = None) -> AsyncIterator[Peer]:
    """Connect over TCP; the socket is closed, forcefully, on leaving."""
    stream = await connect(port, receive_buffer=receive_buffer)
    try:
        yield await shake_hands(stream, handshake(path))
    finally:
        await trio.aclose_forcefully(stream)


async def connect(port: int, *, receive_buffer: int | None = None) -> trio.SocketStream:
    """Return a TCP connection to the port on loopback; a small receive buffer makes backlog come soon."""
    connection = trio.socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await connection.connect(("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)


async def reset(stream: trio.SocketStream) -> None:
    """End a TCP connection with RST."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)
