"""Every code of the structured dialect over real sockets: what causes it, what is said, and whether one lives on.

The numbers and the words are the protocol's; hubbub's tables for them are in `hubbub.dialects.centrifugo.codes`, and
each of their rows is reached here.
"""

import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import pytest
import trio
from structlog.testing import capture_logs

from hubbub.core.frames import CONTINUATION, FIN, PING, PONG, TEXT
from hubbub.dialects.centrifugo import codes
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.model.command import Refusal
from hubbub.model.end import End
from peers import Closed, Peer, client_frame, open_peer
from servers import Server, exit_of, open_daemon, open_server, until_quiet
from structured import PATH, Client, Message, Refused, open_structured
from test_front_door import HANDSHAKE, HOST, Answer, head, open_client, sentence

ERRORS = {
    100: "internal server error",
    102: "unknown channel",
    103: "permission denied",
    105: "already subscribed",
    106: "limit exceeded",
    107: "bad request",
    108: "not available",
    111: "too many requests",
    112: "unrecoverable position",
}
TEMPORARY = {100, 111}
UNSUBSCRIBES = {2500: "insufficient state", 2502: "state invalidated"}
DISCONNECTS = {
    1009: "message too large",
    3001: "shutdown",
    3004: "internal server error",
    3008: "slow",
    3012: "no pong",
    3013: "too many requests",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3506: "inappropriate protocol",
    3508: "not available",
}
NOBODY_TO_TELL = 1006
"""A peer that takes no byte can't be told 3009 either: what it sees is a broken connection."""

Settings: TypeAlias = Mapping[str, Any]
DEFAULTS: Settings = MappingProxyType({})


class Scene(NamedTuple):
    """A server, one connected client, and what a row may need besides."""

    server: Server
    client: Client
    patch: pytest.MonkeyPatch
    others: contextlib.AsyncExitStack

    async def another(self) -> Client:
        """Return another client."""
        return await self.others.enter_async_context(open_structured(self.server.port))


Steps: TypeAlias = Callable[[Scene], Awaitable[None]]


@contextlib.asynccontextmanager
async def open_scene(
    patch: pytest.MonkeyPatch, *, logged: tuple[str, ...] = (), connected: bool = True, **settings: Any
) -> AsyncIterator[Scene]:
    """A server of which nothing may be left, nor anything have gone wrong inside but what is `logged`."""
    with capture_logs() as logs:
        async with open_server(**settings) as server:
            async with (
                contextlib.AsyncExitStack() as others,
                open_structured(server.port, connected=connected) as client,
            ):
                with patch.context() as patched:
                    yield Scene(server, client, patched, others)
            await until_quiet(server.node)
    assert tuple(entry["event"] for entry in logs if entry["log_level"] in ("error", "critical")) == logged


# -- errors: after these the connection goes on


class Refusable(NamedTuple):
    """The last of these commands is refused, those before it aren't.

    Attributes:
        asked: method and members.
        code: of the error.
        about: what its message says behind the standard words and a colon; with "…" at its end, how that begins.
        steps: what happens before.
        logged: what goes wrong inside, as far as it is meant to.
    """

    asked: tuple[tuple[str, Message], ...]
    code: int
    about: str = ""
    settings: Settings = DEFAULTS
    steps: Steps | None = None
    logged: tuple[str, ...] = ()


def break_engine(method: str) -> Steps:
    """Let the engine fail."""

    async def steps(scene: Scene) -> None:
        scene.patch.setattr(scene.server.node.engine, method, fail)

    return steps


def fail(*args: object) -> None:
    """As a bug would."""
    raise ZeroDivisionError("a bug, for the test's sake")


async def fill_the_room(scene: Scene) -> None:
    """Somebody else is in the room."""
    await (await scene.another()).ask("subscribe", channel="room")


def on(room: str, **body: object) -> dict[str, Message]:
    """Each method that names a room, with its members."""
    return {
        "subscribe": {"channel": room, **body},
        "unsubscribe": {"channel": room, **body},
        "publish": {"channel": room, "data": 1, **body},
        "presence": {"channel": room, **body},
        "presence_stats": {"channel": room, **body},
        "history": {"channel": room, **body},
        "sub_refresh": {"channel": room, "token": "t", **body},
    }


SUBSCRIBE = ("subscribe", {"channel": "room"})
PUBLISH = ("publish", {"channel": "room", "data": 1})
NO_TOKENS = "no tokens are configured here"
IN_THE_ROOM = ("room ended by an internal error",)
LONG = "room name has 256 characters; allowed: 1 to 255"

REFUSED: dict[str, Refusable] = {
    **{
        f"{method}, a bug in the engine": Refusable(
            ((method, on("room")[method]),),
            100,
            Refusal.INTERNAL_ERROR.value,
            steps=break_engine(broken),
            logged=IN_THE_ROOM,
        )
        for method, broken in (("publish", "append"), ("subscribe", "recent"), ("history", "read"))
    },
    **{
        f"{method}, no such namespace": Refusable(((method, body),), 102, Refusal.UNKNOWN_NAMESPACE.value)
        for method, body in on("games:chess").items()
        if method not in ("unsubscribe", "sub_refresh")
    },
    "subscription token": Refusable((("subscribe", {"channel": "room", "token": "t"}),), 103, NO_TOKENS),
    "refreshed subscription": Refusable((SUBSCRIBE, ("sub_refresh", on("room")["sub_refresh"])), 103, NO_TOKENS),
    "subscribed twice": Refusable((SUBSCRIBE, SUBSCRIBE), 105, Refusal.ALREADY_SUBSCRIBED.value),
    "a client's rooms": Refusable(
        (("subscribe", {"channel": "1"}), ("subscribe", {"channel": "2"}), SUBSCRIBE),
        106,
        Refusal.TOO_MANY_SUBSCRIPTIONS.value,
        {"rooms_per_connection_max": 2},
    ),
    "a client's rooms, by default": Refusable(
        (*(("subscribe", {"channel": str(number)}) for number in range(128)), SUBSCRIBE),
        106,
        Refusal.TOO_MANY_SUBSCRIPTIONS.value,
    ),
    "full room": Refusable((SUBSCRIBE,), 106, Refusal.ROOM_FULL.value, {"subscribers_max": 1}, fill_the_room),
    "all rooms": Refusable(
        (("subscribe", {"channel": "1"}), SUBSCRIBE), 106, Refusal.TOO_MANY_ROOMS.value, {"rooms_max": 1}
    ),
    **{f"{method}, long name": Refusable(((method, body),), 107, LONG) for method, body in on("x" * 256).items()},
    **{
        f"{method}, unprintable name": Refusable(
            ((method, body),), 107, "room name holds U+000A; allowed: printable characters only"
        )
        for method, body in on("a\nb").items()
    },
    "name in a direction of its own": Refusable(
        (("subscribe", {"channel": "a\u202eb"}),), 107, "room name holds U+202E; allowed: printable characters only"
    ),
    "no data": Refusable((("publish", {"channel": "room"}),), 107, "data is missing"),
    "deep data": Refusable(
        (("publish", {"channel": "room", "data": [[{"a": []}]]}),),
        107,
        "data is nested deeper than message_depth_max = 3",
        {"message_depth_max": 3},
    ),
    "before offset 0": Refusable(
        (("history", {"channel": "room", "since": {"offset": 0}, "reverse": True}),), 107, "nothing is before offset 0"
    ),
    "long idempotency key": Refusable(
        (("publish", {"channel": "room", "data": 1, "idempotency_key": "x" * 65}),),
        107,
        "idempotency_key is over 64 characters",
    ),
    "ping as a command": Refusable((("ping", {}),), 108),
    "rpc": Refusable((("rpc", {"method": "sum", "data": [1, 2]}),), 108),
    "presence, switched off": Refusable(
        (("presence", {"channel": "room"}),), 108, Refusal.SWITCHED_OFF.value, {"presence": False}
    ),
    "presence_stats, switched off": Refusable(
        (("presence_stats", {"channel": "room"}),), 108, Refusal.SWITCHED_OFF.value, {"presence": False}
    ),
    "history, switched off": Refusable(
        (("history", {"channel": "room"}),), 108, Refusal.SWITCHED_OFF.value, {"history_size": 0}
    ),
    "a room's idempotency keys": Refusable(
        tuple(("publish", {"channel": "room", "data": 1, "idempotency_key": key}) for key in "aab"),
        111,
        Refusal.TOO_MANY_KEYS.value,
        {"idempotency_keys_max": 1},
    ),
    "all idempotency keys": Refusable(
        tuple(("publish", {"channel": key, "data": 1, "idempotency_key": key}) for key in "ab"),
        111,
        Refusal.TOO_MANY_KEYS.value,
        {"idempotency_keys_total_max": 1},
    ),
    "history of another epoch": Refusable(
        (PUBLISH, ("history", {"channel": "room", "since": {"offset": 1, "epoch": "another"}})),
        112,
        Refusal.UNRECOVERABLE.value,
    ),
    **{
        f"recovery or nothing, {name}": Refusable(
            (PUBLISH, ("subscribe", {"channel": "room", "recover": True, "flag": 2, **since})),
            112,
            Refusal.UNRECOVERABLE.value,
            settings,
        )
        for name, since, settings in (
            ("another epoch", {"offset": 1, "epoch": "another"}, {}),
            ("from the future", {"offset": 2}, {}),
            ("other bits too", {"offset": 2, "flag": 2**64 - 1}, {}),
            ("gone", {"offset": 0}, {"history_bytes_max": 1}),
            ("no history", {"offset": 1}, {"history_size": 0}),
        )
    },
}


def check_words(text: str, standard: str, about: str) -> None:
    """See that it begins with the standard words and says more, or not, as it should; for people, so not in JSON."""
    if about.endswith("…"):
        assert text.startswith(f"{standard}: {about[:-1]}")
    else:
        assert text == (f"{standard}: {about}" if about else standard)
    assert len(text.encode()) <= 123
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
async def test_what_is_refused(row: Refusable, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error answers the command, and the connection lives."""
    async with open_scene(monkeypatch, logged=row.logged, **row.settings) as scene:
        client = scene.client
        if row.steps is not None:
            await row.steps(scene)
        *before, (method, body) = row.asked
        for earlier, members in before:
            await client.ask(earlier, **members)
        with pytest.raises(Refused) as refused:
            await client.ask(method, **body)
        error = refused.value.args[0]
        assert error["code"] == row.code
        assert set(error) == {"code", "message"} | ({"temporary"} if row.code in TEMPORARY else set())
        assert refused.value.temporary is (row.code in TEMPORARY)
        check_words(error["message"], ERRORS[row.code], row.about)
        await client.goes_on()


NOT_REFUSED: dict[str, tuple[tuple[str, Message], ...]] = {
    "unsubscribe where it isn't": (("unsubscribe", {"channel": "room"}),),
    "unsubscribe twice": (SUBSCRIBE, *(2 * (("unsubscribe", {"channel": "room"}),))),
    "unsubscribe in no such namespace": (("unsubscribe", {"channel": "games:chess"}),),
    "subscribe again after that": (SUBSCRIBE, ("unsubscribe", {"channel": "room"}), SUBSCRIBE),
    "longest name": tuple((method, body) for method, body in on("é" * 255).items() if method != "sub_refresh"),
    "name with spaces and signs": (
        ("subscribe", {"channel": ' "\\/<b>&#$ '}),
        ("publish", {"channel": "😀", "data": 1}),
    ),
    "longest key": (("publish", {"channel": "room", "data": 1, "idempotency_key": "x" * 64}),),
    "empty key": (("publish", {"channel": "room", "data": 1, "idempotency_key": ""}),),
    "null is as good as absent": (
        (
            "subscribe",
            dict.fromkeys(("token", "recover", "epoch", "offset", "flag", "positioned")) | {"channel": "room"},
        ),
        ("history", {"channel": "room", "limit": None, "since": None, "reverse": None}),
    ),
    "members of nobody": (("subscribe", {"channel": "room", "data": {"x": 1}, "delta": "fossil", "colour": [1]}),),
    "what wasn't recovered, not insisted on": (
        PUBLISH,
        ("subscribe", {"channel": "room", "recover": True, "epoch": "another", "offset": 1, "flag": 1}),
    ),
    "history of this epoch, whatever it is": (PUBLISH, ("history", {"channel": "room", "since": {"offset": 1}})),
    "reverse from the top": (PUBLISH, ("history", {"channel": "room", "reverse": True, "limit": -1})),
}


@pytest.mark.parametrize("asked", NOT_REFUSED.values(), ids=NOT_REFUSED)
async def test_what_isnt_refused(asked: tuple[tuple[str, Message], ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the limits, on the right side of them."""
    async with open_scene(monkeypatch) as scene:
        for method, body in asked:
            await scene.client.ask(method, **body)
        await scene.client.goes_on()


# -- unsubscribes: the subscription ends, the connection goes on


class Lost(NamedTuple):
    """What happens in a room where the client has heard a publication, and what it is told; then somebody publishes."""

    steps: Steps
    code: int
    is_accepted: bool
    logged: tuple[str, ...] = ()


async def forget_history(scene: Scene) -> None:
    """What follows doesn't follow what was."""
    scene.server.node.engine.forget("room")


LOST = {
    "gap": Lost(forget_history, 2500, True),
    "a bug in the engine": Lost(break_engine("append"), 2502, False, IN_THE_ROOM),
}


@pytest.mark.parametrize("row", LOST.values(), ids=LOST)
async def test_what_ends_a_subscription(row: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone in the room is told, once; others aren't; and who subscribes again is in it again."""
    async with open_scene(monkeypatch, logged=row.logged) as scene:
        client, another, elsewhere_ = scene.client, await scene.another(), await scene.another()
        first = await client.ask("subscribe", channel="room")
        await another.ask("subscribe", channel="room")
        await elsewhere_.ask("subscribe", channel="elsewhere")
        await client.ask("publish", channel="room", data=1)
        for hearer in (client, another):
            assert (await hearer.publication("room"))["data"] == 1

        await row.steps(scene)
        published = await client.reply(await client.say("publish", channel="room", data=2))
        assert ("error" in published) is not row.is_accepted
        scene.patch.undo()
        for hearer in (client, another):
            push = await hearer.push()
            assert push == {
                "channel": "room",
                "unsubscribe": {"code": row.code, "reason": UNSUBSCRIBES[row.code]},
            }
        await another.ask("publish", channel="room", data=3)
        await client.goes_on()
        assert not client.pushes

        again = await client.ask("subscribe", channel="room", recover=True, epoch=first["epoch"], offset=1)
        assert again["epoch"] != first["epoch"]
        assert "recovered" not in again
        await another.ask("publish", channel="room", data=4)
        assert (await client.publication("room"))["data"] == 4
        await elsewhere_.goes_on()
        assert not elsewhere_.pushes
        assert not another.pushes


# -- disconnects: the connection ends


class Fatal(NamedTuple):
    """What ends a connection.

    Attributes:
        steps: what happens, after connect unless `connected` is False.
        end: what the metrics count.
        code: of the Close.
        about: as with errors.
    """

    steps: Steps
    end: End
    code: int
    about: str = ""
    settings: Settings = DEFAULTS
    connected: bool = True
    logged: tuple[str, ...] = ()


def say(*frames: Message | str | bytes | list[Message]) -> Steps:
    """The client says these, a frame each: a command, a list of some, text as it is, or bytes in a binary frame."""

    async def steps(scene: Scene) -> None:
        for frame in frames:
            if isinstance(frame, bytes):
                await scene.client.send_binary(frame)
            else:
                await scene.client.send(*(frame if isinstance(frame, list) else [frame]))

    return steps


def say_raw(data: bytes) -> Steps:
    """The client sends these bytes."""

    async def steps(scene: Scene) -> None:
        await scene.client.peer.send_raw(data)

    return steps


async def do_nothing(scene: Scene) -> None:
    """Wait for what comes."""


async def keep_silent(scene: Scene) -> None:
    """Don't answer pings."""
    scene.client.answers_pings = False


async def answer_twice(scene: Scene) -> None:
    """Two pongs to one ping, as soon as it has come."""
    scene.client.answers_pings = False
    while not scene.client.pings:
        await scene.client.receive()
    await scene.client.send("{}", "{}")


async def shut_down(scene: Scene) -> None:
    """As on SIGTERM."""
    await scene.server.node.drain()


async def break_dialect(scene: Scene) -> None:
    """A command meets a bug."""
    scene.patch.setattr(CentrifugoConversation, "receive", fail)
    await scene.client.say("presence", channel="room")


async def be_slow(scene: Scene) -> None:
    """Don't read while others publish, until it has come to an end."""
    await scene.client.ask("subscribe", channel="room")
    (connection,) = scene.server.node.connections
    talker = await scene.another()
    with trio.fail_after(10):
        while connection.ended is None:
            await talker.ask("publish", channel="room", data="x" * 60_000)


async def be_too_fast(scene: Scene) -> None:
    """Publish more than is allowed, for longer than is allowed."""
    await scene.client.send(*(f'{{"id":{number},"publish":{{"channel":"x","data":1}}}}' for number in range(2, 400)))


NEVER = 1000.0
TINY: Settings = {"ping_seconds": 0.2, "pong_seconds_max": 0.1}
LIVELY: Settings = {"ping_seconds": 0.1, "pong_seconds_max": 0.3}
STALE: Settings = {"stale_seconds_max": 0.6, "pong_seconds_max": 0.5}  # others must be faster
FIRST = "allowed: connect first, and once"
NO_ID = "a command without an id above 0"
NO_IDS: dict[str, Message] = {"no": {}, "zero": {"id": 0}, "null": {"id": None}}

FATAL: dict[str, Fatal] = {
    "shutdown": Fatal(shut_down, End.SHUTDOWN, 3001),
    "a bug in the dialect": Fatal(
        break_dialect, End.INTERNAL_ERROR, 3004, logged=("connection ended by an internal error",)
    ),
    "slow": Fatal(be_slow, End.SLOW_CONSUMER, 3008, settings={"outbox_bytes_max": 100_000, "history_size": 0}),
    "takes no byte": Fatal(
        be_slow,
        End.WRITE_STALL,
        NOBODY_TO_TELL,
        settings={"outbox_bytes_max": 2**30, "outboxes_bytes_max": 2**31, "write_stall_seconds_max": 0.15},
    ),
    "no pong": Fatal(keep_silent, End.NO_PONG, 3012, settings=TINY),
    "too fast": Fatal(
        be_too_fast,
        End.TOO_FAST,
        3013,
        settings={"publications_per_second_max": 100, "publications_burst_max": 10, "rate_seconds_max": 0.2},
    ),
    "too many pings of RFC 6455": Fatal(
        say_raw(20 * client_frame(PING, b"")),
        End.TOO_MANY_CONTROL_FRAMES,
        3013,
        settings={"control_frames_per_second_max": 10},
    ),
    "token": Fatal(say({"id": 1, "connect": {"token": "t"}}), End.INVALID_TOKEN, 3500, NO_TOKENS, connected=False),
    "new token": Fatal(say({"id": 2, "refresh": {"token": "t"}}), End.INVALID_TOKEN, 3500, NO_TOKENS),
    **{
        f"{method} before connect": Fatal(say({"id": 1, method: body}), End.BAD_REQUEST, 3501, FIRST, connected=False)
        for method, body in {**on("room"), "ping": {}, "rpc": {}, "send": {}, "refresh": {"token": "t"}}.items()
    },
    "second connect": Fatal(say({"id": 2, "connect": {}}), End.BAD_REQUEST, 3501, FIRST),
    "two connects in one frame": Fatal(
        say([{"id": 1, "connect": {}}, {"id": 2, "connect": {}}]), End.BAD_REQUEST, 3501, FIRST, connected=False
    ),
    "empty frame": Fatal(say(""), End.BAD_REQUEST, 3501, "a frame without a command"),
    "blank frame": Fatal(say(" \n\r\n\t"), End.BAD_REQUEST, 3501, "a frame without a command"),
    "unknown command": Fatal(say({"id": 2, "shout": {}}), End.BAD_REQUEST, 3501, "unknown command"),
    "no command": Fatal(say({"id": 2}), End.BAD_REQUEST, 3501, "unknown command"),
    "command that is null": Fatal(say({"id": 2, "presence": None}), End.BAD_REQUEST, 3501, "unknown command"),
    "pong to nothing": Fatal(say({}), End.BAD_REQUEST, 3501, "a pong without a ping"),
    "pong before connect": Fatal(say({}), End.BAD_REQUEST, 3501, "a pong without a ping", connected=False),
    "two pongs to one ping": Fatal(
        answer_twice,
        End.BAD_REQUEST,
        3501,
        "a pong without a ping",
        settings={"ping_seconds": 0.2, "pong_seconds_max": 5.0},
    ),
    **{
        f"{method}, {name} room": Fatal(
            say(json.dumps({"id": 2, method: {**body, "channel": room}})),
            End.BAD_REQUEST,
            3501,
            "a command without its channel",
        )
        for method, body in on("").items()
        for name, room in (("empty", ""), ("null", None))
    },
    "no room": Fatal(say({"id": 2, "subscribe": {}}), End.BAD_REQUEST, 3501, "a command without its channel"),
    **{
        f"{method}, {name} id": Fatal(say(json.dumps({**number, method: body})), End.BAD_REQUEST, 3501, NO_ID)
        for method, body in {**on("room"), "ping": {}, "rpc": {}, "refresh": {"token": "t"}}.items()
        for name, number in NO_IDS.items()
    },
    "broken JSON": Fatal(say('{"id":2,"presence":{"channel":"room"}'), End.BAD_REQUEST, 3501, "Input data was…"),
    "no JSON": Fatal(say("hello"), End.BAD_REQUEST, 3501, "JSON is malformed: invalid character (byte 0)"),
    "no object": Fatal(say("[]"), End.BAD_REQUEST, 3501, "Expected `object`, got `array`"),
    "long name of a client": Fatal(
        say({"id": 1, "connect": {"name": 17 * "x"}}), End.BAD_REQUEST, 3501, "Expected `str`…", connected=False
    ),
    "long version of a client": Fatal(
        say({"id": 1, "connect": {"version": 65 * "x"}}), End.BAD_REQUEST, 3501, "Expected `str`…", connected=False
    ),
    "too many commands": Fatal(
        say([{"id": 2, "presence": {"channel": "room"}}] * 4),
        End.BAD_REQUEST,
        3501,
        "over message_commands_max = 3 commands",
        {"message_commands_max": 3},
    ),
    "new token without one": Fatal(say({"id": 2, "refresh": {}}), End.BAD_REQUEST, 3501, "refresh without a token"),
    "too many fragments": Fatal(
        say_raw(client_frame(TEXT, b"{", fin=False) + 70 * client_frame(CONTINUATION, b" ", fin=False)),
        End.TOO_MANY_FRAGMENTS,
        3501,
    ),
    "never says connect": Fatal(do_nothing, End.STALE, 3502, settings=STALE, connected=False),
    "binary": Fatal(
        say(b'{"id":2,"presence":{"channel":"room"}}'), End.WRONG_FORMAT, 3506, "allowed: text frames of JSON"
    ),
    "binary first": Fatal(
        say(b'{"id":1,"connect":{}}'), End.WRONG_FORMAT, 3506, "allowed: text frames of JSON", connected=False
    ),
    "send": Fatal(say({"send": {"data": 1}}), End.NOT_AVAILABLE, 3508, "send: nothing here listens to it"),
    "send with an id": Fatal(say({"id": 2, "send": {}}), End.NOT_AVAILABLE, 3508, "send: nothing here listens to it"),
    "large message": Fatal(say(65_537 * " "), End.MESSAGE_TOO_LARGE, 1009),
}


def ended(server: Server) -> dict[str, float]:
    """Return how many connections have ended, by reason."""
    prefix = b"hubbub_connections_ended_total{reason="
    lines = [line for line in server.node.metrics.text().splitlines() if line.startswith(prefix)]
    pairs = (line.decode().split('"')[1:] for line in lines)
    return {reason: count for reason, rest in pairs if (count := float(rest.split()[-1]))}


@pytest.mark.parametrize("row", FATAL.values(), ids=FATAL)
async def test_what_ends_the_connection(row: Fatal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Close with its code and words, and the end; another client doesn't notice."""
    settings = {"ping_seconds": NEVER, **row.settings}
    async with open_scene(monkeypatch, logged=row.logged, connected=False, **settings) as scene:
        if row.connected:
            await scene.client.connect()
        await row.steps(scene)
        closed = await scene.client.ended()
        assert closed.code == row.code
        if row.code != NOBODY_TO_TELL:
            check_words(closed.reason, DISCONNECTS[row.code], row.about)
        scene.patch.undo()
        if row.end is not End.SHUTDOWN:
            await (await scene.another()).goes_on()
        await trio.aclose_forcefully(scene.client.peer.stream)  # type: ignore[arg-type]
        while row.end.value not in ended(scene.server):
            await trio.sleep(0.01)
    assert ended(scene.server)[row.end.value] == 1


# -- nothing is left out


OF_TOKENS = {End.EXPIRED, End.SUBSCRIPTION_EXPIRED, End.NOT_PERMITTED}
OF_BACK_ENDS = {End.DISMISSED, End.GAP, End.TOO_MANY_OF_USER, End.UNANSWERED}


def test_every_code_has_its_row() -> None:
    """Each error, each unsubscribe, each end: once in hubbub's tables, at least once in these.

    But for what tokens bring about (`test_tokens`): 109, 3005, 3006, 3507; and back ends, or what they have brought
    about (`test_by_server`): 2000, 3010, 3503, 3504.
    """
    errors = [
        value for value in vars(codes).values() if isinstance(value, codes.Error) and value != codes.TOKEN_EXPIRED
    ]
    assert {row.code for row in REFUSED.values()} == {error.code for error in errors} == set(ERRORS)
    assert set(codes.ERRORS.values()) <= set(errors)
    assert {error.code: error.message for error in errors} == ERRORS
    assert {error.code for error in errors if error.temporary} == TEMPORARY
    told = {unsubscribe.code: unsubscribe.reason for unsubscribe in codes.UNSUBSCRIBES.values()}
    assert told == UNSUBSCRIBES | {2000: "server unsubscribe"}
    assert {row.code for row in LOST.values()} == set(UNSUBSCRIBES)
    assert {row.end for row in FATAL.values()} - {End.WRITE_STALL} == set(codes.DISCONNECTS) - OF_TOKENS - OF_BACK_ENDS
    for row in FATAL.values():
        if row.code != NOBODY_TO_TELL:
            disconnect = codes.DISCONNECTS[row.end]
            assert (disconnect.code, disconnect.reason) == (row.code, DISCONNECTS[row.code])


def test_every_refusal_has_its_row() -> None:
    """But for what nobody can be told: the hub is too busy to let a plain client in, or the asker has gone.

    And what isn't permitted is a table of its own (`test_permissions`); what plain clients are told, and what comes of
    back ends, is elsewhere, too (`test_by_server`).
    """
    said = {row.about for row in REFUSED.values()}
    unsaid = {refusal for refusal in codes.ERRORS if refusal.value not in said}
    permissions = {Refusal.NOT_LET_IN, Refusal.DENIED, Refusal.HISTORY_DENIED}
    assert unsaid == {Refusal.BUSY, Refusal.STOPPING, Refusal.TOO_MANY_OF_USER, Refusal.UNANSWERED} | permissions
    assert set(codes.ERRORS) == set(Refusal)


# -- a stop, as its users see it


async def test_a_stop() -> None:
    """SIGTERM: each client is told 3001, whether it has introduced itself or not; the daemon's exit status is 0."""
    with open_daemon(drain_seconds_max=2) as daemon:
        async with open_structured(daemon.port) as client, open_structured(daemon.port, connected=False) as unknown:
            await client.ask("subscribe", channel="room")
            daemon.process.send_signal(signal.SIGTERM)
            for one in (client, unknown):
                closed = await one.ended()
                assert (closed.code, closed.reason) == (3001, "shutdown")
        status, log = await exit_of(daemon)
    assert status == 0
    assert log[-1]["event"] == "stopped"


# -- pings


async def test_pings_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """{}, as the connect reply says; who answers them lives, past many deadlines."""
    async with open_scene(monkeypatch, connected=False, **LIVELY) as scene:
        client = scene.client
        result = await client.connect()
        assert (result["ping"], result["pong"]) == (1, True)  # whole seconds, and no 0: that would be none
        while client.pings < 6:
            await client.receive()
        assert client.frames[1:] == ["{}"] * 6
        await client.goes_on()


async def test_the_reply_says_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 s, by default; who it is, and which version answers."""
    async with open_scene(monkeypatch, connected=False) as scene:
        result = await scene.client.connect(name="js", version="5.7.0", headers={"x": "y"}, data={"any": [1]}, subs={})
        assert set(result) == {"client", "version", "ping", "pong"}
        assert (result["ping"], result["pong"]) == (25, True)
        assert scene.client.frames == [
            f'{{"id":1,"connect":{{"client":"{result["client"]}","version":"{result["version"]}","ping":25,"pong":true}}}}'
        ]


@pytest.mark.parametrize(
    ("query", "native"),
    [
        ("?cf_ws_frame_ping_pong=true", True),
        ("?x=1&cf_ws_frame_ping_pong=true", True),
        ("?cf_ws_frame_ping_pong=false", False),
        ("?cf_ws_frame_ping_pong", False),
        ("?cf_protocol_version=v2", False),
    ],
)
async def test_pings_of_rfc_6455(query: str, native: bool) -> None:
    """For who asks for them: its library answers, and the connect reply doesn't speak of pings."""
    async with open_server(**LIVELY) as server, open_structured(server.port, query=query, connected=False) as client:
        result = await client.connect()
        assert set(result) == {"client", "version"} | (set() if native else {"ping", "pong"})
        for _ in range(6 if native else 1):
            first, payload = await client.peer.receive_frame()
            if native:
                assert (first, payload) == (FIN | PING, b"hubbub")
                await client.peer.send_frame(PONG, payload)
            else:
                assert (first, payload) == (FIN | TEXT, b"{}")
                await client.send("{}")
        await client.goes_on()
        if native:
            await client.send("{}")
            closed = await client.ended()
            assert (closed.code, closed.reason) == (3501, "bad request: a pong without a ping")


async def test_who_answers_no_native_ping() -> None:
    """Is gone, too."""
    query = "?cf_ws_frame_ping_pong=true"
    async with open_server(**TINY) as server, open_structured(server.port, query=query) as client:
        assert await client.peer.receive_frame() == (FIN | PING, b"hubbub")
        closed = await client.ended()
        assert (closed.code, closed.reason) == (3012, "no pong")


# -- the handshake

OFFER = "Sec-WebSocket-Protocol: "
SUBPROTOCOLS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "the one": ((OFFER + "centrifuge-json",), "centrifuge-json"),
    "the one of several": ((OFFER + "centrifuge-protobuf, chat ,centrifuge-json",), "centrifuge-json"),
    "in two fields": ((OFFER + "chat", OFFER + "centrifuge-json"), "centrifuge-json"),
    "none": ((), None),
    "empty": ((OFFER.strip(),), None),
    "only commas": ((OFFER + ", ,",), None),
}


async def upgrade(
    port: int, *fields: str, line: str = f"GET {PATH} HTTP/1.1", bodiless: bool = False
) -> tuple[Answer, Message | None]:
    """Ask for a WebSocket; return the answer, and the result of a connect if it is one now."""
    async with open_client(port) as door:
        await door.send(head(line, *fields))
        answer = await door.answer(bodiless=bodiless)
        return answer, await Client(Peer(door.stream)).connect() if answer.status == 101 else None


@pytest.mark.parametrize(("offers", "answered"), SUBPROTOCOLS.values(), ids=SUBPROTOCOLS)
async def test_subprotocol(offers: tuple[str, ...], answered: str | None) -> None:
    """Named in the answer if it was offered, and only then."""
    async with open_server() as server:
        answer, connected = await upgrade(server.port, *HANDSHAKE, *offers, bodiless=True)
        assert answer.status == 101
        assert answer.headers.get("sec-websocket-protocol") == answered
        assert connected is not None


WAYS_IN: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    "own origin": ("GET", (*HANDSHAKE, "Origin: http://localhost"), 101, ""),
    "foreign origin": (
        "GET",
        (*HANDSHAKE, "Origin: https://evil.example"),
        403,
        "Origin: got 'https://evil.example', allowed: the same host and port; see allowed_origins",
    ),
    "foreign host": ("GET", ("Host: example.com", *HANDSHAKE[1:]), 421, "Host: got 'example.com'"),
    "post": ("POST", (*HANDSHAKE, "Content-Length: 0"), 405, "method: got 'POST', allowed: GET"),
    "head": ("HEAD", HANDSHAKE, 405, ""),
    "no upgrade": ("GET", (HOST,), 426, "this address speaks WebSocket; connect with a WebSocket client"),
    "protobuf": (
        "GET",
        (*HANDSHAKE, OFFER + "centrifuge-protobuf"),
        400,
        "Sec-WebSocket-Protocol: got 'centrifuge-protobuf', allowed: centrifuge-json, or none",
    ),
    "strangers": (
        "GET",
        (*HANDSHAKE, OFFER + "chat", OFFER + "graphql-ws"),
        400,
        "Sec-WebSocket-Protocol: got 'chat, graphql-ws', allowed: centrifuge-json, or none",
    ),
}


@pytest.mark.parametrize(("method", "fields", "status", "text"), WAYS_IN.values(), ids=WAYS_IN)
async def test_ways_in(method: str, fields: tuple[str, ...], status: int, text: str) -> None:
    """The same rules as for /chat."""
    async with open_server() as server:
        answer, _ = await upgrade(server.port, *fields, line=f"{method} {PATH} HTTP/1.1", bodiless=not text)
        assert answer.status == status
        if text:
            assert sentence(answer).startswith(text)


@pytest.mark.parametrize("path", [PATH + "/", PATH + "/room", "/connection", "/connection/Websocket"])
async def test_other_addresses(path: str) -> None:
    """There is one address; rooms are named in commands."""
    async with open_server() as server:
        answer, _ = await upgrade(server.port, *HANDSHAKE, line=f"GET {path} HTTP/1.1")
        assert answer.status == 404


# -- several commands in one frame


async def test_replies_come_in_order_in_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked in one frame is answered in one, whether it is carried out, refused, or not the hub's affair."""
    async with open_scene(monkeypatch) as scene:
        client = scene.client
        await client.send(
            {"id": 7, "history": {"channel": "room"}},
            {"id": 5, "rpc": {}},
            {"id": 9, "history": {"channel": "games:chess"}},
            {"id": 5, "presence": {"channel": "room"}},
            {"id": 4_294_967_295, "unsubscribe": {"channel": "room"}},
            {"id": 1, "ping": {}},
        )
        await client.reply(1)
        assert len(client.frames) == 2
        replies = [json.loads(line) for line in client.frames[-1].split("\n")]
        assert [reply["id"] for reply in replies] == [7, 5, 9, 5, 4_294_967_295, 1]
        assert [next(member for member in reply if member != "id") for reply in replies] == [
            "history",
            "error",
            "error",
            "presence",
            "unsubscribe",
            "error",
        ]


async def test_everything_in_the_first_frame() -> None:
    """As SDKs do it: connect, subscribe, publish, and all that it takes; blank lines are nobody's."""
    async with open_server() as server, open_structured(server.port, connected=False) as client:
        await client.send(
            {"id": 1, "connect": {}},
            "",
            {"id": 2, "subscribe": {"channel": "room"}},
            " \r",
            {"id": 3, "publish": {"channel": "room", "data": "hello"}},
            {"id": 4, "unsubscribe": {"channel": "room"}},
            "",
        )
        assert "client" in client.result("connect", await client.reply(1))
        client.result("subscribe", await client.reply(2))
        assert client.result("publish", await client.reply(3))["offset"] == 1
        client.result("unsubscribe", await client.reply(4))
        assert (await client.publication("room"))["data"] == "hello"
        order = [list(json.loads(line)) for frame in client.frames for line in frame.split("\n")]
        assert order == [["id", "connect"], ["id", "subscribe"], ["push"], ["id", "publish"], ["id", "unsubscribe"]]


FATAL_LINES: dict[str, tuple[str, int]] = {
    "broken": ('{"id":', 3501),
    "send": ('{"send":{}}', 3508),
    "token": ('{"id":9,"refresh":{"token":"t"}}', 3500),
    "connect": ('{"id":9,"connect":{}}', 3501),
    "pong": ("{}", 3501),
}


@pytest.mark.parametrize(("line", "code"), FATAL_LINES.values(), ids=FATAL_LINES)
async def test_what_is_around_a_fatal_command(line: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before it is carried out and answered, what comes after it isn't: in its frame, and in others."""
    async with open_scene(monkeypatch) as scene:
        client, witness = scene.client, await scene.another()
        await witness.ask("subscribe", channel="room")
        await client.ask("subscribe", channel="room")
        publish = '{{"id":{0},"publish":{{"channel":"room","data":{0}}}}}'.format
        await client.peer.send_raw(
            client_frame(TEXT, "\n".join([publish(3), '{"id":4,"rpc":{}}', line, publish(5)]).encode())
            + client_frame(TEXT, publish(6).encode())
            + client_frame(TEXT, b"not even JSON")
        )
        closed = await client.ended()
        assert closed.code == code
        assert (await client.reply(3))["publish"]["offset"] == 1
        assert [push["pub"]["data"] for push in client.pushes] == [3]
        assert list(json.loads(client.frames[2])) == ["push"]  # its own publication comes before the ack, also now
        assert (await client.reply(4))["error"]["code"] == 108
        for number in (5, 6):
            with pytest.raises(Closed):
                await client.reply(number)
        await witness.ask("publish", channel="room", data="end")
        assert [(await witness.publication("room"))["data"] for _ in range(2)] == [3, "end"]


async def test_too_many_commands_are_no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of such a frame is carried out; as many as are allowed are."""
    async with open_scene(monkeypatch, message_commands_max=3) as scene:
        client, witness = scene.client, await scene.another()
        await witness.ask("subscribe", channel="room")
        publishes = [{"id": number, "publish": {"channel": "room", "data": number}} for number in range(2, 6)]
        await client.send(*publishes[:3])
        await client.send(*publishes)
        assert (await client.ended()).code == 3501
        await witness.ask("publish", channel="room", data="end")
        assert [(await witness.publication("room"))["data"] for _ in range(4)] == [2, 3, 4, "end"]


async def test_an_end_is_one_entry_of_the_log() -> None:
    """With what the client was told, and who it was."""
    async with open_server() as server:
        with capture_logs() as logs:
            async with open_structured(server.port) as client:
                await client.send({})
                await client.ended()
            await until_quiet(server.node)
    (entry,) = (entry for entry in logs if entry["event"] == "connection ended")
    assert (entry["log_level"], entry["reason"], entry["code"]) == ("info", "bad_request", 3501)
    assert entry["detail"] == "a pong without a ping"
    assert (entry["user"], entry["client"]) == ("", client.client)


async def test_a_client_without_a_name_of_its_own_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close before connect, or in the middle of it all: answered, and nothing is left."""
    async with open_scene(monkeypatch, connected=False) as scene:
        _, closed = await scene.client.peer.close()
        assert closed.code == 1000
        another = await scene.another()
        await another.ask("subscribe", channel="room")
        _, closed = await another.peer.close()
        assert closed.code == 1000
        async with open_peer(scene.server.port, "/chat/room") as plain:
            await plain.send("hello")
            assert await plain.receive() == "hello"
