"""The plain dialect: every message goes verbatim to everyone in the room, the sender included.

It is the chat of the twenty-line tutorials, kept on purpose: `new WebSocket('ws://localhost:8000/chat')` with
`onmessage` and `send` is a complete client. Text stays text, binary stays binary. There is no envelope, so
there are no positions and no recovery: order, history on arrival, and an end with a code are what it has.

What a peer is told is the table below; 1xxx are the codes of RFC 6455 section 7.4.1.
"""

from collections.abc import Sequence

from hubbub.core.frames import BINARY, TEXT, encode_frame
from hubbub.model.command import Command, Publish
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Publication

DISCONNECTS = {
    End.MESSAGE_TOO_LARGE: Disconnect(1009, "message too large"),
    End.TOO_MANY_FRAGMENTS: Disconnect(1008, "message has too many fragments"),
    End.TOO_MANY_CONTROL_FRAMES: Disconnect(1008, "too many control frames"),
    End.TOO_FAST: Disconnect(1008, "too many messages"),
    End.NO_PONG: Disconnect(1011, "no pong"),
    End.SLOW_CONSUMER: Disconnect(1013, "slow consumer"),
    End.WRITE_STALL: Disconnect(1013, "slow consumer"),
    End.SHUTDOWN: Disconnect(1001, "server is shutting down"),
    End.ROOM_ENDED: Disconnect(1011, "room ended by an internal error"),
    End.INTERNAL_ERROR: Disconnect(1011, "internal error"),
}
"""Ends that aren't here leave nobody to tell, or are answered by trio-websocket (protocol errors, Close)."""


class PlainDialect:
    """Implements `hubbub.dialects.base.Dialect`."""

    name = "plain"

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the data as one frame, of the kind it came in."""
        return encode_frame(BINARY if publication.binary else TEXT, publication.data)

    def disconnect(self, end: End) -> Disconnect:
        """Return what the peer is told of this end."""
        return DISCONNECTS[end]


class PlainConversation:
    """One plain connection: it is in one room, and all that it says is published there."""

    __slots__ = ("room",)

    def __init__(self, room: str) -> None:
        self.room = room

    def receive(self, data: bytes, binary: bool) -> Sequence[Command]:
        """Return the one command that a message is: publish it."""
        return (Publish(self.room, data, binary),)
