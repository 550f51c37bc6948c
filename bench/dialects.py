"""The dialects: how a room is joined, what publishes a message, and what each subscriber is due for it, to the byte.

A *message* is what a benchmark publishes: a stamp, and padding. Whatever the dialect, each goes to each subscriber in a
frame of its own, and that frame's payload has the size that was asked for: the same bytes on the wire.
"""

from __future__ import annotations

import json
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

TEXT = 0x81  # the first byte of a whole text frame
CLOSE = 0x88
STAMP = b"%09d %04d %015d "  # sequence number, publisher, nanoseconds: how every message begins
STAMP_SIZE = len(STAMP % (0, 0, 0))


class BenchError(Exception):
    """There is no result, or it fails its check; the text says why."""


def frame_header(size: int, mask_key: bytes = b"") -> bytes:
    """What precedes the payload of a whole text frame; with a mask key, as a client must send it."""
    bit = 0x80 if mask_key else 0
    if size < 126:
        return bytes([TEXT, bit | size]) + mask_key
    if size < 1 << 16:
        return bytes([TEXT, bit | 126]) + size.to_bytes(2, "big") + mask_key
    return bytes([TEXT, bit | 127]) + size.to_bytes(8, "big") + mask_key


def parse_frames(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole frames a server sent: first byte (FIN and opcode) and payload."""
    at = 0
    while at + 2 <= len(stream):
        start, size = at + 2, stream[at + 1]
        if size & 0x80:
            raise BenchError(f"the frame at byte {at} is masked, as a server's must not be")
        if size >= 126:
            start += 2 if size == 126 else 8
            size = int.from_bytes(stream[at + 2 : start], "big")
        if start + size > len(stream):
            return
        yield stream[at], stream[start : start + size]
        at = start + size


class Dialect(ABC):
    """One room in one dialect; of each repeat its own."""

    path: ClassVar[str]  # of the WebSocket, in the daemon started here
    size_default: ClassVar[int]  # of a delivery's payload
    size_min: ClassVar[int]
    publishers_apart: ClassVar[bool]  # whether those who publish aren't in the room

    message_size: int  # of the messages to be published now

    @abstractmethod
    def __init__(self, size: int) -> None: ...

    @abstractmethod
    def begin(self, published: int) -> None:
        """A new run, after so many publications in the last one."""

    @abstractmethod
    def join(self, connection: socket.socket) -> None:
        """Enter the room, right after the 101."""

    @abstractmethod
    def introduce(self, connection: socket.socket) -> None:
        """Become the next publisher, right after the 101, where publishers are apart."""

    @abstractmethod
    def frame(self, message: bytes) -> bytes:
        """What publishes a message."""

    @abstractmethod
    def due(self, count: int) -> int:
        """How many bytes the first `count` publications of the run are for each subscriber."""

    @abstractmethod
    def message(self, position: int, payload: bytes) -> bytes | str:
        """The message in the delivery at that position of the run, or what is wrong with it."""

    @abstractmethod
    def answers(self, stream: bytes) -> Iterator[int | str]:
        """What a publisher apart was answered: the number of each message accepted, or whatever else it was told."""


class Plain(Dialect):
    """Being connected is being in the room, the payload is the message, and nothing is answered."""

    path = "/chat/bench"
    size_default, size_min = 100, STAMP_SIZE
    publishers_apart = False

    def __init__(self, size: int) -> None:
        self.message_size = size
        self._header = frame_header(size, mask_key=bytes(4))
        self._delivery_size = len(frame_header(size)) + size

    def begin(self, published: int) -> None: ...

    def join(self, connection: socket.socket) -> None: ...

    def introduce(self, connection: socket.socket) -> None: ...

    def frame(self, message: bytes) -> bytes:
        return self._header + message

    def due(self, count: int) -> int:
        return count * self._delivery_size

    def message(self, position: int, payload: bytes) -> bytes | str:
        return payload

    def answers(self, stream: bytes) -> Iterator[int | str]:
        return iter(())


class Centrifugo(Dialect):
    """The structured dialect. A delivery is a push, whose data is the message as a JSON string.

    The offset is the one part of a push that isn't known beforehand, since publishers race; but the offset of a run's
    k-th publication is, and so is its number of digits. Messages are padded for the offset at which the run begins:
    where it has got a digit more, so has the delivery.
    """

    path = "/connection/websocket"
    size_default = 200
    publishers_apart = True

    _CONNECT = b'{"id":1,"connect":{"name":"bench"}}'
    _SUBSCRIBE = b'{"id":2,"subscribe":{"channel":"bench","positioned":true}}'
    _PUBLISH = b'{"id":%d,"publish":{"channel":"bench","data":"%b"}}'
    _PUSH = re.compile(
        rb'\{"push":\{"channel":"bench","pub":'
        rb'\{"data":"([^"\\]*)","info":\{"user":"","client":"([0-9a-f-]{36})"\},"offset":([1-9][0-9]*)\}\}\}'
    )
    _AROUND = len('{"push":{"channel":"bench","pub":{"data":"","info":{"user":"","client":""},"offset":}}}') + 36
    _ACCEPTED = re.compile(rb'\{"id":([1-9][0-9]*),"publish":\{[^{}]*\}\}')

    size_min = _AROUND + STAMP_SIZE + 9  # as many digits as a stamp has for its number

    def __init__(self, size: int) -> None:
        self._size = size
        self._offset: int | None = None  # of the last publication before the run
        self._clients: list[str] = []  # the publishers' names

    def begin(self, published: int) -> None:
        self._offset = (self._offset or 0) + published
        self.message_size = self._size - self._AROUND - len(str(self._offset + 1))

    def join(self, connection: socket.socket) -> None:
        _, subscribed = self._ask(connection, self._CONNECT, self._SUBSCRIBE)
        offset = subscribed["subscribe"].get("offset", 0)
        if offset != (offset if self._offset is None else self._offset):
            raise BenchError(f"joined at offset {offset}, others at {self._offset}: somebody else publishes there")
        self._offset = offset

    def introduce(self, connection: socket.socket) -> None:
        (connected,) = self._ask(connection, self._CONNECT)
        self._clients.append(connected["connect"]["client"])

    def frame(self, message: bytes) -> bytes:
        command = self._PUBLISH % (int(message[:9]) + 1, message)
        return frame_header(len(command), mask_key=bytes(4)) + command

    def due(self, count: int) -> int:
        total, offset = 0, (self._offset or 0) + 1
        while count > 0:
            digits = len(str(offset))
            alike = min(count, 10**digits - offset)  # those with as many digits
            size = self._AROUND + self.message_size + digits
            total += alike * (len(frame_header(size)) + size)
            count, offset = count - alike, offset + alike
        return total

    def message(self, position: int, payload: bytes) -> bytes | str:
        push = self._PUSH.fullmatch(payload)
        if push is None:
            return f"not a push as expected ({payload[:200]!r})"
        message, client, offset = push[1], push[2].decode(), int(push[3])
        if offset != (due := (self._offset or 0) + 1 + position):
            return f"offset {offset} where {due} is due"
        publisher = message[10:14]
        if publisher.isdigit() and self._clients[int(publisher) :][:1] != [client]:
            return f"publisher {int(publisher)}'s message in the name of another client"
        return message

    def answers(self, stream: bytes) -> Iterator[int | str]:
        for first, payload in parse_frames(stream):
            for line in payload.split(b"\n"):
                accepted = self._ACCEPTED.fullmatch(line) if first == TEXT else None
                yield int(accepted[1]) - 1 if accepted else f"{first:#x} {line[:200]!r}"

    def _ask(self, connection: socket.socket, *commands: bytes) -> list[dict[str, Any]]:
        """Send commands in one frame and wait for their replies, on a socket that blocks."""
        text = b"\n".join(commands)
        connection.sendall(frame_header(len(text), mask_key=bytes(4)) + text)
        lines: list[bytes] = []
        while len(lines) < len(commands):
            first, payload = _read_frame(connection)
            if first != TEXT:
                raise BenchError(f"{text.decode()!r} was answered by {first:#x} {payload!r}")
            lines += payload.split(b"\n")
        replies = [json.loads(line) for line in lines]
        for command, reply in zip(commands, replies, strict=True):
            if not isinstance(reply, dict) or reply.get("id") != json.loads(command)["id"] or "error" in reply:
                raise BenchError(f"{command.decode()!r} was answered by {reply!r}")
        return replies


def _read_frame(connection: socket.socket) -> tuple[int, bytes]:
    """The next frame, and no byte further."""
    first, size = _read(connection, 2)
    if size >= 126:
        size = int.from_bytes(_read(connection, 2 if size == 126 else 8), "big")
    return first, _read(connection, size)


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (some := connection.recv(count - len(data))):
            raise BenchError("closed by the server before it had joined")
        data += some
    return data


DIALECTS: dict[str, type[Dialect]] = {"plain": Plain, "centrifugo": Centrifugo}
