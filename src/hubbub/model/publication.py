"""What a room accepted, and where it stands in the room's order."""

import base64
import enum
from collections.abc import Mapping

import msgspec


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a room's order.

    Attributes:
        epoch: names one unbroken life of the room's history; a new epoch means that history was lost.
        offset: of the last publication at that place: 1, 2, 3, …; 0 before the first.
    """

    epoch: str
    offset: int


class Kind(enum.Enum):
    """What the bytes of a publication are."""

    TEXT = "text"  # UTF-8
    BINARY = "binary"  # any bytes
    JSON = "json"  # one JSON value without insignificant white space, in UTF-8


class Member(msgspec.Struct, frozen=True, gc=False):
    """One connection as others in its rooms see it; one user may be many members.

    Attributes:
        user: the authenticated identity; "" for anonymous.
        client: this connection's own name, a UUID.
        info: JSON about the user, for all rooms; b"" for none.
        room_info: likewise, for one room.
    """

    user: str
    client: str
    info: bytes = b""
    room_info: bytes = b""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One accepted publication.

    Attributes:
        room: the room's name.
        epoch: in which its offset counts.
        offset: its place in the room's order, from 1, plus 1 each (promise P1).
        data: the payload.
        kind: what the payload is.
        time: when it was accepted, in seconds of the node's clock (for its age only).
        stored: whether the room keeps a history: only then is the offset told to clients.
        publisher: the member that said it; None for the server's own.
        tags: for clients that have words for them.
    """

    room: str
    epoch: str
    offset: int
    data: bytes
    kind: Kind
    time: float
    stored: bool = True
    publisher: Member | None = None
    tags: Mapping[str, str] | None = None

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.epoch, self.offset)


class Passing(Publication, frozen=True, gc=False):
    """A publication that isn't kept where others are: it has no place of its own, but the one before's."""


class Presence(msgspec.Struct, frozen=True, gc=False):
    """A member has joined a room, or left it."""

    room: str
    member: Member
    joined: bool


def encode_as_json(data: bytes, kind: Kind) -> bytes:
    """Return a payload as JSON: text as a string, binary as {"b64": …}."""
    match kind:
        case Kind.JSON:
            return data
        case Kind.TEXT:
            return msgspec.json.encode(data.decode())
    return b'{"b64":"' + base64.b64encode(data) + b'"}'
