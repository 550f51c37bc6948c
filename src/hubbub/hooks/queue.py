"""Notices on their way to the back end: in order, bounded, and what is lost of them isn't lost without a word.

Rules:
1. Notices are told in the order in which they were offered. What has been given out once (`front`) stays the same,
   with the same id, however often it is given out again; it goes when it has been told, or is given up.
2. What doesn't fit is dropped, and what is too old is given up. In its place there is an event `lost`, with the
   number of those that are missing there. It costs nothing, so there is always room for it.
3. A `lost` that is given up is contained in the next one's number. It never goes by itself.

Pure: no Trio, no clock.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice

import msgspec

EVENTS_MAX = 100
"""In one delivery."""
EVENTS_BYTES_MAX = 65_536
"""In one delivery, unless a single event is larger."""
OVERHEAD_BYTES = 100
"""What a waiting notice weighs besides its JSON, roughly."""


class Event(msgspec.Struct, omit_defaults=True):
    """What has happened, as the back end is told.

    Attributes:
        id: the event's own, the same whenever it is repeated.
        time: in milliseconds since 1970.
        event: join, leave, room_opened, room_emptied, disconnect or lost.
        room: where; called "channel" there.
        user: who; "" for a stranger.
        client: that connection's name.
        code, reason: of a disconnect's Close.
        count: how many were lost.
    """

    id: str
    time: int
    event: str
    room: str = msgspec.field(default="", name="channel")
    user: str = ""
    client: str = ""
    code: int | None = None
    reason: str = ""
    count: int = 0


class _Entry(msgspec.Struct, gc=False):
    data: bytes  # b"" for a `lost` that hasn't been given out: its number may still grow
    since: float
    lost: int = 0  # 0: not a `lost`

    @property
    def is_open(self) -> bool:
        return self.lost > 0 and not self.data

    @property
    def weight(self) -> int:
        return 0 if self.lost else len(self.data) + OVERHEAD_BYTES


class Queue:
    """Notices that haven't been told.

    Args:
        stamp: gives the next event's id and time.

    Attributes:
        weight: of all that waits, in bytes.
        told, lost: how many notices have been told, and how many never will be.
    """

    def __init__(self, stamp: Callable[[], tuple[str, int]]) -> None:
        self._stamp = stamp
        self._entries: deque[_Entry] = deque()
        self.weight = 0
        self.told = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._entries)

    def offer(
        self,
        event: str,
        now: float,
        bytes_max: int,
        *,
        room: str = "",
        user: str = "",
        client: str = "",
        code: int | None = None,
        reason: str = "",
    ) -> None:
        """Add a notice at the end, or drop it if more than `bytes_max` would wait."""
        entry = _Entry(msgspec.json.encode(Event(*self._stamp(), event, room, user, client, code, reason)), now)
        if self.weight + entry.weight <= bytes_max:
            self._entries.append(entry)
            self.weight += entry.weight
            return
        self.lost += 1
        if self._entries and self._entries[-1].is_open:
            self._entries[-1].lost += 1
        else:
            self._entries.append(_Entry(b"", now, 1))

    def front(self) -> list[bytes]:
        """Return the events that are to be told next, in JSON; the caller says what has come of it."""
        batch: list[bytes] = []
        size = 0
        for entry in islice(self._entries, EVENTS_MAX):
            if entry.is_open:
                entry.data = msgspec.json.encode(Event(*self._stamp(), "lost", count=entry.lost))
            size += len(entry.data)
            if batch and size > EVENTS_BYTES_MAX:
                break
            batch.append(entry.data)
        return batch

    def remove(self, count: int) -> None:
        """Let go of the first ones: they have been told."""
        for _ in range(count):
            self.told += not self._pop().lost

    def give_up(self, before: float) -> None:
        """Give up what was offered before that time."""
        count = 0
        for place, entry in enumerate(self._entries, 1):
            if entry.since >= before:
                break
            if not entry.lost:
                count = place
        if not count:
            return
        lost = 0
        for _ in range(count):
            entry = self._pop()
            self.lost += not entry.lost
            lost += entry.lost or 1
        if self._entries and self._entries[0].is_open:
            self._entries[0].lost += lost
        else:
            self._entries.appendleft(_Entry(b"", entry.since, lost))

    def _pop(self) -> _Entry:
        entry = self._entries.popleft()
        self.weight -= entry.weight
        return entry
