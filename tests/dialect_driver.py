"""A hub driven by hand, in the way in which `hubbub.hub.task` drives it, and clients that keep what is on their wires.

Each client notes beside it what must be there (`replies`, `story`, `own`): who knows that is `dialect_world`.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from hubbub.auth.access import Credentials
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.frames import FIN, OPCODE, TEXT
from hubbub.core.rooms import Rooms
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.dialects.centrifugo.dialect import CentrifugoDialect
from hubbub.dialects.plain import PlainConversation, PlainDialect
from hubbub.engines.memory import MemoryEngine
from hubbub.hub.state import Hub
from hubbub.model.command import Answer, Command, Publish, Refused, Subscribed
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Member
from hubbub.model.subscriber import Encoder, Loss
from known import Known, commands_of, nothing_is_asked
from outlets import OnlyOffers

Json: TypeAlias = dict[str, Any]
Frame: TypeAlias = tuple[int, bytes]

ROOMS = ("north", "loud:1", "mute:1", "tiny:1")
"""Joins for those who ask; for everyone; no history; hardly any, and recovery and presence only if asked and never."""
SECONDS, META_SECONDS, KEY_SECONDS = 10.0, 30.0, 12.0


def small_settings(**overrides: object) -> Settings:
    """Return limits that a short life meets."""
    ages = {"history_seconds_max": SECONDS, "history_meta_seconds_max": META_SECONDS}
    namespaces = {
        "loud": Namespace(history_size=8, join_leave=True, force_join_leave=True, **ages),  # type: ignore[arg-type]
        "mute": Namespace(history_size=0, join_leave=True, **ages),  # type: ignore[arg-type]
        "tiny": Namespace(history_size=2, force_recovery=False, presence=False, **ages),  # type: ignore[arg-type]
    }
    limits: dict[str, object] = {
        "history_size": 4,
        "insecure": True,  # permissions are another matter
        "join_leave": True,
        "recovery_publications_max": 3,
        "rooms_per_connection_max": 3,
        "idempotency_seconds_max": KEY_SECONDS,
        "idempotency_keys_max": 6,  # two of one user, strangers stop at three, users at five
        "idempotency_keys_total_max": 36,  # three of one user
        "namespaces": namespaces,
    }
    return Settings(**{**ages, **limits, **overrides})  # type: ignore[arg-type]


def split(data: bytes) -> list[Frame]:
    """Return a server's frames: opcode and payload."""
    frames: list[Frame] = []
    while data:
        assert data[0] & FIN
        start, length = 2, data[1]
        if length == 126:
            start, length = 4, int.from_bytes(data[2:4], "big")
        assert length < 65536, "short frames only"
        frames.append((data[0] & OPCODE, data[start : start + length]))
        data = data[start + length :]
    return frames


class Client:
    """A structured connection, to the hub what `hubbub.connection` makes of one, and what its peer reads."""

    def __init__(self, user: str, name: str, encoder: Encoder, settings: Settings) -> None:
        self.encoder = encoder
        self.member = Member(user, name)
        self.conversation = CentrifugoConversation(
            self, self.member, settings, Known(settings, user), nothing_is_asked, 0.0, native_pings=True
        )
        self.gone = self.left = False
        self.was_in: Mapping[str, bool] = {}
        self.outlet = OnlyOffers(self.offer)
        self.ended: End | None = None
        self.ids = itertools.count(1)
        self.room_of_id: dict[int, str] = {}
        self.draft: list[Json] = []  # commands of the frame that it hasn't sent yet
        self.wire: list[Json] = []
        # What the model says must have been added to the wire since it was last looked at:
        self.replies: list[Json] = []
        self.story: dict[str, list[Json]] = {}  # by room: pushes, and the replies that begin and end a subscription
        self.own: list[tuple[Json, Json]] = []  # pushes of its own publications, and the replies to them

    def offer(self, data: bytes, frames: int) -> None:
        assert not self.left, "it has left"
        found = split(data)
        assert len(found) == frames
        for opcode, payload in found if not self.gone else ():
            assert opcode == TEXT
            self.wire += [json.loads(line) for line in payload.split(b"\n")]

    def dismiss(self, disconnect: Disconnect) -> None:
        raise AssertionError

    def introduce(self, member: Member) -> bool:
        self.member = member
        return True

    def flush(self) -> None:
        if self.ended is None and (frame := self.conversation.replies()):
            self.offer(frame, 1)

    def lose(self, room: str, loss: Loss) -> None:
        self.flush()
        told = self.conversation.lose(room, loss)
        assert isinstance(told, bytes)
        self.offer(told, 1)

    def evict(self, end: End, detail: str = "") -> None:
        self.flush()
        self.ended = end

    def ask(self, method: str, **body: Any) -> Json:
        """Add a command to the frame that it will send; return it."""
        self.draft.append({"id": next(self.ids), method: body})
        self.room_of_id[self.draft[-1]["id"]] = body.get("channel", "")
        return self.draft[-1]

    def send(self) -> list[tuple[Command, Json]]:
        """Send the frame; return what the conversation makes of it, beside what was asked."""
        asked, self.draft = self.draft, []
        if not asked:
            return []
        frame = "\n".join(map(json.dumps, asked)).encode()
        return list(zip(commands_of(self.conversation.receive(frame, False)), asked, strict=True))

    def check(self) -> None:
        """What was read is what must have been; as far as it goes, if the client has gone meanwhile."""
        read = [essence(item) for item in self.wire]
        replies = [item for item in read if "id" in item]
        assert replies == (self.replies[: len(replies)] if self.gone else self.replies)
        for room in {self.room_of(item) for item in read} | set(self.story):
            if room:
                story, must = [item for item in read if self.room_of(item) == room], self.story.get(room, [])
                assert story == (must[: len(story)] if self.gone else must), room
        for push, reply in self.own:
            assert reply not in read or push in read[: read.index(reply)], "P4: first the push, then the ack"
        self.wire, self.replies, self.story, self.own = [], [], {}, []

    def room_of(self, item: Json) -> str:
        """Return the room whose story this is part of; "" if it is a mere answer."""
        if "push" in item:
            room: str = item["push"]["channel"]
            return room
        return self.room_of_id[item["id"]] if "subscribe" in item or "unsubscribe" in item else ""


def essence(item: Json) -> Json:
    """Return what is promised of a reply or push: an error's code, not its text."""
    if "error" in item:
        return {"id": item["id"], "error": item["error"]["code"]}
    if "connect" in item:
        return {"id": item["id"], "connect": {"client": item["connect"]["client"]}}
    return item


class PlainClient:
    """A plain connection: one room, and frames as they are."""

    def __init__(self, name: str, encoder: Encoder, room: str, history: int) -> None:
        self.encoder = encoder
        self.member = Member("", name)
        self.conversation = PlainConversation(self, self.member, Credentials(), room, history, nothing_is_asked)
        self.room = room
        self.history = history
        self.gone = self.left = self.opened = False
        self.was_in: Mapping[str, bool] = {}
        self.outlet = OnlyOffers(self.offer)
        self.ended: End | None = None
        self.wire: list[Frame] = []
        self.story: list[Frame] = []

    def offer(self, data: bytes, frames: int) -> None:
        assert not self.left, "it has left"
        found = split(data)
        assert len(found) == frames
        if not self.gone:
            self.wire += found

    def reply(self, answer: Answer) -> None:
        """Begin with history, as `Connection` does."""
        self.opened = isinstance(answer, Subscribed)
        if isinstance(answer, Subscribed):
            self.offer(b"".join(map(self.encoder.encode_publication, answer.publications)), len(answer.publications))
        else:
            assert isinstance(answer, Refused)
            assert self.gone

    def dismiss(self, disconnect: Disconnect) -> None:
        raise AssertionError

    def introduce(self, member: Member) -> bool:
        self.member = member
        return True

    def flush(self) -> None:
        pass

    def lose(self, room: str, loss: Loss) -> None:
        self.evict(self.conversation.lose(room, loss))

    def evict(self, end: End, detail: str = "") -> None:
        self.ended = end

    def check(self) -> None:
        """What was read is what must have been; as far as it goes, if the client has gone meanwhile."""
        read, self.wire = self.wire, []
        must, self.story = self.story, []
        assert read == (must[: len(read)] if self.gone else must)


class Driver:
    """A hub, and passes made by hand, as `hubbub.hub.task` makes them."""

    def __init__(self, settings: Settings) -> None:
        self.limits = settings
        self.now = 0.0
        self.room = ""  # where the command that is being carried out is
        self.rooms = Rooms()
        self.engine = MemoryEngine(settings, self.new_epoch, self.rooms.__contains__)
        self.hub = Hub(self.engine, self.rooms, settings)
        self.structured = CentrifugoDialect()
        self.plain = PlainDialect()
        self.epochs = itertools.count(1)
        self.names = itertools.count(1)

    def new_epoch(self) -> str:
        return f"epoch {next(self.epochs)}"

    def connect(self, user: str = "") -> Client:
        """Return a client whose frame begins with `connect`."""
        client = Client(user, f"client {next(self.names)}", self.structured, self.limits)
        client.ask("connect")
        return client

    def connect_plain(self, room: str, history: int = 0) -> PlainClient:
        """Return a plain client, not in its room yet."""
        return PlainClient(f"plain {next(self.names)}", self.plain, room, history)

    def open_plain(self, client: PlainClient) -> None:
        """Let a plain client join its room."""
        (command,) = commands_of(client.conversation.opening(client.reply))
        self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        if isinstance(command, Publish):
            self.hub.publish(command, self.now)
        else:
            if self.hub.comes_after_what_waits(command):
                self.hand_out_all()
            self.hub.carry_out(command, self.now)

    def carry_out_all(self, client: Client) -> None:
        """Send the client's frame, and make one pass of it."""
        for command, _ in client.send():
            self.carry_out(command)
        self.hand_out_all()

    def hand_out(self, room: str) -> None:
        for delivery in self.hub.take(room):
            for outlet in delivery.outlets:
                outlet.offer(delivery.data, delivery.frames)

    def hand_out_all(self) -> None:
        for room in self.hub.waiting():
            self.hand_out(room)
        for subscriber in self.hub.take_answered():
            subscriber.flush()
