"""What has happened in a room, cut into pieces: each encoded once, for all who get the same.

Usually that is one piece a dialect. Only who has just joined gets a part of it, what came after it, and only those who
asked hear of joins and leaves.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hubbub.core.rooms import Room
from hubbub.hub.waiting import PIECE_BYTES_MAX, Event
from hubbub.model.publication import Publication
from hubbub.model.subscriber import Encoder, Outlet, Subscriber

CUT_BYTES_MAX = 2 * PIECE_BYTES_MAX
"""A piece is cut where it is larger than that: what surrounds the data may be many times the data."""


class Delivery(msgspec.Struct, frozen=True):
    """One piece for many: `frames` complete frames, to be given to each of `outlets`.

    `publications` counts what has been delivered by then; a piece that goes on in the next one counts none.
    """

    data: bytes
    frames: int
    publications: int
    outlets: Sequence[Outlet]


def deliver(
    room: Room, newcomers: Mapping[Subscriber, int], events: Sequence[Event], publications: int
) -> Iterator[Delivery]:
    """Give who gets what, each piece made when the one before has been given away: together they may be much.

    Args:
        room: with its subscribers, who stay the same meanwhile.
        newcomers: those who have just joined, and how many of the events were before that.
        events: in their order.
        publications: how many of them are publications.
    """
    alike = not newcomers and publications == len(events)
    for encoder, group in room.groups.items():
        frames = [_encode(encoder, event) for event in events]
        if alike:
            yield from _pieces(frames, publications, list(group.values()))
            continue
        spoken = [frame for frame, event in zip(frames, events, strict=True) if isinstance(event, Publication)]
        before = list(itertools.accumulate((isinstance(event, Publication) for event in events), initial=0))
        parts: dict[tuple[int, bool], list[Outlet]] = {}  # from which event on, with joins or not
        for subscriber, outlet in group.items():
            part = newcomers.get(subscriber, 0), subscriber in room.watchers
            parts.setdefault(part, []).append(outlet)
        for (start, watches), outlets in parts.items():
            heard = frames[start:] if watches else spoken[before[start] :]
            yield from _pieces(heard, publications - before[start], outlets)


def deliver_to(room: Room, subscriber: Subscriber, events: Sequence[Event]) -> Delivery:
    """Return what one subscriber gets of it, alone and ahead of the others, as it is about to leave."""
    heard = events[room.newcomers.get(subscriber, 0) :]
    said = [event for event in heard if isinstance(event, Publication)]
    frames = [_encode(subscriber.encoder, event) for event in (heard if subscriber in room.watchers else said)]
    return Delivery(b"".join(frames), len(frames), len(said), [subscriber.outlet])


def _pieces(frames: Sequence[bytes], publications: int, outlets: Sequence[Outlet]) -> Iterator[Delivery]:
    """Give all frames in one piece, or in several where that would be far too large."""
    if not frames:
        return
    data = b"".join(frames)
    if len(data) <= CUT_BYTES_MAX:
        yield Delivery(data, len(frames), publications, outlets)
        return
    start = size = 0
    for stop, frame in enumerate(frames, 1):
        size += len(frame)
        if size >= PIECE_BYTES_MAX or stop == len(frames):
            counted = publications if stop == len(frames) else 0  # with the last
            yield Delivery(b"".join(frames[start:stop]), stop - start, counted, outlets)
            start, size = stop, 0


def _encode(encoder: Encoder, event: Event) -> bytes:
    if isinstance(event, Publication):
        return encoder.encode_publication(event)
    return encoder.encode_presence(event)
