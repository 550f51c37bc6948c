"""P1, P2 and P3 as properties of the pure core: random lives of a hub, against a model of thirty lines.

No task, no I/O, no clock: the hub's state is driven by hand, in the way in which the hub task drives it, but with the
hand-outs at random moments.
"""

from collections.abc import Mapping

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hubbub.config import Settings
from hubbub.core.frames import BINARY, FIN, TEXT
from hubbub.core.rooms import Rooms
from hubbub.dialects.plain import PlainDialect
from hubbub.engines.memory import MemoryEngine
from hubbub.hub.state import Hub
from hubbub.hub.waiting import PIECE_BYTES_MAX, PIECE_EVENTS_MAX
from hubbub.model.command import (
    Answer,
    Done,
    Publish,
    Published,
    PublishRun,
    PublishRuns,
    Refusal,
    Refused,
    RemoveHistory,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from hubbub.model.end import Disconnect, End
from hubbub.model.notice import NobodyTold
from hubbub.model.publication import Kind, Member, Position
from hubbub.model.subscriber import Loss
from outlets import OnlyOffers

ROOMS = ("north", "south")
HISTORY_SIZE = 5


class Ear:
    """A subscriber that keeps what it is offered, frame by frame."""

    def __init__(self, encoder: PlainDialect) -> None:
        self.encoder = encoder
        self.gone = False
        self.was_in: Mapping[str, bool] = {}
        self.outlet = OnlyOffers(self.offer)
        self.member = Member("", str(id(self)))
        self.heard: list[tuple[int, bytes]] = []
        self.history: list[bytes] = []
        self.ended: End | None = None
        self.lost: list[tuple[str, Loss]] = []

    def offer(self, data: bytes, frames: int) -> None:
        before = len(self.heard)
        while data:  # short frames only: two bytes of header
            self.heard.append((data[0], data[2 : 2 + data[1]]))
            data = data[2 + data[1] :]
        assert len(self.heard) == before + frames

    def evict(self, end: End, detail: str = "") -> None:
        self.ended = end

    def dismiss(self, disconnect: Disconnect) -> None:
        raise AssertionError

    def introduce(self, member: Member) -> bool:
        self.member = member
        return True

    def flush(self) -> None:
        pass

    def lose(self, room: str, loss: Loss) -> None:
        self.lost.append((room, loss))

    def reply(self, answer: Answer) -> None:
        if self.gone:
            assert answer == Refused(Refusal.STOPPING)
            return
        assert isinstance(answer, Subscribed)
        self.history = [publication.data for publication in answer.publications]


class Told(NobodyTold):
    """Follows what the notices say."""

    def __init__(self) -> None:
        self.there: set[tuple[str, str]] = set()
        self.rooms: set[str] = set()

    def opened(self, room: str) -> None:
        assert room not in self.rooms
        self.rooms.add(room)

    def emptied(self, room: str) -> None:
        assert not any(room == other for other, _ in self.there)
        self.rooms.remove(room)

    def joined(self, room: str, member: Member) -> None:
        assert room in self.rooms
        assert (room, member.client) not in self.there
        self.there.add((room, member.client))

    def left(self, room: str, member: Member) -> None:
        assert room in self.rooms
        self.there.remove((room, member.client))


class HubLife(RuleBasedStateMachine):
    """The model: what each room has accepted, and where in it each subscriber came in."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Told()
        rooms = Rooms(self.told)
        limits = Settings(history_size=HISTORY_SIZE)
        engine = MemoryEngine(limits, lambda: "epoch", rooms.__contains__)
        self.hub = Hub(engine, rooms, limits)
        self.plain = PlainDialect()
        self.other = PlainDialect()  # a second dialect, as far as the rooms can tell
        self.accepted: dict[str, list[tuple[int, bytes]]] = {room: [] for room in ROOMS}
        self.stored: dict[str, list[bytes]] = {room: [] for room in ROOMS}
        self.tops: dict[str, int] = dict.fromkeys(ROOMS, 0)
        self.came_in: list[tuple[Ear, str, int]] = []
        self.handed_out: dict[str, int] = dict.fromkeys(ROOMS, 0)
        self.counts: dict[int, int] = {}

    @rule(room=st.sampled_from(ROOMS), publisher=st.integers(0, 3), binary=st.booleans(), keep=st.booleans())
    def publish(self, room: str, publisher: int, binary: bool, keep: bool) -> None:
        """A publisher says its next number; what isn't kept has its place among the others, but no offset."""
        number = self.counts[publisher] = self.counts.get(publisher, 0) + 1
        data = f"{publisher}:{number}".encode()
        answers: list[Answer] = []
        kind = Kind.BINARY if binary else Kind.TEXT
        self.hub.publish(Publish(room, data, kind, reply=answers.append, keep=keep), now=0.0)
        self.accepted[room].append((FIN | (BINARY if binary else TEXT), data))
        if keep:
            self.tops[room] += 1
            self.stored[room] = [*self.stored[room], data][-HISTORY_SIZE:]
        assert answers == [Published(Position("epoch", self.tops[room]) if keep else None)]

    @rule(room=st.sampled_from(ROOMS), binary=st.booleans(), who=st.lists(st.integers(0, 9), min_size=1, max_size=5))
    def say_together(self, room: str, binary: bool, who: list[int]) -> None:
        """Those who are in the room say a few things each; who isn't may not, and is told; the others' stand."""
        inside = [ear for ear, where, _ in self.came_in if where == room]
        stranger = Ear(self.plain)
        runs: list[PublishRun] = []
        kind, first = (Kind.BINARY, FIN | BINARY) if binary else (Kind.TEXT, FIN | TEXT)
        for index in who:
            ear = inside[index % len(inside)] if inside and index < 8 else stranger
            publisher = 100 + index
            messages: list[bytes] = []
            for _ in range(index % 3 + 1):
                number = self.counts[publisher] = self.counts.get(publisher, 0) + 1
                messages.append(b"%d:%d" % (publisher, number))
            runs.append(PublishRun(room, messages, sum(map(len, messages)), kind, ear.member, ear))
            if ear is not stranger:
                self.accepted[room] += [(first, message) for message in messages]
                self.tops[room] += len(messages)
                self.stored[room] = [*self.stored[room], *messages][-HISTORY_SIZE:]
        together = PublishRuns.begin(runs[0])
        together.runs += runs[1:]
        self.hub.publish_runs(together, now=0.0)
        assert (stranger.ended is End.NOT_PERMITTED) == any(run.asker is stranger for run in runs)

    @rule(room=st.sampled_from(ROOMS))
    def remove_history(self, room: str) -> None:
        """The server lets go of what is kept: offsets go on."""
        answers: list[Answer] = []
        self.hub.carry_out(RemoveHistory(None, room, answers.append), now=0.0)
        assert answers == [Done()]
        self.stored[room] = []

    @precondition(lambda self: self.came_in)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """The server takes somebody out of the room: it hears what was before that, then that it is out."""
        index = data.draw(st.integers(0, len(self.came_in) - 1))
        ear, room, start = self.came_in.pop(index)
        answers: list[Answer] = []
        self.hub.carry_out(Unsubscribe(ear, room, answers.append, by_server=True), now=0.0)
        assert answers == [Done()]
        assert ear.heard == self.accepted[room][start:]
        assert ear.lost == [(room, Loss.REMOVED)]

    @rule(room=st.sampled_from(ROOMS), history=st.integers(0, 2 * HISTORY_SIZE), second=st.booleans())
    def subscribe(self, room: str, history: int, second: bool) -> None:
        """Somebody comes in, whatever waits there; that isn't for it (rule 2 of the hub's state)."""
        ear = Ear(self.other if second else self.plain)
        self.hub.carry_out(Subscribe(ear, room, ear.reply, history), now=0.0)
        self.came_in.append((ear, room, len(self.accepted[room])))
        assert ear.history == (self.stored[room][-history:] if history else [])

    @precondition(lambda self: self.came_in)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Somebody goes; what it has heard is a run from where it came in, and it hears nothing after."""
        index = data.draw(st.integers(0, len(self.came_in) - 1))
        ear, room, start = self.came_in.pop(index)
        ear.gone = True
        self.hub.leave(ear)
        self.hub.leave(ear)
        heard = list(ear.heard)
        assert heard == self.accepted[room][start : start + len(heard)]
        self.hub.carry_out(Subscribe(ear, room, ear.reply), now=0.0)  # a late command of one who has gone
        self.hand_out(room)
        assert ear.heard == heard

    @rule(room=st.sampled_from(ROOMS))
    def hand_out(self, room: str) -> None:
        """The room's subscribers get what it has accepted."""
        for delivery in self.hub.take(room):
            for outlet in delivery.outlets:
                outlet.offer(delivery.data, delivery.frames)
        self.handed_out[room] = len(self.accepted[room])

    @invariant()
    def everyone_has_heard_the_same(self) -> None:
        """P1 and P2: each has heard exactly what was handed out since it came in, in the room's one order."""
        for ear, room, start in self.came_in:
            assert ear.heard == self.accepted[room][start : max(start, self.handed_out[room])]

    @invariant()
    def each_publisher_keeps_its_order(self) -> None:
        """P3: in each ear, each publisher's numbers ascend."""
        for ear, _, _ in self.came_in:
            last: dict[bytes, int] = {}
            for _, said in ear.heard:
                publisher, _, number = said.partition(b":")
                assert int(number) > last.get(publisher, 0)
                last[publisher] = int(number)

    @invariant()
    def nothing_is_left_of_who_has_gone(self) -> None:
        """P7: as many subscriptions as subscribers, no room without one."""
        statistics = self.hub.statistics()
        assert statistics.subscriptions == len(self.came_in)
        assert statistics.rooms == len({room for _, room, _ in self.came_in})

    @invariant()
    def joins_and_leaves_are_told(self) -> None:
        """P7, as a back end is told: each join has one leave, after it, between a room's opening and its emptying."""
        there = {(room, ear.member.client) for ear, room, _ in self.came_in}
        assert self.told.there == there
        assert self.told.rooms == {room for room, _ in there}


HubLife.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_life_of_a_hub = HubLife.TestCase


def test_what_waits_in_a_room_is_handed_out_before_it_is_much() -> None:
    """In events as in bytes: a piece of many tiny frames would make somebody a slow consumer who isn't."""
    rooms = Rooms()
    limits = Settings()
    hub = Hub(MemoryEngine(limits, lambda: "epoch", rooms.__contains__), rooms, limits)
    ear = Ear(PlainDialect())
    hub.carry_out(Subscribe(ear, "north", ear.reply), now=0.0)
    run = PublishRun("north", [b"x"] * 32, 32, Kind.TEXT, ear.member, ear)
    says = 0
    while not hub.publish_runs(PublishRuns.begin(run), now=0.0):
        says += 1
        assert says <= PIECE_EVENTS_MAX / 32
    (delivery,) = hub.take("north")
    assert PIECE_EVENTS_MAX <= delivery.frames < PIECE_EVENTS_MAX + 32
    assert not hub.publish(Publish("north", b"x", Kind.TEXT), now=0.0)
    assert hub.publish(Publish("north", b"x" * PIECE_BYTES_MAX, Kind.TEXT), now=0.0)
