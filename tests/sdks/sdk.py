"""Clients of real SDKs, and what they were told.

All clients of a kind are in one process, which stays for the tests that follow. It is a driver: `node.mjs` or
`chromium.py` around `driver.mjs` (npm's `centrifuge`), or `driver.py` (PyPI's `centrifuge-python`). It takes commands
and gives answers and events, each a line of JSON; `who` is a client, made when it is first named:

    {"who": 1, "id": 1, "do": "publish", "room": "chat", "data": "hi"}
        {"who": 1, "id": 1, "ok": null}
        {"who": 1, "event": "publication", "room": "chat", "data": "hi", "offset": 1, "info": {"client": …, "user": …}}
    {"who": 1, "id": 2, "do": "rpc", "method": "x", "data": null}
        {"who": 1, "id": 2, "error": {"code": 108, "message": "not available"}}

Commands, and what is in `ok`:

    open            url; what takes a browser a while before the first connect
    connect         url, options: retry_seconds, token, tokens, name, version, data     its client ID, once connected
    subscribe       room, options: recoverable, positioned, joinLeave, since, states, token, tokens    once subscribed
                    (`states` and `tokens`: what the application's getState and getToken return, one after the
                    other, the last of them for ever; a null is a failure)
    unsubscribe     room                                  remove          room
    publish         room, data                            disconnect
    publish_many    room, data: a list, one_frame: all commands in one WebSocket message, if the SDK can
    history         room, limit, since, reverse           {publications, offset, epoch}
    presence        room                                  {client ID: {client, user, info, room_info}}
    presence_stats  room                                  {clients, users}
    rpc             method, data                          the reply's data
    forget          disconnects, and nothing more is heard of this client

Events are the SDK's own, by their names there: connecting, connected, disconnected; subscribing, subscribed,
unsubscribed, publication, join, leave; error; and state_asked, token_asked. In a room that the server has subscribed
the client to, the events are the client's own, and have `by_server`.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from browser.conftest import CHROMIUM_ARGUMENTS, CHROMIUM_NAMES
from peers import SECONDS_MAX
from sdks.package import need_package
from tools import need, need_node_with_websocket

KINDS = ("node", "chromium", "python")
HERE = Path(__file__).parent
RETRY_SECONDS = 0.5
"""How long a dropped client stays away, exactly: its shortest wait is also its longest."""
END_SECONDS_MAX = 10.0


def command_of(kind: str) -> list[str]:
    """Return how the driver of this kind is started; skip the test, or fail in CI, if the machine lacks something."""
    if kind == "python":
        return [sys.executable, str(HERE / "driver.py")]
    if kind == "node":
        return [*need_node_with_websocket(), "--no-warnings", str(HERE / "node.mjs"), str(need_package())]
    browser = need(*CHROMIUM_NAMES)
    return [sys.executable, str(HERE / "chromium.py"), str(need_package()), browser, *CHROMIUM_ARGUMENTS]


def url_of(port: int) -> str:
    """Return where the structured dialect is spoken."""
    return f"ws://127.0.0.1:{port}/connection/websocket"


class SdkError(Exception):
    """The SDK's answer was an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Host:
    """The process with all clients of one kind.

    Resource handling: `kill` or `end` must be called; whoever made it has it in `hosts`, and `end_hosts` does it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rest = b""
        """What of stdout isn't a whole line yet."""
        self.used = False
        self._directory = Path(tempfile.mkdtemp())
        self._stderr = self._directory / "stderr"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command_of(kind), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )

    def errors(self) -> str:
        """Return what it has written to stderr."""
        return self._stderr.read_text(errors="replace")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """End it by ending its stdin; at once if that takes too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self._directory)


hosts: dict[str, Host] = {}
whos = itertools.count(1)


def end_hosts() -> None:
    """End the processes of all kinds."""
    while hosts:
        hosts.popitem()[1].end()


class Sdk:
    """One client; made by `open_sdks`.

    Attributes:
        who: its number, in every line.
        events: all that it has told, in order.
    """

    def __init__(self, host: Host, commands: trio.abc.SendStream, turn: trio.Lock) -> None:
        self.who = next(whos)
        self.events: list[dict[str, Any]] = []
        self._host = host
        self._commands = commands
        self._turn = turn
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._untaken: list[dict[str, Any]] = []
        self._news = trio.Event()

    async def do(self, name: str, **rest: object) -> Any:
        """Carry out a command and return what the SDK answers.

        Raises:
            SdkError: that is an error.
            AssertionError: there is no answer.
        """
        command = next(self._ids)
        line = json.dumps({"who": self.who, "id": command, "do": name, **rest}) + "\n"
        with trio.move_on_after(SECONDS_MAX):
            async with self._turn:
                await self._commands.send_all(line.encode())
            while command not in self._answers:
                await self._news.wait()
            answer = self._answers.pop(command)
            if "error" in answer:
                raise SdkError(**answer["error"])
            return answer["ok"]
        raise AssertionError(self._report(f"no answer to {line.strip()}"))

    async def open(self, port: int) -> None:
        """Get ready, so that connecting takes no time."""
        await self.do("open", url=url_of(port))

    async def connect(self, port: int, *, retry_seconds: float = RETRY_SECONDS, **options: object) -> str:
        """Connect; return the client ID."""
        options = {"retry_seconds": retry_seconds, **options}
        return str(await self.do("connect", url=url_of(port), options=options))

    async def subscribe(self, room: str, **options: object) -> dict[str, Any]:
        """Subscribe; return the event that tells of it."""
        await self.do("subscribe", room=room, options=options)
        return await self.event("subscribed", room=room)

    async def event(self, name: str, **wanted: object) -> dict[str, Any]:
        """Take the first event of that name, and with those members, that wasn't taken before; wait for it.

        Other events stay for later.

        Raises:
            AssertionError: it doesn't come.
        """
        wanted = {"event": name, **wanted}
        with trio.move_on_after(SECONDS_MAX):
            while True:
                for event in self._untaken:
                    if all(key in event and event[key] == value for key, value in wanted.items()):
                        self._untaken.remove(event)
                        return event
                await self._news.wait()
        raise AssertionError(self._report(f"no event {wanted}"))

    async def data(self, room: str, count: int) -> list[Any]:
        """Take the data of the room's next publications."""
        return [(await self.event("publication", room=room))["data"] for _ in range(count)]

    def untaken(self, *names: str) -> list[dict[str, Any]]:
        """Return the events of these names that nobody has taken."""
        return [event for event in self._untaken if event["event"] in names]

    def take_line(self, line: dict[str, Any]) -> None:
        """Note what the driver says of this client."""
        if "event" in line:
            self.events.append(line)
            self._untaken.append(line)
        else:
            self._answers[line["id"]] = line
        self._news.set()
        self._news = trio.Event()

    def _report(self, what: str) -> str:
        events = "\n".join(map(json.dumps, self.events))
        return f"{self._host.kind}: {what}; what came:\n{events}\nstderr:\n{self._host.errors()}"


async def read(host: Host, stream: trio.abc.ReceiveStream, sdks: list[Sdk]) -> None:
    """Hand each client what is said of it, until the process ends."""
    known = {sdk.who: sdk for sdk in sdks}
    async for chunk in stream:
        *lines, host.rest = (host.rest + chunk).split(b"\n")
        for line in map(json.loads, lines):
            if line["who"] in known:
                known[line["who"]].take_line(line)
    raise AssertionError(f"{host.kind}: the driver has ended; stderr:\n{host.errors()}")


@contextlib.asynccontextmanager
async def open_sdks(kind: str, count: int = 1) -> AsyncIterator[list[Sdk]]:
    """Make clients of that kind; on leaving they are disconnected. A test does it once for a kind.

    What the machine may lack is best found out before, with `command_of`: skipping doesn't get out of a nursery.
    """
    host = hosts[kind] = hosts.get(kind) or Host(kind)
    assert not host.used
    assert host.process.stdin is not None
    assert host.process.stdout is not None
    host.used = True
    commands = trio.lowlevel.FdStream(os.dup(host.process.stdin.fileno()))
    answers = trio.lowlevel.FdStream(os.dup(host.process.stdout.fileno()))
    try:
        async with commands, answers, trio.open_nursery() as nursery:
            turn = trio.Lock()
            sdks = [Sdk(host, commands, turn) for _ in range(count)]
            nursery.start_soon(read, host, answers, sdks)
            yield sdks
            for sdk in sdks:
                await sdk.do("forget")
            nursery.cancel_scope.cancel()
    except BaseException:
        del hosts[kind]
        host.kill()
        raise
    host.used = False
