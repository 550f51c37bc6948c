"""Structured clients of a simulated world: they know where they are, and come back for what they have missed.

A `Person` is one after the other of them: what one has learned, the next one returns with. Whatever a client is sent
is compared, byte for byte or member for member, with what the world's record says that it must be: what it says itself
is only the question.

    asked     what it has asked, in order; answers must come in that order (rule 1 of the conversation)
    moments   what was true in the room when the hub carried the question out, noted by the world
"""

import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hubbub import __version__
from hubbub.core.frames import BINARY, FIN, TEXT, encode_frame
from hubbub.dialects.centrifugo.conversation import NATIVE_PING_FRAME, PING_FRAME
from hubbub.model.publication import Kind, Position
from simulation.client import Choices, Client
from simulation.record import Event, Message, Moment, Room

if TYPE_CHECKING:
    from simulation.world import World

FRAME_BYTES = 3800
"""As much as goes into one frame, of the 4096 bytes that a message may have."""

REJECT_UNRECOVERED = 2
OTHER_EPOCH = "0123456789abcdef"

LINE_START = b'{"push":{"channel":'


class Person:
    """Who is one structured client after the other.

    Attributes:
        positions: where it is in each room, by the last that it has heard of it.
        unanswered: its messages with a key whose reply it hasn't seen, and their rooms.
        rooms: where it goes, or was last.
    """

    def __init__(self) -> None:
        self.positions: dict[str, Position] = {}
        self.unanswered: dict[str, tuple[Room, Message]] = {}
        self.rooms: list[Room] = []


class Asked(msgspec.Struct, frozen=True):
    """A command on its way.

    Attributes:
        body: what was asked.
        room: where; None if it isn't about a room.
        message: what is to be published.
        error: the code that it must be refused with, known beforehand; 0: that depends on what the hub finds.
    """

    number: int
    method: str
    body: dict[str, object]
    room: Room | None = None
    message: Message | None = None
    error: int = 0


class Subscription:
    """That a client is in a room: from the reply that says so to the one that says it isn't.

    Attributes:
        at: how much of what happens there it has been told, or needn't be told.
    """

    def __init__(self, room: Room, at: int, watches: bool) -> None:
        self.room = room
        self.watches = watches
        self.last = -1  # the index of the last event that it was told
        self._at = at

    @property
    def at(self) -> int:
        """The index of the next event that it must be told; how many there are if it has been told of all."""
        while self._at < len(self.room.events) and not self._is_told(self.room.events[self._at]):
            self._at += 1
        return self._at

    @property
    def due(self) -> Event | None:
        """The next event that it must be told."""
        at = self.at
        return self.room.events[at] if at < len(self.room.events) else None

    def take(self) -> None:
        """Count the next event as told."""
        self.last = self.at
        self._at = self.last + 1

    def _is_told(self, event: Event) -> bool:
        return self.watches or event.position is not None


class StructuredClient(Client):
    """A structured client.

    Attributes:
        person: whose memory it has.
        rooms: where it goes.
        subscriptions: where it is, by room.
        moments: see above.
    """

    codes = {  # noqa: RUF012
        "peer_closed": {1000},
        "protocol_error": {1002, 1007},
        "message_too_large": {1009},
        "too_many_fragments": {3501},
        "too_many_control_frames": {3013},
        "bad_request": {3501},
        "invalid_token": {3500},
        "stale": {3502},
        "wrong_format": {3506},
        "not_available": {3508},
        "no_pong": {3012},
        "slow_consumer": {3008},
        "write_stall": set[int](),
        "peer_left": set[int](),
        "peer_reset": set[int](),
        "shutdown": {3001},
    }

    def __init__(self, world: "World", name: str, person: Person, rng: random.Random) -> None:
        super().__init__(world, name, rng)
        self.person = person
        self.rooms = person.rooms
        self.subscriptions: dict[str, Subscription] = {}
        self.moments: deque[Moment] = deque()
        self._asked: deque[Asked] = deque()
        self._number = rng.randint(0, 1000)
        self._wanted: set[str] = set()  # where it will be, by its own commands
        self._native_pings = rng.random() < 0.15
        self._hasty = ""  # what it was told to have published before it heard it itself

    @property
    def path(self) -> str:  # type: ignore[override]
        """The dialect's address, and which pings it wants."""
        return "/connection/websocket" + ("?cf_ws_frame_ping_pong=true" if self._native_pings else "")

    @property
    def joined(self) -> bool:  # type: ignore[override]
        """Whether the hub has heard of it."""
        return bool(self.member)

    def arrears(self) -> str:
        """Return what it must still see."""
        if self._asked:
            return f"has no answer to {self._asked[0]}"
        if self._hasty:
            return f"was told of {self._hasty} before it saw it"
        behind = [name for name, subscription in self.subscriptions.items() if subscription.due is not None]
        return f"hasn't seen all of {behind}" if behind else ""

    # -- its commands, each as a line

    def _ask(
        self,
        method: str,
        body: dict[str, object],
        room: Room | None = None,
        message: Message | None = None,
        error: int = 0,
    ) -> bytes:
        self._number += 1
        if room is not None:
            body = {"channel": room.name, **body}
        self._asked.append(Asked(self._number, method, body, room, message, error))
        return msgspec.json.encode({"id": self._number, method: body})

    def _connecting(self) -> list[bytes]:
        """Return its first commands: connect, say again what has no answer yet, come back to its rooms."""
        person = self.person
        lines = [self._ask("connect", {"name": "simulated"})]
        joins_first = self.rng.random() < 0.5
        if joins_first:
            lines += [self._subscribing(room) for room in self.rooms]
        if person.unanswered:
            self.do("retry")
            lines += [self._saying_again(label) for label in list(person.unanswered)]
        if not joins_first:
            lines += [self._subscribing(room) for room in self.rooms]
        return lines

    def _subscribing(self, room: Room) -> bytes:
        """Return a subscribe, mostly from where it was last; sometimes from where it can't have been."""
        rng = self.rng
        body: dict[str, object] = {}
        if rng.random() < 0.7:
            body["join_leave"] = True
        if rng.random() < 0.2:
            body["flag"] = REJECT_UNRECOVERED
        position = self.person.positions.get(room.name)
        kind = rng.random()
        if position is not None and kind < 0.7:
            body |= {"recover": True, "epoch": position.epoch, "offset": position.offset}
        elif position is not None and kind < 0.85:
            offset = max(0, position.offset + rng.choice([-3, -1, 0, 0, 1, 4]))
            epoch = rng.choice([position.epoch, OTHER_EPOCH, OTHER_EPOCH, ""])
            body |= {"recover": True, "epoch": epoch, "offset": offset}
        elif kind < 0.9:
            body |= {"recover": True}
        self._wanted.add(room.name)
        return self._ask("subscribe", body, room)

    def _unsubscribing(self, room: Room) -> bytes:
        self._wanted.discard(room.name)
        return self._ask("unsubscribe", {}, room)

    def _saying(self) -> bytes:
        """Return the publish of its next message: a JSON string or a list of one, with a key or without."""
        rng = self.rng
        room = rng.choice(self.rooms)
        size = rng.choice([rng.randint(0, 100), rng.randint(0, 100), rng.randint(100, 1000), rng.randint(1000, 3000)])
        label = f"{self.name}:{len(self.attempted)}"
        filler = rng.choice(["x", "y", "ü", "\n"])
        text = f"{label}:" + filler * (size // len(filler.encode()) // (1 if filler != "\n" else 2))
        data = json.dumps(text, ensure_ascii=size < 100 and rng.random() < 0.5).encode()
        if rng.random() < 0.1:
            data = b"[%s]" % data
        key = f"key of {label}" if rng.random() < 0.5 else ""
        message = Message(label, Kind.JSON, data, key)
        self.attempted.append(message)
        if key:
            self.person.unanswered[label] = room, message
        return self._publishing(room, message)

    def _saying_again(self, label: str) -> bytes:
        return self._publishing(*self.person.unanswered[label])

    def _publishing(self, room: Room, message: Message) -> bytes:
        space = b" " if self.rng.random() < 0.1 else b""
        self.sent.append((room, message))
        body: dict[str, object] = {
            "data": msgspec.Raw(space + message.data.replace(b"[", b"[ ") if space else message.data)
        }
        if message.key:
            body["idempotency_key"] = message.key
        return self._ask("publish", body, room, message)

    def _reading_history(self) -> bytes:
        rng = self.rng
        room = rng.choice(self.rooms)
        body: dict[str, object] = {"limit": rng.choice([0, 1, 4, 300, -1]), "reverse": rng.random() < 0.3}
        position = self.person.positions.get(room.name)
        error = 0
        if position is not None and rng.random() < 0.5:
            offset = max(0, position.offset + rng.choice([-5, -1, 0, 2]))
            body["since"] = {"offset": offset, "epoch": rng.choice([position.epoch, position.epoch, OTHER_EPOCH, ""])}
            error = 107 if body["reverse"] and not offset else 0
        return self._ask("history", body, room, error=error)

    def _other(self) -> bytes:
        """Return a command that is about who is there, or refused."""
        kind = self.rng.random()
        if kind < 0.3:
            return self._ask("presence", {}, self.rng.choice(self.rooms))
        if kind < 0.6:
            return self._ask("presence_stats", {}, self.rng.choice(self.rooms))
        refused: list[tuple[str, dict[str, object], int]] = [
            ("rpc", {"method": "none"}, 108),
            ("ping", {}, 108),
            ("subscribe", {"channel": "nowhere:room"}, 102),
            ("publish", {"channel": "nowhere:room", "data": 1}, 102),
            ("subscribe", {"channel": "x" * 256}, 107),
            ("publish", {"channel": self.rooms[0].name}, 107),
            ("sub_refresh", {"channel": self.rooms[0].name, "token": "none"}, 103),
        ]
        method, body, error = self.rng.choice(refused)
        return self._ask(method, body, error=error)

    def _anything(self) -> Iterator[bytes]:
        """Return some commands that could come at any time."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            yield self._saying()
        elif kind < 0.65:
            yield self._reading_history()
        elif kind < 0.8:
            yield self._other()
        elif kind < 0.9 and self.person.unanswered:
            yield self._saying_again(rng.choice(list(self.person.unanswered)))
        else:
            room = rng.choice(self.rooms)
            if room.name in self._wanted and rng.random() < 0.9:
                if rng.random() < 0.5:
                    yield self._saying()
                yield self._unsubscribing(room)
                if rng.random() < 0.3:
                    yield self._saying()
            if rng.random() < 0.8:
                yield self._subscribing(room)  # also where it is already, sometimes

    # -- what it does

    async def connect(self, good: bool) -> bool:
        """Shake hands and introduce itself: at once, right behind the handshake, or, if it isn't good, never."""
        if self.rng.random() < 0.2:
            self.do("early commands")
            return await self.shake_hands(self._packed(self._connecting()))
        if not await self.shake_hands():
            return False
        if not good and self.rng.random() < 0.05:
            self.do("no introduction", fault=True)
            await self.until_served()
        else:
            await self.write(self._packed(self._connecting()))
        return True

    def harmless(self) -> Choices:
        """Return what also a good client does."""
        return [
            (6, self.publish),
            (2, self.publish_burst),
            (1, self.publish_fragmented),
            (0.5, self.send_ping),
            (3, self.publish_mixture),
            (1, self.come_or_go),
            (1, self.look_around),
            (1, self.repeat),
        ]

    def harmful(self) -> Choices:
        """Return what may cost it its connection."""
        return [*super().harmful(), (0.4, self.talk_nonsense)]

    def message(self, *, fragments: int = 1) -> bytes:
        """Return the next message."""
        return self.frames(TEXT, self._saying(), fragments)

    def some(self) -> bytes:
        """Return some commands and pings."""
        lines = [line for _ in range(self.rng.randint(1, 5)) for line in self._anything()]
        pings = self.ping() if self.rng.random() < 0.3 else b""
        return pings + self._packed(lines)

    async def come_or_go(self) -> None:
        """Unsubscribe, or subscribe if it isn't there: also where it waits for the answer to have come."""
        room = self.rng.choice(self.rooms)
        if room.name in self._wanted:
            self.do("go")
            line = self._unsubscribing(room)
        else:
            self.do("come")
            line = self._subscribing(room)
        await self.write(self.frame(TEXT, line))

    async def look_around(self) -> None:
        """Read history, or ask who is there."""
        self.do("look around")
        await self.write(self.frame(TEXT, self._reading_history() if self.rng.random() < 0.7 else self._other()))

    async def repeat(self) -> None:
        """Say something with a key twice."""
        self.do("repeat")
        lines = [self._saying()]
        if self.person.unanswered:
            lines.append(self._saying_again(next(reversed(self.person.unanswered))))
        await self.write(self._packed(lines))

    async def talk_nonsense(self) -> None:
        """Send what this dialect doesn't allow, between commands that it does."""
        self.do("nonsense", fault=True)
        number = self._number + 1000
        nonsense = [
            self.frame(BINARY, b"{}"),
            self.frame(TEXT, b""),
            self.frame(TEXT, b'{"id":%d,"publish":{"channel":' % number),
            self.frame(TEXT, b'{"id":%d,"publish":{"channel":"","data":1}}' % number),
            self.frame(TEXT, b'{"publish":{"channel":"room0","data":1}}'),
            self.frame(TEXT, b'{"id":%d,"connect":{}}' % number),
            self.frame(TEXT, b'{"id":%d,"shout":{}}' % number),
            self.frame(TEXT, b'{"id":%d,"refresh":{"token":"none"}}' % number),
            self.frame(TEXT, b'{"send":{"data":1}}'),
            self.frame(TEXT, b"{}\n{}\n{}\n{}"),
            self.frame(TEXT, b"{}\n" * 1100),
        ]
        await self.write(self.some() + self.rng.choice(nonsense) + self.some())
        await self.until_served()

    def _packed(self, lines: Sequence[bytes]) -> bytes:
        """Return the commands in few frames, or each in its own."""
        frames: list[list[bytes]] = [[]]
        apart = self.rng.random() < 0.4
        for line in lines:
            if frames[-1] and (apart or sum(map(len, frames[-1])) + len(frames[-1]) + len(line) > FRAME_BYTES):
                frames.append([])
            frames[-1].append(line)
        return b"".join(self.frame(TEXT, b"\n".join(some)) for some in frames if some)

    # -- what it is sent

    def _take_data(self, opcode: int, payload: bytes) -> None:
        assert opcode == TEXT, f"{self.name} got a binary frame"
        for line in payload.split(b"\n"):
            if line.startswith(LINE_START):
                self._take_push(line)
            elif line == b"{}":
                assert not self._native_pings, f"{self.name} got a ping that it didn't ask for"
                if not self.muted:
                    self.world.nursery.start_soon(self.write, self.frame(TEXT, b"{}"))
            else:
                self._take_reply(msgspec.json.decode(line, type=dict[str, object]))

    def _take_push(self, line: bytes) -> None:
        room = str(msgspec.json.decode(line)["push"]["channel"])
        subscription = self.subscriptions.get(room)
        assert subscription is not None, f"{self.name} got {line[:80]!r} of a room that it isn't in"
        due = subscription.due
        assert due is not None, f"{self.name} got {line[:80]!r} beyond the room's top"
        assert line == due.line, (
            f"{self.name} got {line[:80]!r}…{line[-40:]!r}, expected {due.line[:80]!r}…{due.line[-40:]!r}"
        )
        self.note(f"saw {subscription.at + 1} of {room}")
        subscription.take()
        if due.position is not None:
            self._learn(subscription.room, due.position)

    def _take_reply(self, reply: dict[str, object]) -> None:
        assert self._asked, f"{self.name} got {reply}, and hasn't asked"
        asked = self._asked.popleft()
        assert reply.pop("id") == asked.number, f"{self.name} got {reply} when the answer to {asked} was due"
        about = f"{self.name} asked {asked.number} {asked.method} {str(asked.body)[:100]}"
        self.note(f"answered {asked.number} {asked.method} {list(reply)}")
        expected = self._expected(asked)
        if isinstance(expected, int):
            error = reply.get("error")
            assert isinstance(error, dict), f"{about}, got {str(reply)[:300]}, expected error {expected}"
            assert error["code"] == expected, f"{about}, got {error}, expected error {expected}"
            self.world.counts[f"error {expected}"] += 1
            if expected == 112 and asked.method == "subscribe" and asked.room is not None:
                self._wanted.discard(asked.room.name)
                self.person.positions.pop(asked.room.name, None)
        else:
            assert reply == {asked.method: expected}, f"{about}, got {str(reply)[:300]}, expected {str(expected)[:300]}"

    def _learn(self, room: Room, position: Position) -> None:
        if room.namespace.history_size:
            self.person.positions[room.name] = position

    # -- what it must be answered: an error's code, or the result; and what follows from that

    def _expected(self, asked: Asked) -> int | dict[str, object]:
        if asked.error:
            return asked.error
        if asked.method == "connect":
            beats = {} if self._native_pings else {"ping": round(self.world.settings.ping_seconds), "pong": True}
            return {"client": self.member, "version": __version__, **beats}
        assert asked.room is not None
        if asked.message is not None:
            return self._expected_publish(asked.room, asked.message)
        assert self.moments, f"{self.name} was answered {asked} before the hub knew of it"
        moment = self.moments.popleft()
        match asked.method:
            case "subscribe":
                return self._expected_subscribe(asked.room, asked.body, moment)
            case "unsubscribe":
                return self._expected_unsubscribe(asked.room, moment)
            case "history":
                return self._expected_history(asked.room, asked.body, moment)
            case "presence":
                return {"presence": {member: {"user": "", "client": member} for member in moment.present}}
        assert asked.method == "presence_stats"
        return {"num_clients": len(moment.present), "num_users": min(1, len(moment.present))}

    def _expected_publish(self, room: Room, message: Message) -> dict[str, object]:
        """What is acknowledged stands in the record, there; and whoever is in the room has seen it itself (P4)."""
        self.person.unanswered.pop(message.label, None)
        place = room.places.get(message.label)
        assert place is not None, f"{self.name} was told that {message.label} is published, and it isn't"
        subscription = self.subscriptions.get(room.name)
        if subscription is not None and subscription.at <= place.index:
            self._hasty = message.label  # what was answered when a connection ends is sent first: only then
        if not room.namespace.history_size:
            return {}
        return {"offset": place.position.offset, "epoch": place.position.epoch}

    def _expected_subscribe(self, room: Room, body: dict[str, object], moment: Moment) -> int | dict[str, object]:
        """Exactly what was missed, if it is still stored and was in this epoch (P5)."""
        if moment.gone:
            return 100
        if moment.inside:
            return 105
        kept, offset = bool(room.namespace.history_size), body.get("offset", 0)
        assert isinstance(offset, int)
        missed = moment.top - offset
        possible = min(moment.stored, self.world.settings.recovery_publications_max)
        recovers = bool(body.get("recover"))
        recovered = kept and recovers and body.get("epoch", "") in ("", moment.epoch) and 0 <= missed <= possible
        if recovers and not recovered and body.get("flag"):
            return 112
        result: dict[str, object] = {}
        if kept:
            result |= {"recoverable": True, "positioned": True, "epoch": moment.epoch, "offset": moment.top}
        if recovers:
            result["was_recovering"] = True
            self.world.counts["recovered" if recovered else "not recovered"] += 1
            self.world.counts["another epoch"] += body.get("epoch") not in (None, "", OTHER_EPOCH, moment.epoch)
        if recovered:
            result |= {"recovered": True, "offset": offset}
            if missed:
                self.world.counts["missed"] += missed
                result["publications"] = room.between(offset, moment.top)
        watches = room.namespace.join_leave and bool(body.get("join_leave"))
        self.subscriptions[room.name] = Subscription(room, moment.happened, watches)
        self._learn(room, Position(moment.epoch, moment.top))
        return result

    def _expected_unsubscribe(self, room: Room, moment: Moment) -> dict[str, object]:
        """It has seen everything up to here, and sees no more."""
        subscription = self.subscriptions.pop(room.name, None)
        assert (subscription is not None) == moment.inside, f"{self.name} left {room.name}: {moment}"
        if subscription is not None:
            saw = f"{self.name} left {room.name} after {moment.happened}, and saw"
            assert subscription.at >= moment.happened, f"{saw} {subscription.at}"
            assert subscription.last < moment.happened, f"{saw} {subscription.last + 1}"
        return {}

    def _expected_history(self, room: Room, body: dict[str, object], moment: Moment) -> int | dict[str, object]:
        if not room.namespace.history_size:
            return 108
        since = body.get("since")
        assert since is None or isinstance(since, dict)
        if since is not None and since["epoch"] not in ("", moment.epoch):
            return 112
        limit, most = body["limit"], self.world.settings.recovery_publications_max
        assert isinstance(limit, int)
        first, last = moment.top - moment.stored, moment.top  # stored are the offsets first + 1 to last
        if since is not None and body["reverse"]:
            last = max(first, min(last, since["offset"] - 1))
        elif since is not None:
            first = min(last, max(first, since["offset"]))
        count = min(most if limit < 0 else min(limit, most), last - first)
        found = room.between(last - count, last)[::-1] if body["reverse"] else room.between(first, first + count)
        return {"publications": found, "epoch": moment.epoch, "offset": moment.top}

    def _is_due(self, rest: bytes) -> bool:
        """A ping, the next push of one of its rooms, or the answer to what it has asked first."""
        ping = NATIVE_PING_FRAME if self._native_pings else PING_FRAME
        dues = [subscription.due for subscription in self.subscriptions.values()]
        frames = [ping, *(encode_frame(TEXT, due.line) for due in dues if due is not None)]
        if self._asked and rest[0] == FIN | TEXT:
            start = {126: 4, 127: 10}.get(rest[1] if len(rest) > 1 else 0, 2)
            answer = b'{"id":%d,' % self._asked[0].number
            if rest[start:].startswith(answer) or answer.startswith(rest[start:]):
                return True
        return any(frame.startswith(rest) for frame in frames)
