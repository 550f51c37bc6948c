"""A back end for tests of hooks: a real HTTP server on loopback, which behaves as the test wants."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import msgspec
import trio

from peers import SECONDS_MAX


class Request(msgspec.Struct):
    """A request that has come.

    Attributes:
        path: with the query.
        headers: by their names in lower case.
        time: when it had come, by the clock of Trio.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)


Behaviour: TypeAlias = Callable[[Request], Awaitable[bytes | None]]
"""Returns the bytes of an answer; None: there is none, and the connection is closed."""


def response(body: object = None, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an answer: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


class Backend:
    """One back end.

    Attributes:
        behaviour: how it answers; `give` sets a simple one.
        requests: all that have come.
        connections: how many have been accepted.
        under_way: requests that are being answered now; most_under_way: the most of them at once.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.under_way = 0
        self.most_under_way = 0
        self.port = 0
        self._nursery = nursery
        self._alive = trio.CancelScope()
        self._dead = trio.Event()
        self.give()

    def url(self, path: str = "/hook") -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}{path}"

    def give(self, body: object = None, status: str = "200 OK", headers: str = "") -> None:
        """Answer like this from now on."""
        self.give_raw(response(body, status, headers))

    def give_raw(self, data: bytes | None) -> None:
        """Answer these bytes from now on, which may be anything; None: nothing, and close."""

        async def answer(request: Request) -> bytes | None:
            return data

        self.behaviour: Behaviour = answer

    def delay(self, seconds: float, body: object = None) -> None:
        """Answer only after that time, from now on."""

        async def answer(request: Request) -> bytes | None:
            await trio.sleep(seconds)
            return response(body)

        self.behaviour = answer

    async def start(self) -> None:
        """Listen: on a free port, then always on that one."""
        self._alive, self._dead = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run)

    async def die(self) -> None:
        """Stop listening, and cut off whoever is connected."""
        self._alive.cancel()
        await self._dead.wait()

    async def until(self, count: int) -> list[Request]:
        """Wait until so many requests have come; return them."""
        with trio.fail_after(SECONDS_MAX):
            while len(self.requests) < count:
                await trio.sleep(0.002)
        return self.requests[:count]

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with self._alive:
            async with trio.open_nursery() as nursery:
                serve = partial(trio.serve_tcp, self._serve, self.port, host="127.0.0.1")
                (listener,) = await nursery.start(serve)
                self.port = listener.socket.getsockname()[1]
                task_status.started()
        self._dead.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        buffer = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):
            while (request := await self._receive(stream, buffer)) is not None:
                self.requests.append(request)
                self.under_way += 1
                self.most_under_way = max(self.under_way, self.most_under_way)
                answer = None
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, stream, buffer, nursery.cancel_scope)
                        answer = await self.behaviour(request)
                        nursery.cancel_scope.cancel()
                finally:
                    self.under_way -= 1
                if answer is None:
                    return
                await stream.send_all(answer)

    async def _watch(self, stream: trio.SocketStream, buffer: bytearray, answering: trio.CancelScope) -> None:
        """Give up what is being answered when nobody waits for it."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(65_536):
                buffer += data
        answering.cancel()

    async def _receive(self, stream: trio.SocketStream, buffer: bytearray) -> Request | None:
        while b"\r\n\r\n" not in buffer:
            if not (data := await stream.receive_some(65_536)):
                return None
            buffer += data
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        while len(rest) < length:
            if not (data := await stream.receive_some(65_536)):
                return None
            rest += data
        buffer[:] = rest[length:]
        method, path, _ = first.split(" ")
        assert method == "POST"
        return Request(path, headers, rest[:length], trio.current_time())


@contextlib.asynccontextmanager
async def open_backend() -> AsyncIterator[Backend]:
    """Serve on a free port of loopback."""
    async with trio.open_nursery() as nursery:
        backend = Backend(nursery)
        await backend.start()
        yield backend
        nursery.cancel_scope.cancel()
