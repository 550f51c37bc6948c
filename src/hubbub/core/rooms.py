"""Who is in which room.

Rules:
1. A room exists while it has a subscriber; its history lives in the engine, not here.
2. A room's subscribers are grouped by encoder, so that what happens is encoded once a dialect.
3. A subscriber knows no rooms and needs to know none: `rooms_of` says where it is.
"""

from collections.abc import Iterator

import msgspec

from hubbub.model.notice import NobodyTold, Notices
from hubbub.model.publication import Member, Position
from hubbub.model.subscriber import Encoder, Outlet, Subscriber


class Room:
    """One named place: its subscribers, insertion-ordered, each with its outlet at hand for the fan-out.

    Attributes:
        watchers: who is told of joins and leaves.
        announced: of whom they have been told: when one of these goes, there is a leave.
        by_token: who has come in by a token for this room.
        infos: JSON for others in this room to see, of those who have any.
        newcomers: who has joined since the room last handed out, and how much was waiting then: it isn't theirs.
        top: of what has been handed out; in the beginning, the room's when it was opened.
    """

    __slots__ = ("announced", "by_token", "groups", "infos", "name", "newcomers", "occupancy", "top", "watchers")

    def __init__(self, name: str, top: Position) -> None:
        self.name = name
        self.groups: dict[Encoder, dict[Subscriber, Outlet]] = {}
        self.occupancy = 0
        self.watchers: set[Subscriber] = set()
        self.announced: set[Subscriber] = set()
        self.by_token: set[Subscriber] = set()
        self.infos: dict[Subscriber, bytes] = {}
        self.newcomers: dict[Subscriber, int] = {}
        self.top = top

    def __contains__(self, subscriber: Subscriber) -> bool:
        return subscriber in self.groups.get(subscriber.encoder, ())

    def subscribers(self) -> Iterator[Subscriber]:
        """Everyone in the room."""
        return (subscriber for group in self.groups.values() for subscriber in group)

    def member(self, subscriber: Subscriber) -> Member:
        """Return how others in this room see someone."""
        member = subscriber.member
        info = self.infos.get(subscriber) if self.infos else None
        return msgspec.structs.replace(member, room_info=info) if info else member

    def _remove(self, subscriber: Subscriber) -> None:
        group = self.groups[subscriber.encoder]
        del group[subscriber]
        if not group:
            del self.groups[subscriber.encoder]
        self.watchers.discard(subscriber)
        self.announced.discard(subscriber)
        self.by_token.discard(subscriber)
        self.infos.pop(subscriber, None)
        self.newcomers.pop(subscriber, None)
        self.occupancy -= 1


class Rooms:
    """All rooms of a node and all subscriptions.

    Args:
        notices: told of each change.
    """

    def __init__(self, notices: Notices | None = None) -> None:
        self._notices = notices or NobodyTold()
        self._rooms: dict[str, Room] = {}
        self._rooms_of: dict[Subscriber, dict[str, Room]] = {}
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

    def names(self) -> list[str]:
        """Return the names of all rooms that anyone is in."""
        return list(self._rooms)

    def rooms_of(self, subscriber: Subscriber) -> list[str]:
        """Return the names of the rooms that the subscriber is in, in the order in which it joined them."""
        return list(self._rooms_of.get(subscriber, ()))

    def subscribe(
        self,
        subscriber: Subscriber,
        name: str,
        top: Position,
        *,
        waiting: int = 0,
        watches: bool = False,
        by_token: bool = False,
        info: bytes = b"",
    ) -> None:
        """Add the subscriber to the room, opening it if need be; nothing changes if it is there already.

        Args:
            top: the room's position now.
            waiting: how much waits there to be handed out, none of it for the newcomer.
            watches: whether it is told of joins and leaves.
            by_token: whether it has shown a token for the room.
            info: JSON for others in the room to see; b"" for none.
        """
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name, top)
            self._notices.opened(name)
        group = room.groups.setdefault(subscriber.encoder, {})
        if subscriber in group:
            return
        group[subscriber] = subscriber.outlet
        if waiting:
            room.newcomers[subscriber] = waiting
        if watches:
            room.watchers.add(subscriber)
        if by_token:
            room.by_token.add(subscriber)
        if info:
            room.infos[subscriber] = info
        room.occupancy += 1
        self._rooms_of.setdefault(subscriber, {})[name] = room
        self._subscriptions += 1
        self._notices.joined(name, subscriber.member)

    def unsubscribe(self, subscriber: Subscriber, name: str) -> bool:
        """Remove the subscriber from one room; False if it wasn't there. A room that it was the last in is gone."""
        rooms = self._rooms_of.get(subscriber, {})
        room = rooms.pop(name, None)
        if room is None:
            return False
        if not rooms:
            del self._rooms_of[subscriber]
        room._remove(subscriber)
        self._subscriptions -= 1
        self._notices.left(name, subscriber.member)
        if not room.occupancy:
            del self._rooms[name]
            self._notices.emptied(name)
        return True
