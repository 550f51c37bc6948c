"""What the hub knows of a connection: no more than this."""

import enum
from collections.abc import Callable, Mapping
from typing import Protocol

from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Member, Presence, Publication


class Loss(enum.Enum):
    """Why a subscription ends that its subscriber hasn't ended."""

    GAP = "gap"  # a publication is missing: what follows wouldn't be in order
    ROOM_ENDED = "room_ended"  # an exception in the room's step
    REMOVED = "removed"  # by the server, for its back end


class Encoder(Protocol):
    """How one dialect writes what happens in a room. Subscribers that share an encoder share the bytes."""

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the complete WebSocket frame of one publication. Pure."""
        ...

    def encode_presence(self, presence: Presence) -> bytes:
        """Return the complete WebSocket frame of a join or a leave. Pure."""
        ...


class Outlet(Protocol):
    """The way to one peer.

    Attributes:
        direct: while nothing waits: sends what the peer takes at this moment and returns how much that was, or raises
            what the system says, as a non-blocking socket's `send`. None: only `offer` will do.
        bytes_sent: whoever sends directly adds to it.
    """

    direct: Callable[[bytes], int] | None
    bytes_sent: int

    def offer(self, data: bytes, frames: int) -> None:
        """Take complete frames to be sent, `frames` of them. Never waits, never raises.

        An outlet that is ending does nothing with them; that of a peer that can't keep up ends the connection.
        """
        ...

    def go_on(self, data: bytes, frames: int, sent: int) -> None:
        """Send the rest of a piece of which so much was sent directly, and nothing before it. Never waits or raises."""
        ...


class Subscriber(Protocol):
    """One connection as the hub sees it. Hashed and compared by identity.

    Attributes:
        was_in: the rooms in which it was when it left the hub, each with whether by a token; kept for the hub.
    """

    was_in: Mapping[str, bool]

    @property
    def outlet(self) -> Outlet:
        """Where what it is sent goes in. Always the same."""
        ...

    @property
    def encoder(self) -> Encoder:
        """The dialect that it speaks."""
        ...

    @property
    def gone(self) -> bool:
        """Whether it has said that it leaves; a command of its that comes later must not bring it back."""
        ...

    @property
    def member(self) -> Member:
        """How others see it."""
        ...

    def introduce(self, member: Member) -> bool:
        """Be seen like this by others, from now on; the user is the same once it has joined a room.

        False if there is one too many of that user: then it ends.
        """
        ...

    def flush(self) -> None:
        """Send the replies that have been given since the last call, in one piece. Never waits, never raises."""
        ...

    def lose(self, room: str, loss: Loss) -> None:
        """Learn that it isn't in the room any more, though it hasn't asked for that. Never waits, never raises."""
        ...

    def dismiss(self, disconnect: Disconnect) -> None:
        """As `evict`, with what the back end wants the peer to be told. Never waits, never raises."""
        ...

    def evict(self, end: End, detail: str = "") -> None:
        """End the connection, without waiting for it to be over; `detail` says more than `end`. Never raises."""
        ...
