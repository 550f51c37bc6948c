"""What is asked of the hub, and what it answers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from hubbub.model.publication import Position, Publication

if TYPE_CHECKING:
    from hubbub.model.subscriber import Subscriber

COMMAND_OVERHEAD_BYTES = 256
"""What a waiting command weighs besides its data, roughly: so that empty messages aren't free."""


class Subscribed(msgspec.Struct, frozen=True):
    """The subscription stands: everything after `position` will be offered, nothing at or before it.

    Attributes:
        position: the room's top at the moment of joining.
        publications: those asked for from history, oldest first, the last one at `position`.
    """

    position: Position
    publications: Sequence[Publication]


class Refused(msgspec.Struct, frozen=True):
    """The command wasn't carried out; `reason` is for people."""

    reason: str


class Publish(msgspec.Struct, frozen=True):
    """Put `data` into `room`."""

    room: str
    data: bytes
    binary: bool

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return len(self.data) + COMMAND_OVERHEAD_BYTES


class Subscribe(msgspec.Struct, frozen=True):
    """Add `subscriber` to `room`, with the last `history` publications in the reply.

    `reply` is called by the hub in the very step that joins: what it offers precedes every later
    publication of the room. It must not wait or raise.
    """

    subscriber: "Subscriber"
    room: str
    history: int
    reply: Callable[[Subscribed | Refused], None]

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return COMMAND_OVERHEAD_BYTES


Command: TypeAlias = Publish | Subscribe
