"""The engine's contract.

Owed by every engine:
1. Order is decided here: `append` gives each publication of a room the next offset (P1).
2. Offset and history change together: nobody ever sees one without the other (P4).
3. A slice and the top position come from the same moment; a slice has no hole and nothing that is too old (P5).
4. Offsets are never reused under one epoch; when history is lost, the epoch is new (P5).
5. What an ack means is stated. Memory: the publication is in the room's history; it doesn't outlive the process.

The memory engine never waits, so the hub calls it inside its own step. An engine that waits gets a task and
an inbox of its own, and hands what it accepted back to the hub.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from hubbub.model.publication import Kind, Member, Position, Publication


class Slice(msgspec.Struct, frozen=True):
    """Publications of one room and the room's top at the same moment; oldest first, unless read in reverse."""

    position: Position
    publications: list[Publication]


class EngineStatistics(msgspec.Struct, frozen=True):
    """What an engine holds at this moment; and how often it had to let go of a room's history for a limit."""

    histories: int
    history_bytes: int
    publications: int
    evicted: Mapping[str, int]


class Engine(Protocol):
    """An engine that never waits. Times are those of one clock that never goes back."""

    def append(
        self,
        room: str,
        data: bytes,
        kind: Kind,
        now: float,
        publisher: Member | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Publication:
        """Accept a publication: give it its offset and keep it within the room's bounds."""
        ...

    def append_all(
        self, room: str, messages: Sequence[bytes], kind: Kind, now: float, publishers: Sequence[Member | None]
    ) -> list[Publication]:
        """Accept several publications, one after the other, each with its publisher."""
        ...

    def read(self, room: str, now: float, since: int | None = None, limit: int = 0, reverse: bool = False) -> Slice:
        """Return at most `limit` publications that aren't too old, and the room's top; a new room gets its epoch.

        Those after the offset `since`, or from the oldest on; in reverse those before it, or from the top down.
        """
        ...

    def recent(self, room: str, limit: int, now: float) -> Slice:
        """Return the room's last `limit` publications that aren't too old, oldest first, and its top."""
        ...

    def clear(self, room: str) -> None:
        """Let go of what is kept of the room; its epoch and offsets go on."""
        ...

    def forget(self, room: str) -> None:
        """Lose the room's history: the next publication starts a new epoch at offset 1."""
        ...

    def expire(self, now: float) -> bool:
        """Give back what is too old, and rooms that nobody has published to, or been in, for long enough.

        A step takes a few milliseconds at most; True if there may be more to give back.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """Return what is held."""
        ...
