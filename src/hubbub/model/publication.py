"""What a room accepted, and where it stands in the room's order."""

import msgspec


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a room's order.

    Attributes:
        epoch: names one unbroken life of the room's history; a new epoch means that history was lost.
        offset: of the last publication at that place: 1, 2, 3, …; 0 before the first.
    """

    epoch: str
    offset: int


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One accepted publication.

    Attributes:
        room: the room's name.
        offset: its place in the room's order, from 1, plus 1 each (promise P1).
        data: the payload as it is sent on: UTF-8 text, or any bytes if `binary`.
        binary: whether the publisher sent it as a binary message.
        time: when it was accepted, in seconds of the node's clock (for its age only).
    """

    room: str
    offset: int
    data: bytes
    binary: bool
    time: float
