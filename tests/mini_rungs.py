"""What the ladder of mini.py stands on: variants of its source, and clients on real sockets.

A rung is a piece of the design that something goes wrong without. To show it, a test takes mini.py's own
source, takes that piece out with :func:`variant`, and runs the same scenario over both.
"""

from __future__ import annotations

import contextlib
import inspect
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any, cast

import trio

from hubbub import mini

SOURCE = Path(mini.__file__)
EVERYONE_IS_HERE = b"-- everyone is here --"


def variant(**patches: tuple[str, str]) -> ModuleType:
    """mini.py as a module, with each snippet replaced; every snippet must be in it exactly once."""
    source = SOURCE.read_text(encoding="utf-8")
    for name, (snippet, replacement) in patches.items():
        found = source.count(snippet)
        assert found == 1, f"the snippet of {name!r} is in mini.py {found} times: {snippet!r}"
        source = source.replace(snippet, replacement)
    module = ModuleType("mini_without_" + "_".join(patches))
    exec(compile(source, str(SOURCE), "exec"), module.__dict__)
    return module


class EndedError(Exception):
    """The server ended this client's connection."""


class Client:
    """One end of a real TCP connection; raises EndedError when the server ends it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.seen = 0  # lines read
        self._rest = b""
        self._lines: deque[bytes] = deque()

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise EndedError(f"after {self.seen} lines, while it was sending") from error

    async def line(self) -> bytes:
        while not self._lines:
            try:
                chunk = await self.stream.receive_some()
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                raise EndedError(f"after {self.seen} lines")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines.extend(lines)
        self.seen += 1
        return self._lines.popleft()

    async def lines(self, count: int) -> list[bytes]:
        return [await self.line() for _ in range(count)]

    async def until(self, wanted: bytes) -> list[bytes]:
        """The lines before the wanted one."""
        lines: list[bytes] = []
        while (line := await self.line()) != wanted:
            lines.append(line)
        return lines

    async def until_gone(self) -> list[bytes]:
        """The lines before the server ends the connection."""
        lines: list[bytes] = []
        with contextlib.suppress(EndedError):
            while True:
                lines.append(await self.line())
        return lines

    def reset(self) -> None:
        """Vanish without a goodbye: close with RST."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


class Room:
    """A running server, and the clients that joined it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._joined = 0
        self._clients: list[Client] = []

    async def join(self, *, receive_buffer: int | None = None) -> Client:
        """A client that the hub task has taken in: it has read back its own first line."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.port))
        client = Client(trio.SocketStream(sock))
        self._clients.append(client)
        self._joined += 1
        hello = b"hello from client %d" % self._joined
        await client.send(hello + b"\n")
        await client.until(hello)
        return client

    async def join_all(self, count: int) -> list[Client]:
        """So many clients, that have all read everything up to now."""
        clients = [await self.join() for _ in range(count)]
        await clients[0].send(EVERYONE_IS_HERE + b"\n")
        for client in clients:
            await client.until(EVERYONE_IS_HERE)
        return clients

    def close(self) -> None:
        for client in self._clients:
            client.stream.socket.close()


@contextlib.asynccontextmanager
async def open_room(module: ModuleType) -> AsyncIterator[Room]:
    """The module's server on a free port, with nothing left of it afterwards."""
    async with trio.open_nursery() as nursery:
        room = Room(await nursery.start(module.serve, 0))
        try:
            yield room
        finally:
            room.close()
        nursery.cancel_scope.cancel()


def all_tasks() -> list[trio.lowlevel.Task]:
    found: list[trio.lowlevel.Task] = []
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        assert task is not None
        found.append(task)
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return found


def in_hub(name: str) -> Any:
    """A local variable of the hub task: mini.py shows it to nobody, so the tests look into its call."""
    [task] = [task for task in all_tasks() if task.name.endswith(".hub")]
    return inspect.getcoroutinelocals(cast("CoroutineType[Any, Any, Any]", task.coro))[name]


def leaves(error: BaseException) -> Iterable[BaseException]:
    """The exceptions of a group, and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
