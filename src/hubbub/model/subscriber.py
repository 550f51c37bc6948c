"""What the hub knows of a connection: no more than this."""

from typing import Protocol

from hubbub.model.end import End
from hubbub.model.publication import Publication


class Encoder(Protocol):
    """How one dialect writes a publication. Subscribers that share an encoder share the bytes."""

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the complete WebSocket frames of one publication. Pure."""
        ...


class Subscriber(Protocol):
    """One connection as the hub sees it. Hashed and compared by identity."""

    @property
    def encoder(self) -> Encoder:
        """The dialect that it speaks."""
        ...

    @property
    def gone(self) -> bool:
        """Whether it has said that it leaves; a command of its that comes later must not bring it back."""
        ...

    def offer(self, data: bytes, frames: int) -> None:
        """Take complete frames to be sent, `frames` of them. Never waits, never raises.

        A subscriber that is ending does nothing with them; one that can't keep up ends itself.
        """
        ...

    def evict(self, end: End) -> None:
        """End the connection, without waiting for it to be over. Never raises."""
        ...
