"""What has happened in the rooms, in order, and isn't handed out yet."""

from collections.abc import Sequence

from hubbub.model.publication import Presence, Publication

Event = Publication | Presence


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

    def size_bytes(self, room: str) -> int:
        """Return how much that is, without joins and leaves."""
        return self._bytes.get(room, 0)

    def take(self, room: str) -> list[Event]:
        """Return what waits there, which then waits no longer."""
        self._bytes.pop(room, None)
        return self._events.pop(room, [])
