"""The stored publications of one room: bounded by count, bytes and age, whichever comes first.

Rules:
1. `append` gives each publication the next offset: 1, 2, 3, … Offsets aren't reused while the epoch stands.
2. What is stored is always the newest, without a hole, up to the top: only the oldest are dropped. So a
   publication's offset says where it is stored.
3. Dropping a publication doesn't touch the top position: offsets go on after everything has gone.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from hubbub.model.publication import Kind, Member, Position, Publication

PUBLICATION_OVERHEAD_BYTES = 200
"""What a stored publication weighs besides its data, roughly: so that empty messages aren't free. (What its publisher
has to show of itself is counted besides, as if it weren't one object for all that it says.)"""

NOTHING: Final[deque[Publication]] = deque(maxlen=0)
"""Shared by all that store nothing: a deque of one's own takes 700 bytes, even if it is empty."""


class History:
    """One room's log. Bounds are passed to `append` and `expire`, so that they can change while running."""

    __slots__ = ("_bytes", "_offset", "_publications", "epoch", "room", "touched")

    def __init__(self, room: str, epoch: str, now: float) -> None:
        self.room = room
        self.epoch = epoch
        self.touched = now  # when it last accepted a publication, or was last seen to be in use
        self._offset = 0
        self._publications = NOTHING
        self._bytes = 0

    @property
    def position(self) -> Position:
        """The top: where the next publication will follow."""
        return Position(self.epoch, self._offset)

    @property
    def size_bytes(self) -> int:
        """What is stored, with an estimate for each publication's own weight; 0 only if nothing is."""
        return self._bytes

    @property
    def newest(self) -> Publication:
        """What was published last, of a history that stores something."""
        return self._publications[-1]

    def __len__(self) -> int:
        return len(self._publications)

    def append(
        self,
        data: bytes,
        kind: Kind,
        publisher: Member | None,
        now: float,
        *,
        size_max: int,
        bytes_max: int,
        tags: Mapping[str, str] | None = None,
    ) -> Publication:
        """Accept `data` as the next publication and return it; then drop the oldest beyond the bounds."""
        self._offset = offset = self._offset + 1
        self.touched = now
        publication = Publication(self.room, self.epoch, offset, data, kind, now, size_max > 0, publisher, tags)
        self._keep((publication,), _size(publication), size_max, bytes_max)
        return publication

    def append_all(
        self,
        messages: Sequence[bytes],
        kind: Kind,
        publishers: Sequence[Member | None],
        now: float,
        *,
        size_max: int,
        bytes_max: int,
    ) -> list[Publication]:
        """As `append`, for several, one after the other."""
        first, stored, room, epoch = self._offset + 1, size_max > 0, self.room, self.epoch
        self._offset += len(messages)
        self.touched = now
        publications = [
            Publication(room, epoch, offset, data, kind, now, stored, publisher)
            for offset, (data, publisher) in enumerate(zip(messages, publishers, strict=True), first)
        ]
        self._keep(publications, sum(map(_size, publications)), size_max, bytes_max)
        return publications

    def recent(self, limit: int) -> list[Publication]:
        """Return the last `limit` stored publications, oldest first; fewer if there are fewer."""
        count = len(self._publications)
        return self._between(max(0, count - limit), count)

    def slice(self, since: int | None, limit: int, reverse: bool) -> list[Publication]:
        """Return at most `limit` stored publications that follow the offset `since`, or precede it in reverse.

        Without `since` they begin with the oldest stored; in reverse, with the newest.
        """
        count = len(self._publications)
        dropped = self._offset - count  # the offset before the oldest stored
        if reverse:
            stop = count if since is None else min(max(0, since - 1 - dropped), count)
            return self._between(max(0, stop - limit), stop)[::-1]
        start = 0 if since is None else min(max(0, since - dropped), count)
        return self._between(start, min(start + limit, count))

    def expire(self, accepted_before: float) -> None:
        """Drop what was accepted before that time."""
        while self._bytes and self._publications[0].time < accepted_before:
            self._drop_oldest()

    def clear(self) -> None:
        """Drop everything."""
        self._publications = NOTHING
        self._bytes = 0

    def _keep(self, publications: Sequence[Publication], size: int, size_max: int, bytes_max: int) -> None:
        if size_max <= 0:
            self.clear()  # what it stored before it was told to store nothing doesn't go up to the top any more
            return
        if not self._bytes:
            self._publications = deque()
        stored = self._publications
        stored.extend(publications)
        size += self._bytes
        while len(stored) > size_max or size > bytes_max:
            size -= _size(stored.popleft())
        self._bytes = size
        if not size:
            self._publications = NOTHING

    def _between(self, start: int, stop: int) -> list[Publication]:
        """Return the stored publications from one place to another, walking there from the nearer end."""
        count = len(self._publications)
        if start < count - stop:
            return list(islice(self._publications, start, stop))
        return list(islice(reversed(self._publications), count - stop, count - start))[::-1]

    def _drop_oldest(self) -> None:
        self._bytes -= _size(self._publications.popleft())
        if not self._bytes:
            self._publications = NOTHING


def _size(publication: Publication) -> int:
    size = len(publication.data) + PUBLICATION_OVERHEAD_BYTES
    publisher, tags = publication.publisher, publication.tags
    if publisher is not None and (publisher.info or publisher.room_info):
        size += len(publisher.info) + len(publisher.room_info)
    return size if tags is None else size + sum(len(name) + len(value) + 100 for name, value in tags.items())
