"""The memory engine: histories in this process, gone with it.

Rules:
1. Everything is synchronous: one call is one atomic step.
2. Expiry costs by what expires, not by what is stored: a publication that is too old is dropped when its room
   is next published to or read, and a whole history once nothing new came for the maximal age. The histories
   are kept in the order in which they were last published to, so the due ones are always in front.
3. A history that nobody is subscribed to is forgotten when all of it is too old, or when there are `rooms_max`
   histories or `histories_bytes_max` bytes and more is needed (the longest idle goes). Its offsets would start
   again, so its next publication starts a new epoch. While a room is in use its epoch and offsets stay.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from hubbub.config import Settings
from hubbub.core.history import History
from hubbub.engines.base import EngineStatistics, Slice
from hubbub.model.publication import Publication

FORGET_LOOKS_MAX = 64
"""How many histories are looked at for one that isn't in use: those in use go to the back, so it suffices."""


class MemoryEngine:
    """Histories of all rooms; implements `hubbub.engines.base.Engine`.

    Args:
        settings: history_size, history_bytes_max, history_seconds_max, histories_bytes_max, rooms_max.
        new_epoch: gives a name that no earlier epoch had.
        in_use: whether a room has subscribers.
    """

    def __init__(self, settings: Settings, new_epoch: Callable[[], str], in_use: Callable[[str], bool]) -> None:
        self._settings = settings
        self._new_epoch = new_epoch
        self._in_use = in_use
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._bytes = 0

    def append(self, room: str, data: bytes, binary: bool, now: float) -> Publication:
        """Accept a publication: give it its offset and keep it within the room's bounds."""
        history = self._history(room, now)
        self._histories.move_to_end(room)
        settings = self._settings
        before = history.size_bytes
        publication = history.append(
            data, binary, now, size_max=settings.history_size, bytes_max=settings.history_bytes_max
        )
        history.expire(now - settings.history_seconds_max)
        self._bytes += history.size_bytes - before
        for _ in range(FORGET_LOOKS_MAX):
            if self._bytes <= settings.histories_bytes_max:
                break
            self._shrink(next(iter(self._histories.values())), now)
        return publication

    def recent(self, room: str, limit: int, now: float) -> Slice:
        """Return the room's last `limit` publications that aren't too old, and its top."""
        history = self._history(room, now)
        before = history.size_bytes
        history.expire(now - self._settings.history_seconds_max)
        self._bytes += history.size_bytes - before
        return Slice(history.position, history.recent(limit))

    def forget(self, room: str) -> None:
        """Lose the room's history: the next publication starts a new epoch at offset 1."""
        history = self._histories.pop(room, None)
        if history is not None:
            self._bytes -= history.size_bytes

    def expire(self, now: float) -> None:
        """Give back what is held by rooms that nobody has published to, or been in, for the maximal age."""
        due = now - self._settings.history_seconds_max
        while self._histories:
            history = next(iter(self._histories.values()))
            if history.touched >= due:
                return
            self._shrink(history, now)

    def statistics(self) -> EngineStatistics:
        """Return what is held."""
        histories = self._histories.values()
        return EngineStatistics(
            histories=len(histories),
            history_bytes=self._bytes,
            publications=sum(len(history) for history in histories),
        )

    def _history(self, room: str, now: float) -> History:
        history = self._histories.get(room)
        if history is None:
            self._make_room(now)
            history = self._histories[room] = History(room, self._new_epoch(), now)
        return history

    def _make_room(self, now: float) -> None:
        for _ in range(FORGET_LOOKS_MAX):
            if len(self._histories) < self._settings.rooms_max:
                return
            room, history = next(iter(self._histories.items()))
            if self._in_use(room):
                self._keep(history, now)
            else:
                self.forget(room)

    def _shrink(self, history: History, now: float) -> None:
        """Let go of all that a room keeps; of its epoch and offsets, too, if nobody is in it."""
        if self._in_use(history.room):
            self._bytes -= history.size_bytes
            history.expire(math.inf)
            self._keep(history, now)
        else:
            self.forget(history.room)

    def _keep(self, history: History, now: float) -> None:
        history.touched = now
        self._histories.move_to_end(history.room)
