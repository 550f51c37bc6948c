"""Bad input of the structured dialect: what it is told, and that nobody else feels it.

Over real sockets against the daemon, beside three others that go on talking; and, for very many inputs, in the pure
core: the dialect and the hub, driven by hand. At the end what can be published, any JSON value, and what is heard.
"""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, given, settings

from hubbub.config import Settings
from hubbub.core.frames import BINARY, TEXT, frame_end
from hubbub.core.rooms import Rooms
from hubbub.dialects.centrifugo import codes, requests
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.dialects.centrifugo.dialect import CentrifugoDialect
from hubbub.dialects.plain import PlainDialect
from hubbub.engines.memory import MemoryEngine
from hubbub.hub.state import Hub
from hubbub.model.command import Answer, Command, Publish, Subscribe, Subscribed
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Member
from hubbub.model.subscriber import Encoder, Loss
from known import Known, commands_of, nothing_is_asked
from outlets import OnlyOffers
from peers import SECONDS_MAX, Closed, open_peer
from servers import Daemon, open_daemon, open_server
from structured import Message, open_structured

MEGABYTE = 1_000_000
LIMITS: dict[str, object] = {
    "message_bytes_max": 3 * MEGABYTE // 2,
    "linger_bytes_max": 2**24,  # or who sends too much would be let go of in the middle of it
    "rooms_per_connection_max": 1000,
    "log_level": "warning",  # nobody reads the log meanwhile, and a pipe holds 64 KiB
}
PAUSE_SECONDS = 0.005
BYSTANDERS = 3
LAST = 2**32 - 2
"""The id of the command by which a client finds out whether it is still connected."""


# -- a daemon, and who must not notice


class Bystanders(threading.Thread):
    """One talks, and two more listen, one of them a plain client: a number after the other, without a gap."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._over = threading.Event()
        self.heard = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Talk until it is over."""
        try:
            trio.run(self._talk)
        except BaseException as failure:
            self.failure = failure

    def stop(self) -> None:
        """End it, and see that all was well."""
        self._over.set()
        self.join(SECONDS_MAX)
        assert not self.is_alive()
        assert self.failure is None, self.failure

    async def _talk(self) -> None:
        async with (
            open_structured(self._port) as talker,
            open_structured(self._port) as listener,
            open_peer(self._port, "/chat/bystanders") as plain,
        ):
            epoch = (await talker.ask("subscribe", channel="bystanders"))["epoch"]
            await listener.ask("subscribe", channel="bystanders")
            while not self._over.is_set():
                number = self.heard + 1
                published = await talker.ask("publish", channel="bystanders", data=number)
                assert published == {"offset": number, "epoch": epoch}
                expected = {"data": number, "offset": number, "info": {"user": "", "client": talker.client}}
                for client in (talker, listener):
                    assert await client.publication("bystanders") == expected
                assert await plain.receive() == str(number)
                self.heard = number
                await trio.sleep(PAUSE_SECONDS)
            assert not talker.pushes
            assert not listener.pushes


class House(NamedTuple):
    """The daemon and its bystanders."""

    daemon: Daemon
    bystanders: Bystanders

    def faults(self) -> list[float]:
        """Return how often something went wrong inside."""
        metrics = self.daemon.metrics()
        return [
            metrics["hubbub_internal_errors_total"],
            metrics["hubbub_rooms_failed_total"],
            metrics["hubbub_gaps_total"],
        ]

    def check(self) -> None:
        """See that they go on from here, and that nothing is left of anyone else."""
        heard = self.bystanders.heard
        until = time.monotonic() + SECONDS_MAX
        while True:
            metrics = self.daemon.metrics()
            assert self.bystanders.failure is None, self.bystanders.failure
            left = metrics["hubbub_connections"], metrics["hubbub_subscriptions"], metrics["hubbub_rooms"]
            if self.bystanders.heard > heard + 1 and left == (BYSTANDERS, BYSTANDERS, 1):
                return
            assert time.monotonic() < until, (left, heard, self.bystanders.heard)
            time.sleep(PAUSE_SECONDS)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One daemon for all tests of this file; in its log there is no traceback when it has ended."""
    with open_daemon(insecure=True, **LIMITS) as daemon:
        bystanders = Bystanders(daemon.port)
        bystanders.start()
        try:
            yield House(daemon, bystanders)
        finally:
            bystanders.stop()
        assert daemon.metrics()["hubbub_internal_errors_total"] == 0


@pytest.fixture
def port(house: House) -> Iterator[int]:
    """Where the daemon listens; all must be well with it after the test."""
    faults = house.faults()
    yield house.daemon.port
    house.check()
    assert house.faults() == faults


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        replies: in the order in which they came.
        closed: the end, if it was one.
    """

    replies: list[Message]
    closed: Closed | None

    @property
    def kinds(self) -> tuple[int | str, ...]:
        """What the replies are, an error as its code; and the code of the Close, if there is one."""
        kinds = [reply["error"]["code"] if "error" in reply else list(reply)[1] for reply in self.replies]
        return (*kinds, self.closed.code) if self.closed else tuple(kinds)


async def try_out(port: int, *frames: str | bytes, connected: bool = True) -> Outcome:
    """Send these as text frames, whatever they are, and then a command to see whether the connection goes on."""
    closed: Closed | None = None
    async with open_structured(port, connected=connected) as client:
        seen = len(client.frames)
        with contextlib.suppress(trio.BrokenResourceError):
            for frame in frames:
                await client.peer.send_frame(TEXT, frame if isinstance(frame, bytes) else frame.encode())
            await client.send({"id": LAST, "presence_stats": {"channel": "x"}})
        try:
            await client.reply(LAST)
        except Closed as end:
            closed = end
        lines = [json.loads(line) for frame in client.frames[seen:] for line in frame.split("\n")]
    return Outcome([line for line in lines if "id" in line and line["id"] != LAST], closed)


# -- the bad inputs


def deep(depth: int, value: str = "", open_: str = "[", close: str = "]") -> str:
    """Return JSON that is nested that deep."""
    return depth * open_ + value + depth * close


def publish(data: str, *, number: int = 2, more: str = "") -> str:
    """Return a command that publishes it, as it is written."""
    return f'{{"id":{number},"publish":{{"channel":"room","data":{data}}}{more}}}'


HUGE = 5000 * "9"
ROOM = '{"channel":"room"}'
LONGEST = "x" * MEGABYTE
ESCAPES = 200_000 * r"\u00e9"

BAD: dict[str, tuple[tuple[str | bytes, ...], tuple[int | str, ...]]] = {
    # broken
    **{
        f"broken, {text!r}": ((text,), (3501,))
        for text in ("{", "}", "nul", '"', "{}x", "{} {}", "[{}", "\0", "\ufeff{}")
    },
    "cut short": ((publish("1")[:-1],), (3501,)),
    "two in one line": ((publish("1") + publish("2"),), (3501,)),
    "a comma too many": (('{"id":2,"presence":{"channel":"room",}}',), (3501,)),
    "a comment": (('{"id":2,"presence":{"channel":"room"/* here */}}',), (3501,)),
    "single quotes": (("{'id':2,'presence':{'channel':'room'}}",), (3501,)),
    **{
        f"data that isn't JSON, {data}": ((publish(data),), (3501,))
        for data in (
            "",
            "tru",
            "NaN",
            "-Infinity",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "0x1",
            '"\\x"',
            '"\t"',
            "1 2",
            "[1,]",
            "{1:2}",
        )
    },
    "data over two lines": ((publish('{"a":\n1}'),), (3501,)),
    "half a surrogate pair in data": ((publish('"\\ud83d"'),), (3501,)),
    "half a surrogate pair in a name": (('{"id":2,"subscribe":{"channel":"\\ud83d"}}',), (3501,)),
    "one broken among good ones": ((publish("1") + "\n{\n" + publish("2"),), ("publish", 3501)),
    # too deep
    "deep data": ((publish(deep(100_000)),), (3501,)),
    "deep objects": ((publish(deep(100_000, "1", '{"a":', "}")),), (3501,)),
    "deep and cut short": (("[" * 100_000,), (3501,)),
    "deep member of nobody": ((f'{{"id":2,"rpc":{{}},"x":{deep(100_000)}}}',), (3501,)),
    "deep, and mixed": ((publish(deep(50_000, "1", '[{"a":', "}]")),), (3501,)),
    # not UTF-8
    "not UTF-8": ((b'{"id":2,"presence":{"channel":"\xff"}}',), (1007,)),
    "a surrogate in UTF-8": ((b'{"id":2,"presence":{"channel":"\xed\xa0\x80"}}',), (1007,)),
    "an overlong slash": ((b'{"id":2,"presence":{"channel":"\xc0\xaf"}}',), (1007,)),
    "UTF-16": (("{}".encode("utf-16"),), (1007,)),
    # numbers out of range
    **{
        f"id {number[:8]}": ((f'{{"id":{number},"presence":{ROOM}}}',), (3501,))
        for number in ("-1", str(2**32), str(2**64), HUGE, "1e400", "1e1", "1.5", "-0.0")
    },
    **{
        f"limit {number[:8]}": ((f'{{"id":2,"history":{{"channel":"room","limit":{number}}}}}',), (3501,))
        for number in (str(2**31), str(-(2**31) - 1), HUGE, "-" + HUGE, "0.5")
    },
    **{
        f"offset {number[:8]}": ((f'{{"id":2,"history":{{"channel":"room","since":{{"offset":{number}}}}}}}',), (3501,))
        for number in ("-1", HUGE, "1e3", "1e400")
    },
    **{
        f"flag {number[:8]}": ((f'{{"id":2,"subscribe":{{"channel":"room","flag":{number}}}}}',), (3501,))
        for number in ("-1", HUGE, "2.0")
    },
    "numbers at their ends": (
        (
            f'{{"id":{2**32 - 1},"presence_stats":{ROOM}}}\n'
            f'{{"id":2,"history":{{"channel":"room","limit":{2**31 - 1}}}}}\n'
            f'{{"id":3,"history":{{"channel":"room","limit":{-(2**31)},"since":{{"offset":{2**64 - 1}}}}}}}\n'
            f'{{"id":4,"history":{{"channel":"room","limit":1,"since":{{"offset":{400 * "9"}}},"reverse":true}}}}\n'
            f'{{"id":5,"subscribe":{{"channel":"room","recover":true,"offset":{2**64 - 1},"flag":{2**64 - 3}}}}}\n'
            f'{{"id":6,"subscribe":{{"channel":"room","recover":true,"offset":{400 * "9"},"flag":{2**64 - 3 - 2}}}}}',
        ),
        ("presence_stats", "history", "history", "history", "subscribe", 105),
    ),
    "a number that no machine has": (
        (publish(HUGE).replace("room", "quiet") + "\n" + publish("-1e999999"),),
        (107, "publish"),
    ),
    # large
    "name of a megabyte": ((f'{{"id":2,"subscribe":{{"channel":"{LONGEST}"}}}}',), (107,)),
    "name of a megabyte, in escapes": (
        (f'{{"id":2,"publish":{{"channel":"{ESCAPES}","data":1}}}}',),
        (107,),
    ),
    "names of a megabyte together": (
        ("\n".join(f'{{"id":{number},"presence":{{"channel":"{"x" * 1000}"}}}}' for number in range(2, 1000)),),
        998 * (107,),
    ),
    "client's name of a megabyte": ((f'{{"id":2,"connect":{{"name":"{LONGEST}"}}}}',), (3501,)),
    "key of a megabyte": ((publish(f'1,"idempotency_key":"{LONGEST}"'),), (107,)),
    "epoch of a megabyte": (
        (f'{{"id":2,"history":{{"channel":"room","since":{{"offset":1,"epoch":"{LONGEST}"}}}}}}',),
        (3501,),
    ),
    "token of a megabyte": ((f'{{"id":2,"subscribe":{{"channel":"room","token":"{LONGEST}"}}}}',), (103,)),
    "method of a megabyte": ((f'{{"id":2,"{LONGEST}":{{}}}}',), (3501,)),
    "data of a megabyte": ((publish(f'"{LONGEST}"'),), ("publish",)),
    "more than a message may have": ((f'{{"id":2,"subscribe":{{"channel":"{2 * LONGEST}"}}}}',), (1009,)),
    "more than that, of nothing": ((2 * MEGABYTE * "\n",), (1009,)),
    "a megabyte of nothing": ((MEGABYTE * "\n",), (3501,)),
    "a megabyte of spaces around it": ((MEGABYTE * " " + publish("1"),), ("publish",)),
    # many
    "10,000 commands": (("\n".join(publish(str(n), number=n) for n in range(2, 10_002)),), (3501,)),
    "10,000 pongs": (("\n".join(10_000 * ["{}"]),), (3501,)),
    "10,000 commands, all wrong": (("\n".join(10_000 * ["{"]),), (3501,)),
    "as many commands as a frame may have": (
        ("\n".join(f'{{"id":{number},"presence_stats":{ROOM}}}' for number in range(2, 1026)),),
        1024 * ("presence_stats",),
    ),
    "one more than that": (("\n".join(f'{{"id":{n},"presence_stats":{ROOM}}}' for n in range(2, 1027)),), (3501,)),
    "many rooms": (
        ("\n".join(f'{{"id":{number},"subscribe":{{"channel":"{number}"}}}}' for number in range(2, 1003)),),
        (*(1000 * ("subscribe",)), 106),
    ),
    # twice
    "one id twice": ((publish("1") + "\n" + publish("2"), publish("3")), ("publish", "publish", "publish")),
    "one subscription twice": ((2 * f'{{"id":2,"subscribe":{ROOM}}}\n',), ("subscribe", 105)),
    "two ids in one command": ((f'{{"id":2,"id":0,"presence":{ROOM}}}',), (3501,)),
    "two methods in one command": ((f'{{"id":2,"rpc":{{}},"presence":{ROOM}}}',), ("presence",)),
    "one method twice": ((f'{{"id":2,"presence":{ROOM},"presence":{{"channel":""}}}}',), (3501,)),
}


@pytest.mark.parametrize(("frames", "kinds"), BAD.values(), ids=BAD)
async def test_bad_input(port: int, frames: tuple[str | bytes, ...], kinds: tuple[int | str, ...]) -> None:
    """The right code each; a Close says in words what it was, an error too."""
    outcome = await try_out(port, *frames)
    assert outcome.kinds == kinds
    if outcome.closed is not None:
        assert outcome.closed.reason
    assert all(reply["error"]["message"] for reply in outcome.replies if "error" in reply)


async def test_replies_to_one_id(port: int) -> None:
    """Each gets its own answer, in their order: what an id means is the client's affair."""
    async with open_structured(port) as client:
        await client.send(publish('"a"'), publish('"b"'), '{"id":7,"id":2,"history":{"channel":"x","channel":"y"}}')
        first, second, third = [await client.reply(2) for _ in range(3)]
        assert first["publish"]["offset"] + 1 == second["publish"]["offset"]
        assert third["history"]["offset"] == 0


VALUES: dict[str, object] = {"text": "x", "number": 1, "fraction": 1.5, "flag": True, "list": [], "object": {}}
MEMBERS: dict[str, dict[str, str]] = {
    "connect": {"token": "text", "name": "text", "version": "text"},
    "subscribe": {
        "channel": "text",
        "token": "text",
        "recover": "flag",
        "epoch": "text",
        "offset": "number",
        "positioned": "flag",
        "recoverable": "flag",
        "join_leave": "flag",
        "flag": "number",
    },
    "unsubscribe": {"channel": "text"},
    "publish": {"channel": "text", "idempotency_key": "text"},
    "presence": {"channel": "text"},
    "presence_stats": {"channel": "text"},
    "history": {"channel": "text", "limit": "number", "since": "object", "reverse": "flag"},
    "ping": {},
    "send": {},
    "rpc": {},
    "refresh": {"channel": "text", "token": "text"},
    "sub_refresh": {"channel": "text", "token": "text"},
}
"""What each member may be; the others end the connection."""


def wrongly_typed(method: str) -> Iterator[Message]:
    """Give each command of that method in which one thing is of a wrong type."""
    good: Message = {"channel": "room", "data": 1}
    for kind, value in VALUES.items():
        if kind != "number":
            yield {"id": value, method: good}
        if kind != "object":
            yield {"id": 2, method: value}
        for member, allowed in MEMBERS[method].items():
            if kind != allowed:
                yield {"id": 2, method: {**good, member: value}}
        if method == "history":
            yield from (
                {"id": 2, method: {**good, "since": {member: value}}}
                for member in ("offset", "epoch")
                if kind != {"offset": "number", "epoch": "text"}[member]
            )


@pytest.mark.parametrize("method", MEMBERS)
async def test_wrong_types(port: int, method: str) -> None:
    """Each member in turn is everything that it may not be: that is no command, and the reason says where."""
    for command in wrongly_typed(method):
        outcome = await try_out(port, json.dumps(command), connected=method != "connect")
        assert outcome.kinds == (3501,), command
        assert outcome.closed is not None
        assert outcome.closed.reason.startswith("bad request: Expected `"), command
        assert " - at `$." in outcome.closed.reason


def test_all_members_are_tried() -> None:
    """What the decoder knows is what is tried; data may be anything."""
    assert tuple(MEMBERS) == requests.METHODS
    for method, members in MEMBERS.items():
        (body, _) = requests.Request.__annotations__[method].__args__
        assert set(members) == set(body.__struct_fields__) - {"data", "subs"}


# -- whatever Hypothesis thinks of, over sockets

CODES = {
    *(error.code for error in vars(codes).values() if isinstance(error, codes.Error)),
    *(codes.DISCONNECTS[end].code for end in (End.BAD_REQUEST, End.NOT_AVAILABLE, End.INVALID_TOKEN)),
} - {codes.INTERNAL.code}
"""What may be said to bad input; and that is not our fault."""

VALID: list[Message] = [
    {"connect": {"name": "js", "version": "5"}},
    {"subscribe": {"channel": "room", "recover": True, "epoch": "e", "offset": 1, "flag": 2, "join_leave": True}},
    {"subscribe": {"channel": "other", "positioned": True, "recoverable": True}},
    {"unsubscribe": {"channel": "room"}},
    {"publish": {"channel": "room", "data": {"text": "hello", "numbers": [1, 2.5]}, "idempotency_key": "k"}},
    {"publish": {"channel": "other", "data": "hello"}},
    {"presence": {"channel": "room"}},
    {"presence_stats": {"channel": "room"}},
    {"history": {"channel": "room", "limit": 10, "since": {"offset": 1, "epoch": "e"}, "reverse": True}},
    {"ping": {}},
    {"send": {"data": 1}},
    {"rpc": {"method": "m", "data": 1}},
    {"refresh": {"token": "t"}},
    {"sub_refresh": {"channel": "room", "token": "t"}},
    {},
]

ids = st.integers(0, 9)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn) -> str:
    """A command with one of its parts, however deep inside, replaced by any value, or left out."""
    command = json.loads(json.dumps({"id": draw(ids), **draw(st.sampled_from(VALID))}))
    part: Any = command
    while True:
        place = draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if isinstance(part[place], dict | list) and part[place] and draw(st.booleans()):
            part = part[place]
            continue
        if draw(st.booleans()):
            part[place] = draw(values)
        else:
            del part[place]
        return json.dumps(command, ensure_ascii=draw(st.booleans()))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A command as text, a piece of which is replaced by something else."""
    text = json.dumps({"id": draw(ids), **draw(st.sampled_from(VALID))})
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(len(text), start + 4)))
    return text[:start] + draw(st.text(max_size=3) | st.text('{}[]",:0\\u \t\r', max_size=3)) + text[stop:]


good = st.builds(lambda number, command: json.dumps({"id": number, **command}), ids, st.sampled_from(VALID))
invented = st.builds(
    json.dumps, st.fixed_dictionaries({"id": values}, optional=dict.fromkeys(requests.METHODS, values))
)
lines = altered() | damaged() | good | invented | values.map(json.dumps) | st.text()
texts = st.lists(lines, max_size=5).map("\n".join)


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@given(frames=st.lists(texts, min_size=1, max_size=3), connected=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_commands(port: int, frames: list[str], connected: bool) -> None:
    """A reply, an error or a Close, with a code that says that it is the client's fault; never no word at all."""
    outcome = trio.run(lambda: try_out(port, *frames, connected=connected))
    assert {kind for kind in outcome.kinds if isinstance(kind, int)} <= CODES
    assert {kind for kind in outcome.kinds if isinstance(kind, str)} <= set(requests.METHODS)
    if outcome.closed is not None:
        assert outcome.closed.reason


# -- and in the pure core


class Ear:
    """A subscriber, by hand: what it is given must be what its dialect may say."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.gone = False
        self.was_in: Mapping[str, bool] = {}
        self.outlet = OnlyOffers(self.offer)
        self.member = Member("", str(id(self)))
        self.conversation: CentrifugoConversation | None = None
        self.ended: End | None = None

    def offer(self, data: bytes, frames: int) -> None:
        """Look at whole frames."""
        while data:
            stop = frame_end(data, 1)
            start = {126: 4, 127: 10}.get(data[1], 2)
            for line in data[start:stop].decode().split("\n") if isinstance(self.encoder, CentrifugoDialect) else ():
                assert isinstance(json.loads(line), dict)
            data, frames = data[stop:], frames - 1
        assert not frames

    def dismiss(self, disconnect: Disconnect) -> None:
        """No input may bring that about."""
        raise AssertionError(disconnect)

    def introduce(self, member: Member) -> bool:
        """Be that."""
        self.member = member
        return True

    def flush(self) -> None:
        """Look at the replies."""
        if self.conversation is not None and (frame := self.conversation.replies()):
            self.offer(frame, 1)

    def lose(self, room: str, loss: Loss) -> None:
        """No input may bring that about."""
        raise AssertionError(room, loss)

    def evict(self, end: End, detail: str = "") -> None:
        """Remember it."""
        assert detail
        self.ended = end

    def hear_answer(self, answer: Answer) -> None:
        """A plain client in its room."""
        assert isinstance(answer, Subscribed)


class Core:
    """A hub with a plain client in each room of `VALID`, and a structured one that says what it likes."""

    def __init__(self) -> None:
        limits = Settings(insecure=True)
        rooms = Rooms()
        self.hub = Hub(MemoryEngine(limits, lambda: "e", rooms.__contains__), rooms, limits)
        self.ear = Ear(CentrifugoDialect())
        self.conversation = self.ear.conversation = CentrifugoConversation(
            self.ear, self.ear.member, limits, Known(limits), nothing_is_asked, 0.0, native_pings=False
        )
        for room in ("room", "other"):
            plain = Ear(PlainDialect())
            self.hub.carry_out(Subscribe(plain, room, plain.hear_answer), now=0.0)

    def carry_out(self, commands: Sequence[Command]) -> None:
        """As the hub task would."""
        for command in commands:
            if isinstance(command, Publish):
                self.hub.publish(command, now=0.0)
            else:
                if self.hub.comes_after_what_waits(command):
                    self._hand_out()
                self.hub.carry_out(command, now=0.0)
        self._hand_out()
        assert self.hub.statistics().rooms_failed == 0

    def hear(self, frame: bytes) -> None:
        """Carry out what a frame says."""
        self.carry_out(commands_of(self.conversation.receive(frame, False)))

    def _hand_out(self) -> None:
        for room in self.hub.waiting():
            for delivery in self.hub.take(room):
                for outlet in delivery.outlets:
                    outlet.offer(delivery.data, delivery.frames)
        for subscriber in self.hub.take_answered():
            subscriber.flush()


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@given(
    frames=st.lists(
        st.tuples(texts.map(str.encode) | damaged().map(str.encode) | st.binary(), st.booleans()), max_size=5
    ),
    connected=st.booleans(),
    pings=st.integers(0, 2),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes(frames: list[tuple[bytes, bool]], connected: bool, pings: int) -> None:
    """The dialect never raises; and once it has had enough it listens to nothing."""
    core = Core()
    if connected:
        core.hear(b'{"id":1,"connect":{}}')
    for _ in range(pings):
        assert core.conversation.ping()
    for data, binary in frames:
        was_over = core.ear.ended is not None
        commands = commands_of(core.conversation.receive(data, binary))
        assert not (was_over and commands)
        with contextlib.suppress(UnicodeDecodeError):
            data.decode()  # what isn't UTF-8 doesn't get as far as here
            core.carry_out(commands)
    assert core.ear.ended in {None, End.BAD_REQUEST, End.WRONG_FORMAT, End.NOT_AVAILABLE, End.INVALID_TOKEN}


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@given(data=values, text=st.booleans(), spaces=st.sampled_from([None, (",", ":"), (" , ", "\t:\r")]))
@settings(max_examples=300, deadline=None)
def test_any_value_can_be_said(data: object, text: bool, spaces: tuple[str, str] | None) -> None:
    """It is heard as it was said, in both dialects."""
    core = Core()
    core.hear(b'{"id":1,"connect":{}}')
    written = json.dumps(data, ensure_ascii=text, separators=spaces)
    (command,) = core.conversation.receive(publish(written).encode(), False)
    assert isinstance(command, Publish)
    assert repr(json.loads(command.data)) == repr(data)
    assert len(command.data) <= len(written.encode())
    core.carry_out([command])


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_any_depth(space: str, open_: str, close: str) -> None:
    """Wherever it becomes too deep: either it is said, or it ends the connection. It is never a bug of ours."""
    outcomes: list[bool] = []
    for depth in range(1, 1200):
        core = Core()
        core.hear(b'{"id":1,"connect":{}}')
        core.hear(publish(deep(depth, space + "1", open_, close)).encode())
        assert core.ear.ended in (None, End.BAD_REQUEST)
        outcomes.append(core.ear.ended is None)
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[100]
    assert not outcomes[-1]


# -- what can be published, and what is heard of it

SAID: dict[str, tuple[str, str, str]] = {
    # as it is written, as structured clients hear it, as plain clients hear it
    "null": ("null", "null", "null"),
    "true": ("true", "true", "true"),
    "false": (" false ", "false", "false"),
    "zero": ("0", "0", "0"),
    "minus zero": ("-0", "-0", "-0"),
    "one, as a fraction": ("1.0", "1.0", "1.0"),
    "exponent": ("1E+2", "1E+2", "1E+2"),
    "many places": (
        "0.10000000000000000555111512312578",
        "0.10000000000000000555111512312578",
        "0.10000000000000000555111512312578",
    ),
    "beyond 2^53": ("9007199254740993", "9007199254740993", "9007199254740993"),
    "beyond 2^64": (400 * "9", 400 * "9", 400 * "9"),
    "beyond all floats": ("1e400", "1e400", "1e400"),
    "empty string": ('""', '""', ""),
    "string": ('"hello"', '"hello"', "hello"),
    "string with spaces": ('"  a  b "', '"  a  b "', "  a  b "),
    "escapes": (r'"\"\\\/\b\f\n\r\t"', r'"\"\\\/\b\f\n\r\t"', '"\\/\b\f\n\r\t'),
    "an escaped pair": (r'"\ud83d\ude00"', r'"\ud83d\ude00"', "😀"),
    "escaped NUL": (r'"\u0000"', r'"\u0000"', "\0"),
    "unicode": ('"é😀\u2028\x7f"', '"é😀\u2028\x7f"', "é😀\u2028\x7f"),
    "string like JSON": (r'"{\"a\": 1}"', r'"{\"a\": 1}"', '{"a": 1}'),
    "empty list": ("[ ]", "[]", "[]"),
    "empty object": ("{\t}", "{}", "{}"),
    "white space": (' {"a" : [1 ,\r2,\t{ "b c":  null }] } ', '{"a":[1,2,{"b c":null}]}', '{"a":[1,2,{"b c":null}]}'),
    "only carriage returns": ("[1,\r2]", "[1,2]", "[1,2]"),
    "members twice": ('{"a":1,"a":2}', '{"a":1,"a":2}', '{"a":1,"a":2}'),
    "order of members": ('{"b":1,"a":2,"":3}', '{"b":1,"a":2,"":3}', '{"b":1,"a":2,"":3}'),
    "list of strings": (r'["\u00e9","é"]', r'["\u00e9","é"]', r'["\u00e9","é"]'),
    "as deep as may be": (deep(128), deep(128), deep(128)),
}


async def test_what_structured_clients_say() -> None:
    """The value itself, but for insignificant white space: live, from history, and to plain clients."""
    async with (
        open_server() as server,
        open_structured(server.port) as talker,
        open_structured(server.port) as listener,
        open_peer(server.port, "/chat/room") as plain,
    ):
        await talker.ask("subscribe", channel="room")
        await listener.ask("subscribe", channel="room")
        info = f'"info":{{"user":"","client":"{talker.client}"}}'
        for offset, (said, heard, heard_plainly) in enumerate(SAID.values(), 1):
            await talker.send(publish(said, number=1000))
            assert "publish" in await talker.reply(1000)
            await listener.publication("room")
            push = f'{{"push":{{"channel":"room","pub":{{"data":{heard},{info},"offset":{offset}}}}}}}'
            assert push in talker.frames[-2:]
            assert listener.frames[-1] == push
            assert await plain.receive() == heard_plainly
        history = await listener.ask("history", channel="room", limit=-1)
        assert len(history["publications"]) == history["offset"] == len(SAID)
        everything = ",".join(
            f'{{"data":{heard},{info},"offset":{offset}}}' for offset, (_, heard, _) in enumerate(SAID.values(), 1)
        )
        assert f'"publications":[{everything}]' in listener.frames[-1]
        async with open_peer(server.port, f"/chat/room?history={len(SAID)}") as late:
            assert await late.receive_texts(len(SAID)) == [heard for _, _, heard in SAID.values()]


PLAIN: dict[str, tuple[str | bytes, object]] = {
    "text": ("hello", "hello"),
    "empty": ("", ""),
    "quotes": ("'\"\\", "'\"\\"),
    "control characters": ("".join(map(chr, range(32))) + "\x7f", "".join(map(chr, range(32))) + "\x7f"),
    "lines": ("a\nb\r\nc", "a\nb\r\nc"),
    "emoji": ("😀 é \u2028", "😀 é \u2028"),
    "text like JSON": ('{"a": 1}', '{"a": 1}'),
    "text like nothing": ("null", "null"),
    "bytes": (b"\x00\xff\n", {"b64": base64.b64encode(b"\x00\xff\n").decode()}),
    "no bytes": (b"", {"b64": ""}),
    "bytes that are text": (b"hello", {"b64": "aGVsbG8="}),
}


async def test_what_plain_clients_say() -> None:
    """Text is a string, and never anything else; bytes are in an object. One line each, whatever is in it."""
    async with (
        open_server() as server,
        open_structured(server.port) as client,
        open_peer(server.port, "/chat/room") as plain,
    ):
        await client.ask("subscribe", channel="room")
        for offset, (said, heard) in enumerate(PLAIN.values(), 1):
            await plain.send_frame(
                TEXT if isinstance(said, str) else BINARY, said if isinstance(said, bytes) else said.encode()
            )
            publication = await client.publication("room")
            assert publication["data"] == heard
            assert publication["offset"] == offset
            assert set(publication) == {"data", "offset", "info"}
            assert await plain.receive() == said
        history = await client.ask("history", channel="room", limit=-1)
        assert [publication["data"] for publication in history["publications"]] == [
            heard for _, heard in PLAIN.values()
        ]
