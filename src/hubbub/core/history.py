"""The stored publications of one room: bounded by count, bytes and age, whichever comes first.

Rules:
1. `append` gives each publication the next offset: 1, 2, 3, … Offsets aren't reused while the epoch stands.
2. What is stored is always the newest, without a hole: only the oldest are dropped.
3. Dropping a publication doesn't touch the top position: offsets go on after everything has expired.
"""

from collections import deque
from itertools import islice

from hubbub.model.publication import Position, Publication

PUBLICATION_OVERHEAD_BYTES = 200
"""What a stored publication weighs besides its data, roughly: so that empty messages aren't free."""


class History:
    """One room's log. Bounds are passed to `append` and `expire`, so that they can change while running."""

    __slots__ = ("_bytes", "_offset", "_publications", "epoch", "room", "touched")

    def __init__(self, room: str, epoch: str, now: float) -> None:
        self.room = room
        self.epoch = epoch
        self.touched = now  # when it last accepted a publication, or was last seen to be in use
        self._offset = 0
        self._publications: deque[Publication] = deque()
        self._bytes = 0

    @property
    def position(self) -> Position:
        """The top: where the next publication will follow."""
        return Position(self.epoch, self._offset)

    @property
    def size_bytes(self) -> int:
        """What is stored, with an estimate for each publication's own weight."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._publications)

    def append(self, data: bytes, binary: bool, now: float, *, size_max: int, bytes_max: int) -> Publication:
        """Accept `data` as the next publication and return it; then drop the oldest beyond the bounds."""
        self._offset += 1
        self.touched = now
        publication = Publication(self.room, self._offset, data, binary, now)
        if size_max:
            self._publications.append(publication)
            self._bytes += len(data) + PUBLICATION_OVERHEAD_BYTES
            while len(self._publications) > size_max or self._bytes > bytes_max:
                self._drop_oldest()
        return publication

    def recent(self, limit: int) -> list[Publication]:
        """Return the last `limit` stored publications, oldest first; fewer if there are fewer."""
        count = len(self._publications)
        return list(islice(self._publications, max(0, count - limit), count))

    def expire(self, accepted_before: float) -> None:
        """Drop what was accepted before that time."""
        while self._publications and self._publications[0].time < accepted_before:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._publications.popleft().data) + PUBLICATION_OVERHEAD_BYTES
