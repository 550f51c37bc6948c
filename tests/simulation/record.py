"""What the world knows of a room: what the engine accepted and who came and went, in the order of the hub's steps.

Written down at the engine and at the table of rooms, and turned here into what each kind of client must see of it: by
other code than the dialects', so that a mistake there is seen.
"""

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from hubbub.config_types import Namespace
from hubbub.core.frames import BINARY, TEXT, encode_frame
from hubbub.model.publication import Kind, Member, Position, Publication

if TYPE_CHECKING:
    from simulation.client import Client


class Message(msgspec.Struct, frozen=True):
    """What a client says.

    Attributes:
        label: who said it first, and the how many-eth of its messages it is; it begins with that: "name:number:".
        key: its idempotency key, if it has one: then it may be said again.
    """

    label: str
    kind: Kind
    data: bytes
    key: str = ""


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a room, as structured clients are told of it: the line, and where it stands."""

    line: bytes
    position: Position | None = None  # None: a join or a leave


class Place(msgspec.Struct, frozen=True):
    """Where a message stands: in the room's order, and among everything that happened there."""

    position: Position
    index: int


class Moment(msgspec.Struct, frozen=True):
    """A room at the moment at which a structured client's command is carried out.

    Attributes:
        epoch, top: its position.
        stored: how many publications it still keeps.
        happened: how many events there were before.
        present: who was there.
        inside: whether the client was.
        gone: whether the client had been taken out of the hub for good.
    """

    epoch: str
    top: int
    stored: int
    happened: int
    present: Sequence[str]
    inside: bool
    gone: bool


class Room:
    """What happened in one room.

    Attributes:
        frames: what was accepted, in its order, each as the frame that plain clients get.
        events: the same as structured clients get it, with the joins and leaves in between.
        places: where the messages stand, by label.
        present: who is in it, by the name that others see.
        epochs: how many it has had.
    """

    def __init__(self, name: str, namespace: Namespace) -> None:
        self.name = name
        self.namespace = namespace
        self.frames: list[bytes] = []
        self.events: list[Event] = []
        self.places: dict[str, Place] = {}
        self.present: dict[str, Client] = {}
        self.epochs = 0
        self._epoch = ""
        self._base = 0  # where in `frames` the epoch begins
        self._times: list[float] = []
        self._publications: list[bytes] = []  # as JSON
        self._looked_at = 0.0  # when it was last published to, joined or read

    @property
    def top(self) -> int:
        """The offset of the last publication of this epoch."""
        return len(self.frames) - self._base

    @property
    def channel(self) -> bytes:
        """Its name, as pushes begin with it."""
        return b'{"push":{"channel":"%s",' % self.name.encode()

    def stored(self, now: float) -> int:
        """Return how many publications it must still keep."""
        bounds = self.namespace
        recent = self._times[self._base :][-bounds.history_size :] if bounds.history_size else []
        return sum(time >= now - bounds.history_seconds_max for time in recent)

    def total_at(self, position: Position) -> int:
        """Return how many publications, of all epochs, there were at a position of this one."""
        return self._base + position.offset

    def between(self, after: int, upto: int) -> list[object]:
        """Return the publications of this epoch with offsets above one and up to another, as clients see them."""
        lines = self._publications[self._base + after : self._base + upto]
        return [msgspec.json.decode(line) for line in lines]

    def look(self, epoch: str, now: float, empty: bool) -> str:
        """Note the epoch that the engine names, and whether nobody was there; return what is wrong with it."""
        idle, self._looked_at = now - self._looked_at, now
        if epoch == self._epoch:
            return ""
        allowed = not self.epochs or (empty and idle > self.namespace.history_meta_seconds_max)
        self.epochs += 1
        self._epoch, self._base = epoch, len(self.frames)
        return "" if allowed else f"a new epoch of {self.name} after {idle} s"

    def add(self, publication: Publication, label: str) -> str:
        """Add what the engine accepted; return what is wrong with it."""
        problem = self.look(publication.epoch, publication.time, not self.present)
        content = b'{"data":%s' % _json_of(publication)
        if publication.publisher is not None:
            content += b',"info":%s' % _info(publication.publisher)
        if self.namespace.history_size:
            content += b',"offset":%d' % (self.top + 1)
        content += b"}"
        if label in self.places:
            problem = f"{label} was accepted a second time"
        position = Position(self._epoch, self.top + 1)
        self.places.setdefault(label, Place(position, len(self.events)))
        self.frames.append(frame_of(publication))
        self.events.append(Event(self.channel + b'"pub":' + content + b"}}", position))
        self._publications.append(content)
        self._times.append(publication.time)
        if publication.offset != self.top:
            problem = f"offset {publication.offset} follows {self.top - 1}"
        return problem

    def enter(self, member: Member, client: "Client") -> str:
        """Add who joins; return what is wrong with it."""
        problem = f"{client.name} joined {self.name} twice" if member.client in self.present else ""
        self.present[member.client] = client
        self.events.append(Event(self.channel + b'"join":{"info":%s}}}' % _info(member)))
        return problem

    def leave(self, member: Member) -> None:
        """Remove who leaves."""
        del self.present[member.client]
        self.events.append(Event(self.channel + b'"leave":{"info":%s}}}' % _info(member)))


def label_of(publication: Publication) -> str:
    """Return the label of the message that a publication holds."""
    text = publication.data
    if publication.kind is Kind.JSON:
        value = json.loads(text)
        text = (value[0] if isinstance(value, list) else value).encode()
    return b":".join(text.split(b":", 2)[:2]).decode()


def _info(member: Member) -> bytes:
    return b'{"user":"%s","client":"%s"}' % (member.user.encode(), member.client.encode())


def frame_of(publication: Publication) -> bytes:
    """Return what plain clients get: a JSON string as what it says, all else as it is."""
    data = publication.data
    if publication.kind is Kind.JSON and isinstance(value := json.loads(data), str):
        data = value.encode()
    return encode_frame(BINARY if publication.kind is Kind.BINARY else TEXT, data)


def _json_of(publication: Publication) -> bytes:
    """Return what structured clients get: text as a JSON string, bytes in Base64."""
    match publication.kind:
        case Kind.JSON:
            return publication.data
        case Kind.TEXT:
            return json.dumps(publication.data.decode(), ensure_ascii=False).encode()
        case Kind.BINARY:
            return b'{"b64":"%s"}' % base64.b64encode(publication.data)
