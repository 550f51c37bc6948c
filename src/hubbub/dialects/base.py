"""What a dialect owes the rest of hubbub."""

from collections.abc import Sequence
from typing import Protocol

from hubbub.model.command import Command
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Publication


class Dialect(Protocol):
    """One wire language. One instance serves all its connections: it is the `Encoder` they share."""

    name: str

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the complete WebSocket frames of one publication."""
        ...

    def disconnect(self, end: End) -> Disconnect:
        """Return what the peer is told of this end; only asked for ends in which it is ours to tell."""
        ...


class Conversation(Protocol):
    """One connection's side of a dialect: what the peer's messages ask for, in their order."""

    def receive(self, data: bytes, binary: bool) -> Sequence[Command]:
        """Return the commands of one message. An exception is a bug here, never the peer's doing."""
        ...
