"""python driver.py: clients of PyPI's `centrifuge-python`; the twin of driver.mjs.

Commands on stdin, answers and events on stdout, as described in sdk.py.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from centrifuge import (  # type: ignore[import-untyped]
    CentrifugeError,
    Client,
    ClientInfo,
    Publication,
    ReplyError,
    StreamPosition,
    Subscription,
)

SHORT = {"min_resubscribe_delay": 0.05, "max_resubscribe_delay": 0.05}
NAMES = {"joinLeave": "join_leave"}
"""What npm's calls otherwise."""


class Fault(Exception):
    """The client, or a subscription, has given up for good."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


Tell = Callable[[dict[str, Any]], None]
Shape = Callable[[Any], dict[str, Any]]


def person(info: ClientInfo) -> dict[str, Any]:
    """Return what is told of a member."""
    told = {"client": info.client, "user": info.user}
    if info.conn_info:
        told["info"] = info.conn_info
    if info.chan_info:
        told["room_info"] = info.chan_info
    return told


def publication(pub: Publication) -> dict[str, Any]:
    """Return what is told of a publication."""
    told: dict[str, Any] = {"data": pub.data}
    if pub.offset:
        told["offset"] = pub.offset
    if pub.info:
        told["info"] = person(pub.info)
    if pub.tags:
        told["tags"] = pub.tags
    return told


def position(context: Any) -> dict[str, Any] | None:
    """Return where a subscription begins, if it has a position."""
    place = context.stream_position
    return {"offset": place.offset, "epoch": place.epoch} if place else None


def arrival(context: Any) -> dict[str, Any]:
    """Return what is told of a subscription that begins."""
    return {
        "position": position(context),
        "recoverable": context.recoverable,
        "positioned": context.positioned,
        "recovered": context.recovered,
        "was_recovering": context.was_recovering,
        **({} if context.data is None else {"data": context.data}),
    }


def by_server(shape: Shape) -> Shape:
    """Return the shape for a room that the server has subscribed the client to."""
    return lambda context: {"room": context.channel, "by_server": True, **shape(context)}


def nothing(_: Any) -> dict[str, Any]:
    """Tell nothing more."""
    return {}


def events(tell: Tell, shapes: Mapping[str, Shape], arrived: str, over: str, **where: str) -> SimpleNamespace:
    """Return handlers, as the SDK wants them, that tell; `settled` is what waits for an arrival or the end."""
    handlers = SimpleNamespace(settled=None)

    def make(name: str, shape: Shape) -> Callable[[Any], Awaitable[None]]:
        async def handle(context: Any) -> None:
            tell({"event": name, **where, **shape(context)})
            if handlers.settled and not handlers.settled.done():
                if name == arrived:
                    handlers.settled.set_result(context)
                elif name == over:
                    handlers.settled.set_exception(Fault(context.code, context.reason))

        return handle

    for name, shape in shapes.items():
        setattr(handlers, f"on_{name}", make(name, shape))
    return handlers


def change(context: Any) -> dict[str, Any]:
    """Tell of a change of state."""
    return {"code": context.code, "reason": context.reason}


def trouble(context: Any) -> dict[str, Any]:
    """Tell of an error."""
    code = context.error.code if isinstance(context.error, ReplyError) else context.code
    return {"code": code, "message": str(context.error)}


OF_CLIENT = {
    "connecting": change,
    "connected": lambda context: {"client": context.client},
    "disconnected": change,
    "error": trouble,
    "subscribing": by_server(nothing),
    "unsubscribed": by_server(nothing),
    "subscribed": by_server(arrival),
    "publication": by_server(lambda context: publication(context.pub)),
    "join": by_server(lambda context: person(context.info)),
    "leave": by_server(lambda context: person(context.info)),
}
OF_SUBSCRIPTION = {
    "subscribing": change,
    "unsubscribed": change,
    "subscribed": arrival,
    "publication": lambda context: publication(context.pub),
    "join": lambda context: person(context.info),
    "leave": lambda context: person(context.info),
    "error": trouble,
}


class Driver:
    """One client and what can be done with it; a method for each command."""

    def __init__(self, who: int) -> None:
        self.who = who
        self.client: Client | None = None
        self.forgotten = False

    def tell(self, line: dict[str, Any]) -> None:
        """Say something, unless nobody listens any more."""
        if not self.forgotten:
            sys.stdout.write(json.dumps({"who": self.who, **line}) + "\n")
            sys.stdout.flush()

    async def open(self, url: str) -> None:
        """Only a browser has something to do here."""

    async def connect(self, url: str, options: dict[str, Any]) -> str:
        delay, tokens = options.pop("retry_seconds"), options.pop("tokens", None)
        if tokens:
            options["get_token"] = self._in_turn({"event": "token_asked"}, tokens)
        if self.client is None:
            handlers = events(self.tell, OF_CLIENT, "connected", "disconnected")
            delays = {"min_reconnect_delay": delay, "max_reconnect_delay": delay}
            self.client = Client(url, events=handlers, proxy=None, **delays, **options)
        settled = self.client.events.settled = asyncio.get_running_loop().create_future()
        await self.client.connect()
        return str((await settled).client)

    async def subscribe(self, room: str, options: dict[str, Any]) -> None:
        assert self.client is not None
        subscription = self.client.get_subscription(room) or self._new(room, **options)
        settled = subscription.events.settled = asyncio.get_running_loop().create_future()
        await subscription.subscribe()
        await settled

    def _new(
        self,
        room: str,
        since: dict[str, Any] | None = None,
        states: list[dict[str, Any]] | None = None,
        tokens: list[str | None] | None = None,
        **options: object,
    ) -> Subscription:
        assert self.client is not None
        places = [StreamPosition(**place) for place in states or ([since] if since else [])]
        asked = {"event": "state_asked", "room": room} if states else None
        callbacks = {
            "get_state": self._in_turn(asked, places) if places else None,
            "get_token": self._in_turn({"event": "token_asked", "room": room}, tokens) if tokens else None,
        }
        handlers = events(self.tell, OF_SUBSCRIPTION, "subscribed", "unsubscribed", room=room)
        renamed = {NAMES.get(name, name): value for name, value in options.items()}
        return self.client.new_subscription(room, handlers, **callbacks, **SHORT, **renamed)

    def _in_turn(self, event: dict[str, Any] | None, values: Iterable[Any]) -> Callable[..., Awaitable[Any]]:
        """Return what answers one after the other, the last of them for ever; None is a failure."""
        left = list(values)

        async def answer(*_: str) -> Any:
            if event is not None:
                self.tell(event)
            value = left.pop(0) if len(left) > 1 else left[0]
            if value is None:
                raise LookupError("the application has nothing to say")
            return value

        return answer

    async def unsubscribe(self, room: str) -> None:
        assert self.client is not None
        await self.client.get_subscription(room).unsubscribe()

    async def remove(self, room: str) -> None:
        assert self.client is not None
        self.client.remove_subscription(self.client.get_subscription(room))

    async def publish(self, room: str, data: object) -> None:
        assert self.client is not None
        await self.client.publish(room, data)

    async def publish_many(self, room: str, data: list[object], one_frame: bool = False) -> None:
        for each in data:  # it has no frames of several commands
            await self.publish(room, each)

    async def history(self, room: str, since: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        assert self.client is not None
        result = await self.client.history(room, since=StreamPosition(**since) if since else None, **options)
        return {
            "publications": [publication(pub) for pub in result.publications],
            "offset": result.offset,
            "epoch": result.epoch,
        }

    async def presence(self, room: str) -> dict[str, Any]:
        assert self.client is not None
        result = await self.client.presence(room)
        return {name: person(info) for name, info in result.clients.items()}

    async def presence_stats(self, room: str) -> dict[str, int]:
        assert self.client is not None
        result = await self.client.presence_stats(room)
        return {"clients": result.num_clients, "users": result.num_users}

    async def rpc(self, method: str, data: object) -> object:
        assert self.client is not None
        result = await self.client.rpc(method, data)
        return result.data

    async def disconnect(self) -> None:
        assert self.client is not None
        await self.client.disconnect()

    async def forget(self) -> None:
        if self.client is not None:
            await self.client.disconnect()

    async def carry_out(self, command: dict[str, Any]) -> None:
        """Do what a line says, and answer."""
        answer = {"id": command.pop("id")}
        name = command.pop("do")
        try:
            answer["ok"] = await getattr(self, name)(**command)
        except Fault as fault:
            answer["error"] = {"code": fault.code, "message": fault.reason}
        except ReplyError as error:
            answer["error"] = {"code": error.code, "message": error.message}
        except CentrifugeError as error:
            answer["error"] = {"code": 0, "message": f"{type(error).__name__}: {error}"}
        self.tell(answer)
        self.forgotten = self.forgotten or name == "forget"


async def main() -> None:
    """Carry out what comes on stdin until it ends."""
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    drivers: dict[int, Driver] = {}
    async with asyncio.TaskGroup() as commands:
        async for line in lines:
            command = json.loads(line)
            who = command.pop("who")
            driver = drivers.setdefault(who, Driver(who))
            commands.create_task(driver.carry_out(command))
        for driver in drivers.values():
            await driver.forget()


if __name__ == "__main__":
    asyncio.run(main())
