"""One connection of a crowd, plain or structured: from its handshake to its end, without ever waiting.

NEW ──start──▶ CONNECTING ──▶ UPGRADING ──101──▶ JOINING ──replies──▶ OPEN ──▶ GONE
"""

from __future__ import annotations

import base64
import contextlib
import enum
import hashlib
import json
import re
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

from dialects import CLOSE, TEXT, BenchError, frame_header
from loadgen import GONE

if TYPE_CHECKING:
    from crowd import Crowd
    from room import Room, Seat

PING, PONG = 0x89, 0x8A
KEY = base64.b64encode(bytes(16)).decode()  # every client's: what is random in it isn't for the server
ACCEPT = base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
PUSH = re.compile(
    rb'\{"push":\{"channel":"[^"]*","pub":'
    rb'\{"data":"([^"\\]*)"(?:,"info":\{[^{}]*\})?(?:,"offset":([0-9]+))?\}\}\}'
)
PUBLISHED = re.compile(rb'\{"id":([0-9]+),"publish":\{[^{}]*\}\}')
_READ_MAX = 1 << 16
_GOODBYE = bytes([CLOSE, 0x82, 0, 0, 0, 0, 0x03, 0xE8])


class State(enum.Enum):
    """Where in its life a client is."""

    NEW = enum.auto()
    CONNECTING = enum.auto()
    UPGRADING = enum.auto()
    JOINING = enum.auto()
    OPEN = enum.auto()
    GONE = enum.auto()


class Client:
    """A connection, in one room or (structured only) in none.

    A stayer must be delivered everything; if it is closed by the server, there is no result.
    """

    __slots__ = (
        "answered",
        "close_code",
        "commands",
        "crowd",
        "leaving",
        "memberships",
        "name",
        "number",
        "opened_at",
        "reply",
        "room",
        "seat",
        "socket",
        "state",
        "stays",
        "structured",
        "unread",
        "unsent",
    )

    def __init__(self, crowd: Crowd, name: str, room: Room | None, *, structured: bool, stays: bool = True) -> None:
        self.crowd, self.name, self.room, self.structured, self.stays = crowd, name, room, structured, stays
        self.state, self.leaving = State.NEW, False
        self.seat: Seat | None = None
        self.socket: socket.socket
        self.unread, self.unsent = b"", bytearray()
        self.commands = self.answered = 0  # of the structured dialect
        self.memberships = 0  # joins and leaves it was told of
        self.reply: dict[str, Any] = {}  # to its `connect`
        self.close_code: int | None = None
        self.opened_at = 0  # ns
        self.number = 0  # which of the crowd it was to start

    # Beginning.

    def start(self, address: tuple[str, int], source: str | None) -> None:
        """Begin to connect."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            self.socket.bind((source, 0))
        self.state = State.CONNECTING
        self.socket.connect_ex(address)

    def _upgrade(self) -> None:
        if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise BenchError(f"{self.name}: connecting: error {error}")
        self.state = State.UPGRADING
        path = "/connection/websocket" if self.structured else f"/chat/{self.room.name if self.room else ''}"
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: {self.crowd.authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )

    def _upgraded(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head:
            raise BenchError(f"{self.name}: the handshake was answered by {head.splitlines()[:1]!r}")
        self.state = State.JOINING
        if self.structured:
            self.command(*self.hello())
        else:
            self._opened(None)

    def hello(self) -> list[str]:
        """The commands that come first: `connect`, and where there is a room `subscribe`."""
        subscribe = {"channel": self.room.name, "positioned": True, "recoverable": True} if self.room else {}
        return ['"connect":{"name":"bench"}'] + ([f'"subscribe":{json.dumps(subscribe)}'] if subscribe else [])

    def _opened(self, offset: int | None) -> None:
        self.state, self.opened_at = State.OPEN, self.crowd.clock
        if self.room:
            self.seat = self.room.seat(self.name, offset)
        self.crowd.opened(self)

    # Speaking.

    def send(self, data: bytes = b"") -> None:
        """Send in one go, after what the kernel wouldn't take before."""
        self.unsent += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # epoll tells, too
            del self.unsent[: self.socket.send(self.unsent)]

    def command(self, *members: str) -> None:
        """Send commands in one frame."""
        lines = []
        for member in members:
            self.commands += 1
            lines.append(f'{{"id":{self.commands},{member}}}')
        text = "\n".join(lines).encode()
        self.send(frame_header(len(text), mask_key=bytes(4)) + text)

    def publication(self, room: Room, message: bytes) -> bytes:
        """The frame that publishes a message. It must be sent, and in this order."""
        if not self.structured:
            return frame_header(len(message), mask_key=bytes(4)) + message
        self.commands += 1
        text = b'{"id":%d,"publish":{"channel":"%b","data":"%b"}}' % (self.commands, room.name.encode(), message)
        return frame_header(len(text), mask_key=bytes(4)) + text

    # Listening.

    def on_event(self, event: int) -> None:
        """Epoll has something to tell."""
        if self.state is State.GONE:
            return
        if self.state is State.CONNECTING:
            if not event & (select.EPOLLOUT | GONE):
                return
            self._upgrade()
        elif event & select.EPOLLOUT and self.unsent:
            self.send()
        if event & (select.EPOLLIN | GONE) and self._read(to_the_end=bool(event & GONE)):
            self.crowd.ended(self)

    def _read(self, to_the_end: bool) -> bool:
        """Take in what is there; whether that was the end."""
        while self.state is not State.GONE:
            try:
                data = self.socket.recv(_READ_MAX)
            except BlockingIOError:
                break
            except (ConnectionResetError, BrokenPipeError):
                return True
            if not data:
                return True
            self.crowd.tick()
            self.feed(data)
            if len(data) < _READ_MAX and not to_the_end:  # a later end is another event
                break
        return False

    def feed(self, data: bytes) -> None:
        """Understand what has come."""
        data = self.unread + data if self.unread else data
        if self.state is State.UPGRADING:
            head, blank, rest = data.partition(b"\r\n\r\n")
            if not blank:
                self.unread = data
                return
            self.unread, data = b"", rest
            self._upgraded(head)
        at, length = 0, len(data)
        while at + 2 <= length:
            start, size = at + 2, data[at + 1]
            if size >= 126:
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : start], "big")
            if start + size > length or start > length:
                break
            self.on_frame(data[at], data[start : start + size])
            at = start + size
        self.unread = data[at:]

    def on_frame(self, first: int, payload: bytes) -> None:
        """A whole frame."""
        if first == TEXT and not self.structured:
            self._deliver(payload, None)
        elif first == TEXT:
            for line in payload.split(b"\n"):
                self.on_line(line)
        elif first == PING:
            self.send(bytes([PONG, 0x80 | len(payload)]) + bytes(4) + payload)
        elif first == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big")
            if not self.leaving:  # else the server would wait for it
                self.send(_GOODBYE)
        else:
            raise BenchError(f"{self.name}: an unexpected frame ({first:#x} {payload[:60]!r})")

    def on_line(self, line: bytes) -> None:
        """One JSON object of the structured dialect."""
        if push := PUSH.fullmatch(line):
            self._deliver(push[1], int(push[2]) if push[2] else None)
        elif published := PUBLISHED.fullmatch(line):
            self._answered(int(published[1]))
        elif line == b"{}":
            self.send(frame_header(2, mask_key=bytes(4)) + b"{}")
        elif line.startswith((b'{"id":1,"connect"', b'{"id":2,"subscribe"')):
            self.on_greeting(line)
        elif b'","join":{' in line[:300] or b'","leave":{' in line[:300]:
            self.memberships += 1
            self.crowd.memberships += 1
        else:
            raise BenchError(f"{self.name} was told {line[:200]!r}")

    def on_greeting(self, line: bytes) -> None:
        """The reply to a command of `hello`."""
        reply = json.loads(line)
        self._answered(reply["id"])
        self.reply |= reply.get("connect", {})
        if "subscribe" in reply or not self.room:
            self._opened(reply.get("subscribe", {}).get("offset"))

    def _answered(self, number: int) -> None:
        self.answered += 1
        if number != self.answered:
            raise BenchError(f"{self.name} was answered {number}, not {self.answered}")
        if self.state is State.OPEN:
            self.crowd.answers += 1

    def _deliver(self, message: bytes, offset: int | None) -> None:
        if self.room is None or self.seat is None:
            raise BenchError(f"{self.name} was delivered {message[:60]!r} before it was in a room")
        intended = self.room.take(self.seat, message, offset)
        if self.stays:
            self.crowd.delivered(intended)

    # Ending.

    def leave(self, way: str) -> None:
        """End by a Close (`close`), by the end of what is sent (`eof`), or by a reset (`reset`)."""
        self.stays, self.leaving = False, True
        with contextlib.suppress(OSError):
            if way == "close":
                self.send(_GOODBYE)
            elif way == "eof":
                self.socket.shutdown(socket.SHUT_WR)
            else:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.crowd.forget(self)
