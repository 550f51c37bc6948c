"""What publishes with an idempotency key have come to, so that a repeat isn't a second publication (P6).

Rules:
1. A key belongs to a room and to those who may repeat it: a user, or the server. Strangers are all one user, as one
   that comes back after a broken connection can't be known by anything else. The same key elsewhere is another key.
2. A result is kept for `idempotency_seconds_max`, never shorter and never returned later. Nothing makes way: when
   there is no room, `has_room` says no until some are due, and the publish has to be refused.
3. A room has room for `idempotency_keys_max` keys, all rooms together for `idempotency_keys_total_max`. Nobody uses up
   those of others: one holder, a user or a stranger's connection, has a share of each. And the less is known of who
   it is, the sooner it is full: strangers can be any number of holders, so users go on when strangers can't, and the
   server when nobody else can.
4. That a room's history is lost changes nothing: the first publish did happen, and a repeat isn't to happen again.
5. Everything costs by what is added or goes, not by what is kept: the results stand in the order of their times.
"""

import sys
from collections import deque
from typing import Final, TypeVar

import msgspec

from hubbub.config import Settings
from hubbub.model.command import Published
from hubbub.model.publication import Member, Position

OF_A_ROOM: Final = 1 / 4
"""What one holder may have of a room's keys: by default 2,500 in five minutes, 8 a second without end."""

OF_ALL: Final = 1 / 16
"""What one holder may have of all keys: by default 6,250, 20 a second. Less, as more people share these."""

FULL_FOR_STRANGERS: Final = 1 / 2
"""Strangers are refused when so much of a room's keys, or of all, is taken, by whomever."""

FULL_FOR_USERS: Final = 3 / 4
"""Likewise users; what is left is the server's."""


Name = TypeVar("Name", str, tuple[str, str])


class _Result(msgspec.Struct, frozen=True, gc=False):
    name: tuple[str, str]  # scope and key
    held: tuple[str, str]  # by that holder, in that room
    position: Position | None
    time: float


class Results:
    """The results of all rooms. Who publishes is a member; None is the server.

    Args:
        settings: idempotency_seconds_max, idempotency_keys_max, idempotency_keys_total_max.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rooms: dict[str, dict[tuple[str, str], _Result]] = {}
        self._order: deque[_Result] = deque()  # by time
        self._held: dict[str, int] = {}  # how many there are by each holder
        self._held_in: dict[tuple[str, str], int] = {}  # by each holder in each room

    def __len__(self) -> int:
        return len(self._order)

    def find(self, room: str, who: Member | None, key: str, now: float) -> Published | None:
        """Return what the key came to; None if it is new."""
        results = self._rooms.get(room)
        result = results.get((_scope(who), key)) if results else None
        return Published(result.position) if result and result.time >= self._due(now) else None

    def has_room(self, room: str, who: Member | None, now: float) -> bool:
        """Return whether one more result of theirs in that room could be remembered."""
        self.expire(now)
        of_room, of_all = self._settings.idempotency_keys_max, self._settings.idempotency_keys_total_max
        in_room, in_all = len(self._rooms.get(room, ())), len(self._order)
        if who is None:
            return in_room < of_room and in_all < of_all
        full, holder = FULL_FOR_USERS if who.user else FULL_FOR_STRANGERS, _holder(who, _scope(who))
        return (
            in_room < full * of_room
            and in_all < full * of_all
            and self._held_in.get((holder, room), 0) < OF_A_ROOM * of_room
            and self._held.get(holder, 0) < OF_ALL * of_all
        )

    def remember(self, room: str, who: Member | None, key: str, published: Published, now: float) -> None:
        """Keep a result. The caller has seen that the key is new and that there `has_room`."""
        self.expire(now)
        results, scope = self._rooms.setdefault(room, {}), sys.intern(_scope(who))  # one string for all keys of a scope
        name, held = (scope, key), (sys.intern(_holder(who, scope)), sys.intern(room))
        if name in results:
            return  # the first result stands
        result = results[name] = _Result(name, held, published.position, now)
        self._order.append(result)
        self._held[held[0]] = self._held.get(held[0], 0) + 1
        self._held_in[held] = self._held_in.get(held, 0) + 1

    def expire(self, now: float) -> None:
        """Let go of what is due."""
        due = self._due(now)
        while self._order and self._order[0].time < due:
            result = self._order.popleft()
            holder, room = result.held
            results = self._rooms[room]
            del results[result.name]
            if not results:
                del self._rooms[room]
            _let_go(self._held, holder)
            _let_go(self._held_in, result.held)

    def _due(self, now: float) -> float:
        return now - self._settings.idempotency_seconds_max


def _scope(who: Member | None) -> str:
    """Return whose the key is."""
    return f"user {who.user}" if who is not None else "server"


def _holder(who: Member | None, scope: str) -> str:
    """Return for whom it counts: strangers by their connections."""
    return f"client {who.client}" if who is not None and not who.user else scope


def _let_go(held: dict[Name, int], name: Name) -> None:
    """Count one less."""
    if held[name] > 1:
        held[name] -= 1
    else:
        del held[name]
