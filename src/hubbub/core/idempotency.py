"""What publishes with an idempotency key have come to, so that a repeat isn't a second publication (P6).

Rules:
1. A key belongs to a room and a scope: who may repeat it. The same key elsewhere is another key.
2. A result is kept for `idempotency_seconds_max`, never shorter and never returned later. Nothing makes way: when
   a room has `idempotency_keys_max` keys, or all have `idempotency_keys_total_max`, `has_room` says no until
   some are due, and the publish has to be refused.
3. That a room's history is lost changes nothing: the first publish did happen, and a repeat isn't to happen again.
4. Everything costs by what is added or goes, not by what is kept: the results stand in the order of their times.
"""

import sys
from collections import deque

import msgspec

from hubbub.config import Settings
from hubbub.model.command import Published
from hubbub.model.publication import Position


class _Result(msgspec.Struct, frozen=True, gc=False):
    room: str
    name: tuple[str, str]  # scope and key
    position: Position | None
    time: float


class Results:
    """The results of all rooms.

    Args:
        settings: idempotency_seconds_max, idempotency_keys_max, idempotency_keys_total_max.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rooms: dict[str, dict[tuple[str, str], _Result]] = {}
        self._order: deque[_Result] = deque()  # by time

    def __len__(self) -> int:
        return len(self._order)

    def find(self, room: str, scope: str, key: str, now: float) -> Published | None:
        """Return what the key came to; None if it is new."""
        results = self._rooms.get(room)
        result = results.get((scope, key)) if results else None
        return Published(result.position) if result and result.time >= self._due(now) else None

    def has_room(self, room: str, now: float) -> bool:
        """Return whether one more result of that room could be remembered."""
        self.expire(now)
        settings = self._settings
        return (
            len(self._order) < settings.idempotency_keys_total_max
            and len(self._rooms.get(room, ())) < settings.idempotency_keys_max
        )

    def remember(self, room: str, scope: str, key: str, published: Published, now: float) -> None:
        """Keep a result. The caller has seen that the key is new and that there `has_room`."""
        self.expire(now)
        results = self._rooms.setdefault(room, {})
        if (scope, key) in results:
            return  # the first result stands
        name = sys.intern(scope), key  # one string for all keys of a room or a scope
        result = results[name] = _Result(sys.intern(room), name, published.position, now)
        self._order.append(result)

    def expire(self, now: float) -> None:
        """Let go of what is due."""
        due = self._due(now)
        while self._order and self._order[0].time < due:
            result = self._order.popleft()
            results = self._rooms[result.room]
            del results[result.name]
            if not results:
                del self._rooms[result.room]

    def _due(self, now: float) -> float:
        return now - self._settings.idempotency_seconds_max
