"""The memory engine: histories in this process, gone with it.

Rules:
1. Everything is synchronous: one call is one atomic step.
2. Expiry costs by what expires, not by what is stored: a publication that is too old is dropped when its room is
   next published to or read, and all of a room's once nothing new came for `history_seconds_max`. Those that are
   due are always in front: what is alike in its ages, a namespace, is kept in order of time (`Order`).
3. A room whose publications have gone keeps its epoch and offsets, so that who returns is told the truth. It is
   forgotten only when it isn't in use, and `history_meta_seconds_max` has passed since it was last published to,
   read or seen to be in use; or when there are `rooms_max` histories and one more is needed (the longest idle
   of all namespaces goes). Its offsets would start again, so its next publication starts a new epoch.
4. Beyond `histories_bytes_max` rooms lose their publications, in use or not: first those that were not published
   to for longest, of all namespaces. They keep their epochs and offsets.
5. A room is in the namespace that its name says, also when a reload has removed that: then it has the ages and
   bounds of the rooms without one. Ages and bounds are looked up whenever they are needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.history import PUBLICATION_OVERHEAD_BYTES, History
from hubbub.engines.base import EngineStatistics, Slice
from hubbub.model.publication import Kind, Member, Publication

LOOKS_MAX = 64
"""How many histories are looked at for one that isn't in use (those in use go to the back, so it suffices), and how
many more are emptied than may be needed to make space for a publication, so that lowered limits are soon met."""

EXPIRED_AT_ONCE = 1_000
"""How many histories are given back in one step, if they are short: 1 to 2 ms."""

PUBLICATIONS_A_LOOK = 8
"""So many publications that are let go count as one history more: they take about as long."""


class Order:
    """The histories of one namespace, in the orders in which they become due.

    Attributes:
        prefix: what their rooms' names begin with: the namespace and a colon, or nothing.
        idle: all, the longest untouched in front.
        quiet: those that store publications, the longest not published to in front.
        spared: which look it was that last put one back because it is in use. Of orders whose front ones were touched
            at the same moment, the one whose turn was longest ago is next, lest looks always find the same.
    """

    __slots__ = ("idle", "prefix", "quiet", "spared")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.idle: OrderedDict[str, History] = OrderedDict()
        self.quiet: OrderedDict[str, History] = OrderedDict()
        self.spared = 0

    def touch(self, history: History, now: float) -> None:
        """Put it at the back of the idle ones."""
        history.touched = now
        self.idle.move_to_end(history.room)

    def longest_idle(self) -> History:
        """Return the one that wasn't touched for longest, of at least one."""
        return next(iter(self.idle.values()))

    def longest_quiet(self) -> History:
        """Return the one that wasn't published to for longest, of at least one."""
        return next(iter(self.quiet.values()))


class MemoryEngine:
    """Histories of all rooms; implements `hubbub.engines.base.Engine`.

    Args:
        settings: of each namespace history_size, history_bytes_max, history_seconds_max, history_meta_seconds_max;
            of all histories_bytes_max, rooms_max.
        new_epoch: gives a name that no earlier epoch had.
        in_use: whether a room has subscribers.
    """

    def __init__(self, settings: Settings, new_epoch: Callable[[], str], in_use: Callable[[str], bool]) -> None:
        self._settings = settings
        self._new_epoch = new_epoch
        self._in_use = in_use
        self._histories: dict[str, tuple[History, Order]] = {}
        self._orders: dict[str, Order] = {}  # by prefix; none is empty
        self._bytes = 0
        self._spared = 0
        self._evicted = {"histories_bytes_max": 0, "rooms_max": 0}

    def append(
        self,
        room: str,
        data: bytes,
        kind: Kind,
        now: float,
        publisher: Member | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Publication:
        """Accept a publication: give it its offset and keep it within the room's bounds."""
        history, order = self._histories.get(room) or self._open(room, now)
        bounds = self._settings.namespace(room) or self._settings
        before = history.size_bytes
        publication = history.append(
            data, kind, publisher, now, size_max=bounds.history_size, bytes_max=bounds.history_bytes_max, tags=tags
        )
        self._grown(history, order, before, bounds, now)
        return publication

    def append_all(
        self, room: str, messages: Sequence[bytes], kind: Kind, now: float, publishers: Sequence[Member | None]
    ) -> list[Publication]:
        """Accept several publications, one after the other, each with its publisher."""
        history, order = self._histories.get(room) or self._open(room, now)
        bounds = self._settings.namespace(room) or self._settings
        before = history.size_bytes
        publications = history.append_all(
            messages, kind, publishers, now, size_max=bounds.history_size, bytes_max=bounds.history_bytes_max
        )
        self._grown(history, order, before, bounds, now)
        return publications

    def _grown(self, history: History, order: Order, before: int, bounds: Namespace, now: float) -> None:
        """Account for what was added to a history that stored so many bytes before."""
        room = history.room
        order.idle.move_to_end(room)
        if before and history.size_bytes:
            history.expire(now - bounds.history_seconds_max)
            order.quiet.move_to_end(room)
            self._bytes += history.size_bytes - before
        else:
            self._count(history, order, before)
        if self._bytes > self._settings.histories_bytes_max:
            self._shrink(LOOKS_MAX + max(0, history.size_bytes - before) // PUBLICATION_OVERHEAD_BYTES)

    def read(self, room: str, now: float, since: int | None = None, limit: int = 0, reverse: bool = False) -> Slice:
        """Return at most `limit` publications that aren't too old, and the room's top; a new room gets its epoch.

        Those after the offset `since`, or from the oldest on; in reverse those before it, or from the top down.
        """
        history = self._look(room, now)
        return Slice(history.position, history.slice(since, limit, reverse))

    def recent(self, room: str, limit: int, now: float) -> Slice:
        """Return the room's last `limit` publications that aren't too old, oldest first, and its top."""
        history = self._look(room, now)
        return Slice(history.position, history.recent(limit))

    def clear(self, room: str) -> None:
        """Let go of what is kept of the room; its epoch and offsets go on."""
        history, order = self._histories.get(room, (None, None))
        if history is not None and order is not None:
            self._empty(history, order)

    def forget(self, room: str) -> None:
        """Lose the room's history: the next publication starts a new epoch at offset 1."""
        history, order = self._histories.pop(room, (None, None))
        if history is None or order is None:
            return
        self._bytes -= history.size_bytes
        del order.idle[room]
        order.quiet.pop(room, None)
        if not order.idle:
            del self._orders[order.prefix]

    def expire(self, now: float) -> bool:
        """Give back what is too old, and rooms that nobody has published to, or been in, for long enough.

        At most `EXPIRED_AT_ONCE`, fewer if they are long, as this is one step; True if there may be more.
        """
        settings, looks = self._settings, EXPIRED_AT_ONCE
        for order in list(self._orders.values()):
            bounds = settings.namespace(order.prefix) or settings
            age = bounds.history_seconds_max
            while looks > 0 and order.quiet and order.longest_quiet().newest.time < now - age:
                looks -= 1 + len(order.longest_quiet()) // PUBLICATIONS_A_LOOK
                self._empty(order.longest_quiet(), order)
            age = max(age, bounds.history_meta_seconds_max)
            while looks > 0 and order.idle and order.longest_idle().touched < now - age:
                self._forget_unless_in_use(order.longest_idle(), order, now)
                looks -= 1
        self._shrink(LOOKS_MAX)
        return looks <= 0

    def statistics(self) -> EngineStatistics:
        """Return what is held."""
        return EngineStatistics(
            histories=len(self._histories),
            history_bytes=self._bytes,
            publications=sum(len(history) for order in self._orders.values() for history in order.quiet.values()),
            evicted=self._evicted,
        )

    def _open(self, room: str, now: float) -> tuple[History, Order]:
        """Begin a history, at most as many as there may be."""
        self._make_room(now)
        namespace, colon, _ = room.partition(":")
        prefix = namespace + colon if colon else ""
        order = self._orders.get(prefix)
        if order is None:
            order = self._orders[prefix] = Order(prefix)
        history = order.idle[room] = History(room, self._new_epoch(), now)
        opened = self._histories[room] = (history, order)
        return opened

    def _look(self, room: str, now: float) -> History:
        """Return a room's history for reading: without what is too old."""
        history, order = self._histories.get(room) or self._open(room, now)
        order.touch(history, now)
        before = history.size_bytes
        if before:
            settings = self._settings
            history.expire(now - (settings.namespace(room) or settings).history_seconds_max)
            self._count(history, order, before)
        return history

    def _count(self, history: History, order: Order, before: int) -> None:
        """Account for what a history stores now instead of that many bytes."""
        after = history.size_bytes
        self._bytes += after - before
        if after and not before:
            order.quiet[history.room] = history
        elif before and not after:
            del order.quiet[history.room]

    def _empty(self, history: History, order: Order) -> None:
        before = history.size_bytes
        history.clear()
        self._count(history, order, before)

    def _shrink(self, looks: int) -> None:
        """Make space where there is too little: the longest quiet lose their publications."""
        for _ in range(looks):
            if self._bytes <= self._settings.histories_bytes_max:
                return
            order = min(
                (order for order in self._orders.values() if order.quiet),
                key=lambda order: order.longest_quiet().newest.time,
            )
            self._empty(order.longest_quiet(), order)
            self._evicted["histories_bytes_max"] += 1

    def _make_room(self, now: float) -> None:
        """Make space for one history: the longest idle that nobody is in goes."""
        for _ in range(LOOKS_MAX):
            if len(self._histories) < self._settings.rooms_max:
                return
            order = min(self._orders.values(), key=lambda order: (order.longest_idle().touched, order.spared))
            self._evicted["rooms_max"] += self._forget_unless_in_use(order.longest_idle(), order, now)

    def _forget_unless_in_use(self, history: History, order: Order, now: float) -> bool:
        if self._in_use(history.room):
            order.touch(history, now)
            self._spared += 1
            order.spared = self._spared
            return False
        self.forget(history.room)
        return True
