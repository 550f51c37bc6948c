"""The hub's state: which publication goes to whom. Plain and synchronous; run by `hubbub.hub.task`.

Rules:
1. A publication is accepted (`publish`) by the engine, which gives it its place, and handed out later (`take`):
   what a room has accepted meanwhile goes to each subscriber in one piece, encoded once a dialect.
2. Before a room gains a subscriber, what it has accepted is handed out to those who were there. The newcomer
   gets that from history, if it asked, and everything after: each publication once (P2).
3. A leave takes effect at once: nothing is handed out to who has left, and nothing brings it back.
4. An exception in a room's step ends that room, not the node: its subscribers are told, its history is lost.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from hubbub.config import Settings
from hubbub.core.rooms import Offer, Rooms
from hubbub.engines.base import Engine
from hubbub.model.command import Publish, Refused, Subscribe, Subscribed
from hubbub.model.end import End
from hubbub.model.publication import Publication
from hubbub.model.subscriber import Subscriber

PIECE_BYTES_MAX = 256 * 1024
"""What a room has accepted is handed out early once it is this much, so that no piece is far larger than
what an outbox may hold."""

T = TypeVar("T")
log = structlog.get_logger()


class Delivery(msgspec.Struct, frozen=True):
    """One piece for many: `frames` complete frames, to be given to each of `offers`."""

    data: bytes
    frames: int
    offers: list[Offer]


class HubStatistics(msgspec.Struct, frozen=True):
    """What the hub holds at this moment, and what it has done since the start."""

    rooms: int
    subscriptions: int
    publications: int
    deliveries: int
    rooms_failed: int


class Hub:
    """Rooms, and what they have accepted but not yet handed out.

    Args:
        engine: gives publications their order and keeps them.
        rooms: who is where.
        settings: rooms_max, subscribers_max.
    """

    def __init__(self, engine: Engine, rooms: Rooms, settings: Settings) -> None:
        self._engine = engine
        self._rooms = rooms
        self._settings = settings
        self._accepted: dict[str, list[Publication]] = {}  # by room, in order, not yet handed out
        self._accepted_bytes: dict[str, int] = {}
        self._publications = 0
        self._deliveries = 0
        self._rooms_failed = 0

    def publish(self, command: Publish, now: float) -> bool:
        """Accept a publication; True if its room should be handed out at once, for its size."""
        return bool(self._step(command.room, lambda: self._publish(command, now)))

    def subscribe(self, command: Subscribe, now: float) -> None:
        """Let a subscriber in and reply. The room must have nothing left to hand out (rule 2)."""
        if command.subscriber.gone:
            return
        limits = self._settings
        if len(self._rooms) >= limits.rooms_max and command.room not in self._rooms:
            command.reply(Refused(f"there are rooms_max = {limits.rooms_max} rooms already"))
            return
        if limits.subscribers_max and self._rooms.occupancy(command.room) >= limits.subscribers_max:
            command.reply(Refused(f"the room has subscribers_max = {limits.subscribers_max} subscribers already"))
            return
        self._step(command.room, lambda: self._subscribe(command, now))

    def leave(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of all its rooms."""
        self._rooms.leave(subscriber)

    def waiting(self) -> list[str]:
        """Return the rooms that have something to hand out."""
        return list(self._accepted)

    def take(self, room: str) -> list[Delivery]:
        """Return what is to be handed out in that room now, and to whom; it counts as handed out."""
        publications = self._accepted.pop(room, None)
        if publications is None:
            return []
        del self._accepted_bytes[room]
        return self._step(room, lambda: self._deliveries_of(room, publications)) or []

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        self._engine.expire(now)

    def statistics(self) -> HubStatistics:
        """Return what is held and what was done."""
        return HubStatistics(
            rooms=len(self._rooms),
            subscriptions=self._rooms.subscriptions,
            publications=self._publications,
            deliveries=self._deliveries,
            rooms_failed=self._rooms_failed,
        )

    def _publish(self, command: Publish, now: float) -> bool:
        room = command.room
        publication = self._engine.append(room, command.data, command.binary, now)
        self._accepted.setdefault(room, []).append(publication)
        size = self._accepted_bytes.get(room, 0) + len(command.data)
        self._accepted_bytes[room] = size
        self._publications += 1
        return size >= PIECE_BYTES_MAX

    def _subscribe(self, command: Subscribe, now: float) -> None:
        past = self._engine.recent(command.room, command.history, now)
        self._rooms.subscribe(command.subscriber, command.room)
        command.reply(Subscribed(past.position, past.publications))

    def _deliveries_of(self, name: str, publications: list[Publication]) -> list[Delivery]:
        room = self._rooms.get(name)
        if room is None:
            return []
        frames = len(publications)
        self._deliveries += frames * room.occupancy
        return [
            Delivery(b"".join(map(encoder.encode_publication, publications)), frames, list(group.values()))
            for encoder, group in room.groups.items()
        ]

    def _step(self, room: str, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception:
            self._end_room(room)
            return None

    def _end_room(self, name: str) -> None:
        log.exception("room ended by an internal error", room=name)
        self._rooms_failed += 1
        self._accepted.pop(name, None)
        self._accepted_bytes.pop(name, None)
        self._engine.forget(name)
        room = self._rooms.get(name)
        for subscriber in list(room.subscribers()) if room else ():
            subscriber.evict(End.ROOM_ENDED)
