"""Who is in which room.

Rules:
1. A room exists while it has a subscriber; its history lives in the engine, not here.
2. A room's subscribers are grouped by encoder, so that a publication is encoded once a dialect.
3. `leave` removes a subscriber from all its rooms, however often it is called.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from hubbub.model.subscriber import Encoder, Subscriber

Offer: TypeAlias = Callable[[bytes, int], None]


class Room:
    """One named place: its subscribers, insertion-ordered, each with its `offer` at hand for the fan-out."""

    __slots__ = ("groups", "name", "occupancy")

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: dict[Encoder, dict[Subscriber, Offer]] = {}
        self.occupancy = 0

    def subscribers(self) -> Iterable[Subscriber]:
        """Everyone in the room."""
        return (subscriber for group in self.groups.values() for subscriber in group)


class Rooms:
    """All rooms of a node and all subscriptions."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._rooms_of: dict[Subscriber, list[Room]] = {}
        self._subscriptions = 0

    def __len__(self) -> int:
        return len(self._rooms)

    def __contains__(self, name: str) -> bool:
        return name in self._rooms

    @property
    def subscriptions(self) -> int:
        """How many (subscriber, room) pairs there are."""
        return self._subscriptions

    def get(self, name: str) -> Room | None:
        """Return the room if anyone is in it."""
        return self._rooms.get(name)

    def occupancy(self, name: str) -> int:
        """Return how many are in the room; 0 if there is none."""
        room = self._rooms.get(name)
        return room.occupancy if room is not None else 0

    def subscribe(self, subscriber: Subscriber, name: str) -> None:
        """Add the subscriber to the room, opening it if need be; nothing changes if it is there already."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name)
        group = room.groups.setdefault(subscriber.encoder, {})
        if subscriber in group:
            return
        group[subscriber] = subscriber.offer
        room.occupancy += 1
        self._rooms_of.setdefault(subscriber, []).append(room)
        self._subscriptions += 1

    def leave(self, subscriber: Subscriber) -> None:
        """Remove the subscriber from every room it is in; a room that it was the last in is gone."""
        for room in self._rooms_of.pop(subscriber, ()):
            group = room.groups[subscriber.encoder]
            del group[subscriber]
            if not group:
                del room.groups[subscriber.encoder]
            room.occupancy -= 1
            self._subscriptions -= 1
            if not room.occupancy:
                del self._rooms[room.name]
