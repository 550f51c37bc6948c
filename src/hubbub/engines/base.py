"""The engine's contract.

Owed by every engine:
1. Order is decided here: `append` gives each publication of a room the next offset (P1).
2. Offset and history change together: nobody ever sees one without the other (P4).
3. A slice and the top position come from the same moment (P5).
4. Offsets are never reused under one epoch; when history is lost, the epoch is new (P5).
5. What an ack means is stated. Memory: the publication is in the room's history; it doesn't outlive the process.

The memory engine never waits, so the hub calls it inside its own step. An engine that waits gets a task and
an inbox of its own, and hands what it accepted back to the hub.
"""

from typing import Protocol

import msgspec

from hubbub.model.publication import Position, Publication


class Slice(msgspec.Struct, frozen=True):
    """Publications of one room and the room's top at the same moment; oldest first."""

    position: Position
    publications: list[Publication]


class EngineStatistics(msgspec.Struct, frozen=True):
    """What an engine holds at this moment."""

    histories: int
    history_bytes: int
    publications: int


class Engine(Protocol):
    """An engine that never waits."""

    def append(self, room: str, data: bytes, binary: bool, now: float) -> Publication:
        """Accept a publication: give it its offset and keep it within the room's bounds."""
        ...

    def recent(self, room: str, limit: int, now: float) -> Slice:
        """Return the room's last `limit` publications that aren't too old, and its top."""
        ...

    def forget(self, room: str) -> None:
        """Lose the room's history: the next publication starts a new epoch at offset 1."""
        ...

    def expire(self, now: float) -> None:
        """Give back what is held by rooms that nobody has published to, or been in, for the maximal age."""
        ...

    def statistics(self) -> EngineStatistics:
        """Return what is held."""
        ...
