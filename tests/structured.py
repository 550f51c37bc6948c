"""A structured client for tests: commands in, replies by their ids, pushes in their order."""

import contextlib
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import trio

from hubbub.core.frames import BINARY
from peers import Closed, Peer, connect, handshake, shake_hands

PATH = "/connection/websocket"

Message: TypeAlias = dict[str, Any]
"""A command, a reply or a push."""


class Refused(Exception):
    """The reply to a command is an error."""

    def __init__(self, error: Message) -> None:
        super().__init__(error)
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.temporary: bool = error.get("temporary", False)


class Client:
    """One client. It reads only while it waits for something, and answers pings then.

    Attributes:
        peer: the WebSocket beneath it.
        client: its name at the server, once it is connected.
        answers_pings: whether it does.
        pings: how many have come.
        frames: all that has come, a frame each, as it was written.
        pushes: those that haven't been taken, without `{"push": …}` around them.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.client = ""
        self.answers_pings = True
        self.pings = 0
        self.frames: list[str] = []
        self.pushes: deque[Message] = deque()
        self._replies: dict[int, deque[Message]] = {}
        self._numbers = itertools.count(1)

    async def send(self, *commands: Message | str) -> None:
        """Send all of them in one frame: dicts as JSON, text as it is."""
        lines = (command if isinstance(command, str) else json.dumps(command) for command in commands)
        await self.peer.send("\n".join(lines))

    async def send_binary(self, data: bytes) -> None:
        """Send a binary frame."""
        await self.peer.send_frame(BINARY, data)

    def number(self, command: Message) -> Message:
        """Return the command with the next id."""
        return {"id": next(self._numbers), **command}

    async def say(self, method: str, /, **body: object) -> int:
        """Give a command; return its id."""
        command = self.number({method: body})
        await self.send(command)
        return int(command["id"])

    async def ask(self, method: str, /, **body: object) -> Message:
        """Give a command and return what its reply says.

        Raises:
            Refused: that is an error.
            Closed: there will be no reply.
        """
        return self.result(method, await self.reply(await self.say(method, **body)))

    @staticmethod
    def result(method: str, reply: Message) -> Message:
        """Return what a reply to that method says.

        Raises:
            Refused: it is an error.
        """
        if "error" in reply:
            raise Refused(reply["error"])
        assert set(reply) == {"id", method}
        result: Message = reply[method]
        return result

    async def connect(self, **body: object) -> Message:
        """Introduce oneself."""
        result = await self.ask("connect", **body)
        self.client = result["client"]
        return result

    async def reply(self, number: int) -> Message:
        """Take the next reply with that id.

        Raises:
            Closed: it won't come.
        """
        while not self._replies.get(number):
            await self.receive()
        return self._replies[number].popleft()

    async def push(self) -> Message:
        """Take the next push."""
        while not self.pushes:
            await self.receive()
        return self.pushes.popleft()

    async def publication(self, room: str) -> Message:
        """Take the next push, which is a publication of that room."""
        push = await self.push()
        assert set(push) == {"channel", "pub"}
        assert push["channel"] == room
        publication: Message = push["pub"]
        return publication

    async def ended(self) -> Closed:
        """Return the end of the connection; what comes before it is kept."""
        while True:
            try:
                await self.receive()
            except Closed as closed:
                return closed

    async def goes_on(self) -> None:
        """See that another command is answered.

        Raises:
            Closed: it isn't.
        """
        with contextlib.suppress(Refused):  # an answer, too
            await self.ask("presence_stats", channel="nobody is here")

    async def receive(self) -> None:
        """Take in one frame.

        Raises:
            Closed: the connection has ended.
        """
        frame = await self.peer.receive()
        assert isinstance(frame, str), "this dialect is text"
        self.frames.append(frame)
        for line in frame.split("\n"):
            await self._take(line)

    async def _take(self, line: str) -> None:
        message = json.loads(line, parse_constant=_no_json)
        if not message:
            self.pings += 1
            if self.answers_pings:
                await self.send("{}")
        elif "push" in message:
            assert len(message) == 1
            self.pushes.append(message["push"])
        else:
            assert len(message) == 2
            self._replies.setdefault(message["id"], deque()).append(message)


def _no_json(word: str) -> None:
    raise AssertionError(f"{word} isn't JSON")


@contextlib.asynccontextmanager
async def open_structured(
    port: int,
    *,
    query: str = "",
    connected: bool = True,
    headers: tuple[tuple[str, str], ...] = (("Sec-WebSocket-Protocol", "centrifuge-json"),),
    receive_buffer: int | None = None,
) -> AsyncIterator[Client]:
    """Open a WebSocket, and say connect unless told otherwise; the socket is closed, forcefully, on leaving."""
    stream = await connect(port, receive_buffer=receive_buffer)
    try:
        client = Client(await shake_hands(stream, handshake(PATH + query, headers=headers)))
        if connected:
            await client.connect()
        yield client
    finally:
        await trio.aclose_forcefully(stream)
