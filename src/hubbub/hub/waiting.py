"""What has happened in the rooms, in order, and isn't handed out yet."""

from collections.abc import Sequence

from hubbub.model.publication import Presence, Publication

Event = Publication | Presence

PIECE_BYTES_MAX = 256 * 1024
PIECE_EVENTS_MAX = 2_048
"""What has happened in a room is handed out early once it is this much, so that no piece is far larger than what an
outbox may hold: a quarter of its bytes, an eighth of its frames."""


class Waiting:
    """By room. What happens where nobody is, is for nobody: the caller sees to that."""

    __slots__ = ("_bytes", "_events")

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, room: str, event: Event, size_bytes: int = 0) -> None:
        """Put it behind what waits there already."""
        events = self._events.get(room)
        if events is None:
            self._events[room] = [event]
        else:
            events.append(event)
        if size_bytes:
            self._bytes[room] = self._bytes.get(room, 0) + size_bytes

    def add_all(self, room: str, events: Sequence[Event], size_bytes: int) -> None:
        """Put several behind what waits there already."""
        self._events.setdefault(room, []).extend(events)
        self._bytes[room] = self._bytes.get(room, 0) + size_bytes

    def rooms(self) -> list[str]:
        """Return where something waits."""
        return list(self._events)

    def events(self, room: str) -> list[Event]:
        """Return what waits there; not a copy."""
        return self._events.get(room, [])

    def is_piece(self, room: str) -> bool:
        """Whether that is enough to be handed out."""
        events = self._events.get(room)
        if events is None:
            return False
        return len(events) >= PIECE_EVENTS_MAX or self._bytes.get(room, 0) >= PIECE_BYTES_MAX

    def take(self, room: str) -> list[Event]:
        """Return what waits there, which then waits no longer."""
        self._bytes.pop(room, None)
        return self._events.pop(room, [])
