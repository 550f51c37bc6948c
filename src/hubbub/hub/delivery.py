"""What has happened in a room, cut into pieces: each encoded once, for all who get the same.

Usually that is one piece a dialect. Only who has just joined gets a part of it, what came after it, and only those who
asked hear of joins and leaves.
"""

from collections.abc import Mapping, Sequence

import msgspec

from hubbub.core.rooms import Room
from hubbub.model.publication import Presence, Publication
from hubbub.model.subscriber import Encoder, Outlet, Subscriber

Event = Publication | Presence


class Delivery(msgspec.Struct, frozen=True):
    """One piece for many: `frames` complete frames, so many of them publications, to be given to each of `outlets`."""

    data: bytes
    frames: int
    publications: int
    outlets: Sequence[Outlet]


def deliver(
    room: Room, newcomers: Mapping[Subscriber, int], events: Sequence[Event], publications: int
) -> list[Delivery]:
    """Return who gets what.

    Args:
        room: with its subscribers.
        newcomers: those who have just joined, and how many of the events were before that.
        events: in their order.
        publications: how many of them are publications.
    """
    alike = not newcomers and publications == len(events)
    deliveries: list[Delivery] = []
    for encoder, group in room.groups.items():
        if alike:
            data = b"".join(map(encoder.encode_publication, events))  # type: ignore[arg-type]  # they all are
            deliveries.append(Delivery(data, len(events), len(events), list(group.values())))
            continue
        frames = [_encode(encoder, event) for event in events]
        parts: dict[tuple[int, bool], list[Outlet]] = {}  # from which event on, with joins or not
        for subscriber, outlet in group.items():
            part = newcomers.get(subscriber, 0), subscriber in room.watchers
            parts.setdefault(part, []).append(outlet)
        deliveries += (_piece(events, frames, start, watches, outlets) for (start, watches), outlets in parts.items())
    return [delivery for delivery in deliveries if delivery.frames]


def deliver_to(room: Room, subscriber: Subscriber, events: Sequence[Event]) -> Delivery:
    """Return what one subscriber gets of it, alone and ahead of the others, as it is about to leave."""
    heard = events[room.newcomers.get(subscriber, 0) :]
    frames = [_encode(subscriber.encoder, event) for event in heard]
    return _piece(heard, frames, 0, subscriber in room.watchers, [subscriber.outlet])


def _piece(
    events: Sequence[Event], frames: Sequence[bytes], start: int, watches: bool, outlets: Sequence[Outlet]
) -> Delivery:
    indices = [index for index in range(start, len(events)) if watches or isinstance(events[index], Publication)]
    publications = sum(isinstance(events[index], Publication) for index in indices)
    return Delivery(b"".join([frames[index] for index in indices]), len(indices), publications, outlets)


def _encode(encoder: Encoder, event: Event) -> bytes:
    if isinstance(event, Publication):
        return encoder.encode_publication(event)
    return encoder.encode_presence(event)
