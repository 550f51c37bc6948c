"""P4 and P5: what a returning client is told it missed is exactly that, or it is told that it can't be known.

The pure rule by cases; then with an engine under random lives that have everything: limits too small for what is
kept, namespaces with different ages, reloads that change them, rooms that make way.
"""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.history import History
from hubbub.core.recovery import recover
from hubbub.engines.base import Slice
from hubbub.engines.memory import MemoryEngine
from hubbub.model.publication import Kind, Position, Publication


def stretch(*offsets: int) -> list[Publication]:
    """Return publications with these offsets."""
    return [Publication("room", "now", offset, b"x", Kind.TEXT, 0.0) for offset in offsets]


@pytest.mark.parametrize(
    ("since", "top", "given", "recovered"),
    [
        (Position("now", 3), 5, stretch(4, 5), True),
        (Position("now", 5), 5, [], True),
        (Position("now", 0), 0, [], True),
        (Position("now", 0), 2, stretch(1, 2), True),
        (Position("", 3), 5, stretch(4, 5), True),
        (Position("", 5), 5, [], True),
        (Position("old", 3), 5, stretch(4, 5), False),
        (Position("old", 5), 5, [], False),
        (Position("now", 2), 5, stretch(4, 5), False),  # 3 has been dropped
        (Position("now", 3), 6, stretch(4, 5), False),  # 6 is beyond the limit
        (Position("now", 3), 5, [], False),  # all of it has been dropped
        (Position("now", 6), 5, [], False),  # nobody has published that
        (Position("", 6), 5, [], False),
    ],
)
def test_recover(since: Position, top: int, given: list[Publication], recovered: bool) -> None:
    """Each case of the rule."""
    assert recover(Position("now", top), given, since) == (given if recovered else None)


@pytest.mark.parametrize("since", [None, 0, 1, 2, 3, 4, 5, 6, 7, 99])
@pytest.mark.parametrize("limit", [0, 1, 2, 99])
def test_slices(since: int | None, limit: int) -> None:
    """Of the offsets 3, 4, 5, 6: those after, or before, and no more than wanted."""
    history = History("room", "epoch", 0.0)
    for _ in range(6):
        history.append(b"x", Kind.TEXT, None, 0.0, size_max=4, bytes_max=9999)
    after = [offset for offset in (3, 4, 5, 6) if since is None or offset > since]
    before = [offset for offset in (6, 5, 4, 3) if since is None or offset < since]
    assert [publication.offset for publication in history.slice(since, limit, False)] == after[:limit]
    assert [publication.offset for publication in history.slice(since, limit, True)] == before[:limit]


ROOMS = st.sampled_from(["room", "other", "a:1", "a:2", "b:1", "b:2", "c:1"])
AGES = st.sampled_from([1.0, 3.0, 10.0, 40.0])
NAMESPACES = st.builds(
    Namespace,
    history_size=st.sampled_from([0, 2, 5, 50]),
    history_bytes_max=st.sampled_from([256, 1000, 100_000]),
    history_seconds_max=AGES,
    history_meta_seconds_max=AGES,
)


class ReturningClients(RuleBasedStateMachine):
    """The model: everything that was ever accepted, by room and epoch. Clients return with any position of it."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Settings(rooms_max=5, histories_bytes_max=3000, history_meta_seconds_max=20.0, history_size=5)
        self.in_use: set[str] = set()
        self.epochs = itertools.count(1)
        self.engine = MemoryEngine(self.limits, lambda: f"epoch {next(self.epochs)}", self.in_use.__contains__)
        self.accepted: dict[tuple[str, str], list[Publication]] = {}
        self.epoch_of: dict[str, str] = {}  # last seen
        self.now = 0.0

    def check_epoch(self, room: str, position: Position) -> list[Publication]:
        """While a room is in use its epoch stays, and the top is what was accepted last. Return what was accepted."""
        if room in self.in_use:
            assert self.epoch_of[room] == position.epoch
        if self.epoch_of.get(room) != position.epoch:
            assert all(epoch != position.epoch for _, epoch in self.accepted), "an epoch is one life of one room"
            self.accepted[room, position.epoch] = []
            # P9: whoever isn't in use makes way for a new one
            assert self.engine.statistics().histories <= max(self.limits.rooms_max, len(self.in_use) + 1)
        self.epoch_of[room] = position.epoch
        return self.accepted[room, position.epoch]

    def read(self, room: str, since: int | None, limit: int, reverse: bool = False) -> Slice:
        """Read, and check what holds for every slice."""
        past = self.engine.read(room, self.now, since, limit, reverse)
        accepted = self.check_epoch(room, past.position)
        assert past.position.offset == len(accepted)
        told = past.publications[::-1] if reverse else past.publications
        assert len(told) <= limit
        if told:
            assert told == accepted[told[0].offset - 1 : told[-1].offset]
            age = (self.limits.namespace(room) or self.limits).history_seconds_max
            assert all(publication.time >= self.now - age for publication in told)
            assert len(told) == limit or reverse or told[-1].offset == len(accepted)
        return past

    @rule(room=ROOMS, size=st.sampled_from([0, 50, 300, 1500]))
    def append(self, room: str, size: int) -> None:
        """P4: what is accepted is told with its place, which nothing has had before."""
        publication = self.engine.append(room, bytes(size), Kind.TEXT, self.now)
        accepted = self.check_epoch(room, publication.position)
        accepted.append(publication)
        assert publication.offset == len(accepted)
        assert self.engine.statistics().history_bytes <= self.limits.histories_bytes_max

    @rule(room=ROOMS, since=st.none() | st.integers(0, 12), limit=st.integers(0, 8), reverse=st.booleans())
    def look(self, room: str, since: int | None, limit: int, reverse: bool) -> None:
        """Any slice is the same part of everything that is stored."""
        everything = self.read(room, None, 1000).publications
        if reverse:
            everything = everything[::-1]
        if since is not None:
            everything = [each for each in everything if (each.offset < since if reverse else each.offset > since)]
        assert self.read(room, since, limit, reverse).publications == everything[:limit]

    @rule(data=st.data(), limit=st.sampled_from([1, 3, 100]), ahead=st.sampled_from([0, 0, 0, 1]))
    def come_back(self, data: st.DataObject, limit: int, ahead: int) -> None:
        """P5: to be recovered means to be given exactly what was missed; and it happens wherever it can."""
        if not self.accepted:
            return
        room, epoch = data.draw(st.sampled_from(sorted(self.accepted)))
        since = Position(epoch, data.draw(st.integers(0, len(self.accepted[room, epoch]))) + ahead)
        stored = self.read(room, None, 1000).publications
        past = self.read(room, since.offset, limit)
        missed = recover(past.position, past.publications, since)
        really = self.accepted[room, epoch][since.offset :]
        same = past.position.epoch == epoch and since.offset <= past.position.offset
        possible = same and len(really) <= limit and stored[len(stored) - len(really) :] == really
        assert missed == (really if possible else None)

    @rule(room=ROOMS)
    def come_or_go(self, room: str) -> None:
        """Who comes in reads first, as the hub does."""
        if room in self.in_use:
            self.in_use.remove(room)
        else:
            self.read(room, None, 0)
            self.in_use.add(room)

    @rule(half_seconds=st.integers(1, 30), expire=st.booleans())
    def wait(self, half_seconds: int, expire: bool) -> None:
        """Time passes, and is noticed now or later."""
        self.now += half_seconds / 2
        if expire:
            self.engine.expire(self.now)

    @rule(name=st.sampled_from(["a", "b", "c"]), namespace=st.none() | NAMESPACES)
    def reload(self, name: str, namespace: Namespace | None) -> None:
        """A namespace comes, changes or goes."""
        others = {key: value for key, value in self.limits.namespaces.items() if key != name}
        self.limits.namespaces = others if namespace is None else {**others, name: namespace}


ReturningClients.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_returning_clients = pytest.mark.no_cover(ReturningClients.TestCase)  # twice as fast; others reach the same lines
