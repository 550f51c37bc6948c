"""What each subscriber of a room is handed out, against the simplest way to say it; and how much work that is."""

from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
from hypothesis import given

import hubbub.hub.delivery
from dialect_driver import Driver
from hubbub.config import Settings
from hubbub.core.rooms import Room
from hubbub.hub.delivery import Delivery, deliver
from hubbub.hub.state import ALONE_EVENTS_MAX
from hubbub.hub.waiting import Event
from hubbub.model.command import Publish
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Kind, Member, Position, Presence, Publication
from hubbub.model.subscriber import Loss, Subscriber
from outlets import OnlyOffers

PIECE_BYTES, CUT_BYTES = 40, 80


class Marking:
    """A dialect of which the frames say what they are, and by which encoder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode_publication(self, publication: Publication) -> bytes:
        return b"<%s %d %s>" % (self.name.encode(), publication.offset, publication.data)

    def encode_presence(self, presence: Presence) -> bytes:
        return b"<%s %s %s>" % (self.name.encode(), presence.member.user.encode(), b"+" if presence.joined else b"-")


class Ear:
    """A subscriber that keeps what it is offered."""

    def __init__(self, encoder: Marking) -> None:
        self.encoder = encoder
        self.outlet = OnlyOffers(self.take)
        self.member = Member("", "")
        self.gone = False
        self.was_in: Mapping[str, bool] = {}
        self.heard: list[bytes] = []
        self.pieces: list[bytes] = []

    def take(self, data: bytes, frames: int) -> None:
        found = [frame + b">" for frame in data.split(b">")[:-1]]
        assert len(found) == frames
        self.heard += found
        self.pieces.append(data)

    def flush(self) -> None: ...

    def evict(self, end: End, detail: str = "") -> None: ...

    def dismiss(self, disconnect: Disconnect) -> None: ...

    def introduce(self, member: Member) -> bool:
        raise AssertionError

    def lose(self, room: str, loss: Loss) -> None: ...


DIALECTS = [Marking("a"), Marking("b")]
publications = st.builds(
    lambda size: Publication("room", "e", 1, b"x" * size, Kind.TEXT, 0.0),
    st.integers(0, 120),
)
presences = st.builds(
    lambda user, joined: Presence("room", Member(user, "c"), joined), st.sampled_from("xyz"), st.booleans()
)
ears = st.tuples(st.sampled_from(DIALECTS), st.booleans(), st.integers(0, 12))


@given(
    events=st.lists(publications, max_size=12) | st.lists(publications | presences, max_size=12),
    crowd=st.lists(ears, min_size=1, max_size=8),
    with_newcomers=st.booleans(),
)
def test_everyone_hears_what_is_theirs(
    events: list[Event], crowd: list[tuple[Marking, bool, int]], with_newcomers: bool
) -> None:
    """Everything since it came in, presences only if it watches, in order, in pieces of a bounded size."""
    room = Room("room", Position("e", 0))
    newcomers: dict[Subscriber, int] = {}
    expected: list[tuple[Ear, list[bytes]]] = []
    for encoder, watches, start in crowd:
        ear = Ear(encoder)
        room.groups.setdefault(encoder, {})[ear] = ear.outlet
        if watches:
            room.watchers.add(ear)
        if with_newcomers and start <= len(events):
            newcomers[ear] = start
        theirs = events[newcomers.get(ear, 0) :]
        heard = [
            encoder.encode_publication(event) if isinstance(event, Publication) else encoder.encode_presence(event)
            for event in theirs
            if watches or isinstance(event, Publication)
        ]
        expected.append((ear, heard))
    count = sum(isinstance(event, Publication) for event in events)
    delivered = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hubbub.hub.delivery, "PIECE_BYTES_MAX", PIECE_BYTES)
        patch.setattr(hubbub.hub.delivery, "CUT_BYTES_MAX", CUT_BYTES)
        for delivery in deliver(room, newcomers, events, count):
            hand_over(delivery)
            delivered += delivery.publications * len(delivery.outlets)
    said = 0
    for ear, heard in expected:
        assert ear.heard == heard
        longest = max(map(len, heard), default=0)
        assert all(len(piece) <= max(CUT_BYTES, PIECE_BYTES + longest) for piece in ear.pieces)
        said += sum(isinstance(event, Publication) for event in events[newcomers.get(ear, 0) :])
    assert delivered == said


def hand_over(delivery: Delivery) -> None:
    """Give a piece to those who get it."""
    assert delivery.frames
    for outlet in delivery.outlets:
        outlet.offer(delivery.data, delivery.frames)


def test_who_leave_together_cost_no_more_than_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in a room isn't encoded anew, all of it, for each of them."""
    encoded = 0
    encode = hubbub.hub.delivery._encode

    def counted(*what: object) -> bytes:
        nonlocal encoded
        encoded += 1
        return encode(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(hubbub.hub.delivery, "_encode", counted)
    driver = Driver(Settings(insecure=True))
    clients = [driver.connect("user") for _ in range(200)]
    for client in clients:
        client.ask("subscribe", channel="room")
        driver.carry_out_all(client)
    encoded = 0
    for _ in range(200):
        driver.carry_out(Publish("room", b"1", Kind.JSON))
    for client in clients:
        client.ask("unsubscribe", channel="room")
        for command, _ in client.send():
            driver.carry_out(command)
    driver.hand_out_all()
    assert driver.hub.statistics().deliveries == 200 * 200
    assert encoded <= 200 + 200 * ALONE_EVENTS_MAX
