"""A room as the load generator knows it: what was published there, and the one order in which it was delivered.

Every delivery is checked when it comes: it must be a message that was published, byte for byte, and the one that the
first who got so far has got at this position. So nothing has to be kept for each client, and a fault is told at once.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from dialects import STAMP, BenchError

LOOK_BACK = 10_000  # positions before a newcomer's first delivery that are searched for one it should have had


@dataclass(slots=True)
class Seat:
    """A client's place in a room."""

    who: str
    position: int | None = 0  # of the next delivery; None: came later, and isn't placed yet
    after: int = 0  # messages from this number on were published when it was in already
    waiting: list[int] = field(default_factory=list)  # what it got, until somebody else's deliveries place it


class Room:
    """What was published in a room, and in which order it was delivered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: list[bytes] = []  # by number
        self.order = array("q")  # numbers, by position; -1: not known yet
        self.stayers = 0  # clients that must get everything
        self.base: int | None = None  # the offset before the first message
        self._positions = array("q")  # by number; -1: not delivered to anybody

    def message(self, publisher: int, at: int, size: int) -> bytes:
        """The next message, to be published at a time in ns after the crowd's start."""
        message = (STAMP % (len(self.sent), publisher, at)).ljust(size, b"x")
        self.sent.append(message)
        self._positions.append(-1)
        return message

    def seat(self, who: str, offset: int | None = None) -> Seat:
        """A place for whoever has just come in; with an offset, at that."""
        if not self.sent:
            self.base = self.base if offset is None else offset
            return Seat(who)
        position = None if offset is None or self.base is None else offset - self.base
        return Seat(who, position, len(self.sent))

    def take(self, seat: Seat, message: bytes, offset: int | None = None) -> int:
        """Check a delivery; the time for which it was intended."""
        number = int(message[:9]) if message[:9].isdigit() else -1
        if not 0 <= number < len(self.sent) or self.sent[number] != message:
            raise BenchError(f"{seat.who}, room {self.name}: a message never published ({message[:60]!r})")
        if seat.position is None:
            self._wait(seat, number)
        else:
            if offset is not None and self.base is not None and offset != (due := self.base + seat.position + 1):
                raise BenchError(f"{seat.who}, room {self.name}: offset {offset} where {due} is due")
            self._check(seat, seat.position, number)
            seat.position += 1
        return int(message[15:30])

    def missing(self, seat: Seat) -> str | None:
        """What somebody lacks who should have everything by now."""
        lacks = len(self.sent) - (seat.after + len(seat.waiting) if seat.position is None else seat.position)
        return f"{seat.who}, room {self.name}: lacks {lacks} of {len(self.sent)} messages" if lacks else None

    def fault(self) -> str | None:
        """What is wrong with the order: a publisher's messages in another order than it has sent them."""
        newest: dict[bytes, int] = {}
        for number in self.order:
            publisher = self.sent[number][10:14]
            if number <= newest.get(publisher, -1):
                return f"room {self.name}: {number} after {newest[publisher]} of the same publisher"
            newest[publisher] = number
        return None

    def _wait(self, seat: Seat, number: int) -> None:
        """A newcomer's delivery: placed as soon as its first one is, which must not be too late a one."""
        seat.waiting.append(number)
        if (position := self._positions[seat.waiting[0]]) < 0:
            return
        for missed in self.order[max(0, position - LOOK_BACK) : position]:
            if missed >= seat.after:
                raise BenchError(f"{seat.who}, room {self.name}: never got {missed}, published after it came in")
        for index, waiting in enumerate(seat.waiting):
            self._check(seat, position + index, waiting)
        seat.position = position + len(seat.waiting)
        seat.waiting.clear()

    def _check(self, seat: Seat, position: int, number: int) -> None:
        if position >= len(self.order):
            self.order.extend([-1] * (position + 1 - len(self.order)))
        if self.order[position] == number:
            return
        if self.order[position] >= 0:
            others = self.order[position]
            raise BenchError(f"{seat.who}, room {self.name}, position {position}: {number} where others had {others}")
        if self._positions[number] >= 0:
            raise BenchError(f"{seat.who}, room {self.name}, position {position}: {number} a second time")
        self.order[position] = number
        self._positions[number] = position
