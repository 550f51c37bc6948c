"""The memory engine against the engine's contract, and its bounds in count, bytes, age and rooms.

At the end random lives of it, against a model that keeps everything in lists.
"""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.history import PUBLICATION_OVERHEAD_BYTES
from hubbub.engines.memory import MemoryEngine
from hubbub.model.publication import Kind, Member, Publication

TEXT = Kind.TEXT


def make_engine(in_use: set[str] | None = None, **limits: object) -> MemoryEngine:
    """Return an engine whose epochs are numbered."""
    epochs = itertools.count(1)
    rooms = in_use if in_use is not None else set()
    return MemoryEngine(Settings(**limits), lambda: f"epoch {next(epochs)}", rooms.__contains__)  # type: ignore[arg-type]


def stored(engine: MemoryEngine, room: str = "room", now: float = 0.0, limit: int = 1000) -> list[bytes]:
    """Return the data of what is kept, oldest first."""
    return [publication.data for publication in engine.recent(room, limit, now).publications]


@given(
    sizes=st.lists(st.integers(0, 400), max_size=30),
    size_max=st.integers(0, 8),
    bytes_max=st.integers(256, 2000),
    limit=st.integers(0, 12),
)
def test_history_is_the_newest_that_fits(sizes: list[int], size_max: int, bytes_max: int, limit: int) -> None:
    """A run without a hole that ends at the top; as long as the bounds allow; offsets count on from 1."""
    engine = make_engine(history_size=size_max, history_bytes_max=bytes_max)
    accepted = [engine.append("room", bytes(size), TEXT, 0.0) for size in sizes]
    assert [publication.offset for publication in accepted] == list(range(1, len(sizes) + 1))
    kept: list[int] = []
    for size in reversed(sizes):
        if len(kept) >= size_max or sum(kept) + (size + PUBLICATION_OVERHEAD_BYTES) > bytes_max:
            break
        kept.append(size + PUBLICATION_OVERHEAD_BYTES)
    expected = accepted[len(accepted) - len(kept) :]
    everything = engine.recent("room", 1000, 0.0)
    assert list(everything.publications) == expected
    assert everything.position.offset == len(sizes)
    assert list(engine.recent("room", limit, 0.0).publications) == (expected[-limit:] if limit else [])
    assert engine.statistics().history_bytes == sum(kept)


def test_what_is_too_old_is_not_shown_and_not_kept() -> None:
    """Age counts from acceptance; the rest of a room stays."""
    engine = make_engine(history_seconds_max=10.0)
    for second in range(5):
        engine.append("room", str(second).encode(), TEXT, float(second))
    assert stored(engine, now=12.5) == [b"3", b"4"]
    engine.append("room", b"new", TEXT, 13.5)
    assert stored(engine, now=13.5) == [b"4", b"new"]
    engine.expire(24.0)
    statistics = engine.statistics()
    assert (statistics.publications, statistics.history_bytes) == (0, 0)


def test_a_forgotten_room_starts_a_new_epoch() -> None:
    """Offsets are never used twice under one epoch."""
    engine = make_engine(history_seconds_max=10.0, history_meta_seconds_max=90.0)
    engine.append("room", b"old", TEXT, 0.0)
    before = engine.recent("room", 0, 0.0).position
    engine.expire(100.0)
    engine.append("room", b"new", TEXT, 100.0)
    after = engine.recent("room", 0, 100.0).position
    assert (before.offset, after.offset) == (1, 1)
    assert before.epoch != after.epoch


def test_a_room_in_use_keeps_its_epoch_and_offsets() -> None:
    """However long it is quiet; only what is too old goes."""
    in_use = {"room"}
    engine = make_engine(in_use, history_seconds_max=10.0, history_meta_seconds_max=20.0)
    engine.append("room", b"old", TEXT, 0.0)
    before = engine.recent("room", 0, 0.0).position
    for second in range(100):
        engine.expire(float(second))
    assert stored(engine, now=100.0) == []
    assert engine.recent("room", 0, 100.0).position == before
    in_use.clear()
    engine.expire(200.0)
    assert engine.statistics().histories == 0


def test_room_names_cannot_be_used_up() -> None:
    """At rooms_max the one that was quiet for longest, and that nobody is in, makes way."""
    in_use = {"room 0", "room 1"}
    engine = make_engine(in_use, rooms_max=5)
    for number in range(50):
        engine.append(f"room {number}", b"x", TEXT, float(number))
    assert engine.statistics().histories == 5
    assert [stored(engine, f"room {number}", 50.0) for number in (0, 1, 49)] == [[b"x"]] * 3


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
@pytest.mark.parametrize(("in_use", "names"), [(0, 100_000), (999, 25_000)])
def test_very_many_names(in_use: int, names: int) -> None:
    """Each with a message, while some rooms stay in use: those keep their places, and the bounds hold.

    How many there are at most is settled by the first fifth.
    """
    kept = {f"kept {number}" for number in range(in_use)}
    engine = make_engine(kept, rooms_max=1000, histories_bytes_max=4 * 2**20)
    positions = {room: engine.recent(room, 0, 0.0).position for room in kept}
    most, settled = 0, 0
    for number in range(names):
        engine.append(f"name {number}", bytes(5_000), Kind.BINARY, 1.0 + number / 1000)
        if number % 100 == 0:
            statistics = engine.statistics()
            most = max(most, statistics.histories)
            assert statistics.history_bytes <= 4 * 2**20
        if number == names // 5:
            settled = most
    assert most == settled <= 1000 + 64
    assert {room: engine.recent(room, 0, 200.0).position for room in kept} == positions


def test_a_full_house_in_use_still_accepts() -> None:
    """With every history in use, a publication is accepted all the same: subscriptions are what is limited."""
    in_use = {f"room {number}" for number in range(200)}
    engine = make_engine(in_use, rooms_max=100)
    for number in range(150):
        engine.append(f"room {number}", b"x", TEXT, 0.0)
    assert engine.statistics().histories == 150


def test_what_a_publication_says_of_itself() -> None:
    """Everything it was accepted with; and that it is stored only where there is history."""
    engine = make_engine(namespaces={"bare": Namespace(history_size=0)})
    member = Member("ann", "c1", b'{"name":"Ann"}')
    told = engine.append("room", b"{}", Kind.JSON, 3.0, member)
    assert told == Publication("room", "epoch 1", 1, b"{}", Kind.JSON, 3.0, True, member)
    assert engine.statistics().history_bytes == 2 + len(member.info) + PUBLICATION_OVERHEAD_BYTES
    untold = [engine.append("bare:room", b"x", TEXT, 3.0) for _ in range(3)]
    assert [(publication.offset, publication.stored) for publication in untold] == [
        (number, False) for number in (1, 2, 3)
    ]
    assert engine.read("bare:room", 3.0, limit=9).position == untold[-1].position
    assert stored(engine, "bare:room", 3.0) == []


def test_reading_an_empty_room_begins_its_stream() -> None:
    """Its epoch stays for what is published then; a read counts as a use."""
    engine = make_engine(history_seconds_max=1.0, history_meta_seconds_max=10.0)
    first = engine.read("room", 0.0).position
    assert (first.epoch, first.offset) == ("epoch 1", 0)
    engine.expire(10.0)
    assert engine.read("room", 10.0).position == first
    engine.expire(20.0)
    assert engine.append("room", b"x", TEXT, 20.0).epoch == first.epoch
    engine.expire(30.5)
    assert engine.statistics().histories == 0


def test_a_room_keeps_its_offsets_for_longer_than_its_publications() -> None:
    """Each namespace has ages of its own."""
    quick = Namespace(history_seconds_max=1.0, history_meta_seconds_max=5.0)
    slow = Namespace(history_seconds_max=50.0, history_meta_seconds_max=2.0)  # not before its publications
    engine = make_engine(namespaces={"quick": quick, "slow": slow}, history_seconds_max=10.0)
    held = []
    for room in ("slow:room", "room", "quick:room"):
        engine.append(room, b"x", TEXT, 0.0)
    for now in (0.5, 1.5, 5.5, 10.5, 49.5, 50.5):
        engine.expire(now)
        statistics = engine.statistics()
        held.append((now, statistics.histories, statistics.publications))
    assert held == [(0.5, 3, 3), (1.5, 3, 2), (5.5, 2, 2), (10.5, 2, 1), (49.5, 2, 1), (50.5, 1, 0)]
    assert engine.append("room", b"x", TEXT, 60.0).offset == 2
    assert engine.append("quick:room", b"x", TEXT, 60.0).position.epoch == "epoch 4"


def test_the_longest_idle_of_all_namespaces_goes() -> None:
    """At rooms_max: whether it stores something or not."""
    engine = make_engine({"a:1"}, rooms_max=4, namespaces={"a": Namespace(), "b": Namespace(history_size=0)})
    rooms = ["a:1", "b:1", "c", "a:2"]
    epochs = [engine.append(room, b"x", TEXT, float(now)).epoch for now, room in enumerate(rooms)]
    engine.append("d", b"x", TEXT, 4.0)  # b:1 makes way, as a:1 is in use
    engine.append("e", b"x", TEXT, 5.0)  # c
    assert engine.statistics().histories == 4
    assert [engine.read(room, 6.0).position.epoch == epoch for room, epoch in zip(rooms, epochs, strict=True)] == [
        True,
        False,  # and as it is opened again, a:2 makes way
        False,
        False,
    ]


def test_who_is_in_use_hides_nobody() -> None:
    """At rooms_max, all at one moment: what is not in use is found, in whichever namespace."""
    in_use = {"in use", "b:in use"}
    engine = make_engine(in_use, rooms_max=4, namespaces={"b": Namespace(), "c": Namespace()})
    for room in (*sorted(in_use), *(f"{prefix}{number}" for number in range(9) for prefix in ("", "b:", "c:"))):
        engine.append(room, b"x", TEXT, 0.0)
        assert engine.statistics().histories <= 4
    assert [engine.read(room, 0.0).position.epoch for room in sorted(in_use)] == ["epoch 1", "epoch 2"]


def test_who_was_in_use_is_not_hidden_for_it() -> None:
    """However often a namespace was looked at in vain, it is its turn again."""
    in_use = {"room"}
    engine = make_engine(in_use, rooms_max=1, namespaces={"b": Namespace()})
    for name in ("room", *(f"b:{number}" for number in range(9)), "b:in use"):
        engine.read(name, 0.0)
    in_use.symmetric_difference_update({"room", "b:in use"})
    for number in range(9):
        engine.read(f"b:{number}", 0.0)
    assert engine.statistics().histories == 2


def test_the_longest_quiet_of_all_namespaces_lose_their_publications() -> None:
    """At histories_bytes_max: but neither epoch nor offset, in use or not; a read doesn't make a room less quiet."""
    each = 100 + PUBLICATION_OVERHEAD_BYTES
    engine = make_engine({"a:1"}, histories_bytes_max=3 * each, namespaces={"a": Namespace()})
    rooms = ["a:1", "b", "a:2", "c", "d"]
    for now, room in enumerate(rooms):
        engine.append(room, bytes(100), TEXT, float(now))
        engine.read("a:1", float(now))
    assert [len(stored(engine, room, 5.0)) for room in rooms] == [0, 0, 1, 1, 1]
    assert [engine.read(room, 5.0).position.offset for room in rooms] == [1] * 5
    assert engine.read("b", 5.0).position.epoch == "epoch 2"
    assert engine.statistics().history_bytes == 3 * each


def test_small_rooms_make_way_for_large_messages() -> None:
    """histories_bytes_max holds after each message, however many rooms have to lose theirs for it."""
    engine = make_engine(histories_bytes_max=300_000)
    for number in range(1_400):
        engine.append(f"small {number}", b"", TEXT, 0.0)
    for number in range(10):
        engine.append(f"large {number}", bytes(60_000), TEXT, 1.0)
        assert engine.statistics().history_bytes <= 300_000


def test_expiry_looks_only_at_what_is_due() -> None:
    """Not at each of a thousand rooms that have time, and which may be in use."""
    asked = []
    limits = Settings(history_seconds_max=10.0, history_meta_seconds_max=100.0)
    engine = MemoryEngine(limits, lambda: "epoch", lambda room: bool(asked.append(room)))  # type: ignore[func-returns-value]
    for number in range(1_000):
        engine.append(f"room {number}", b"x", TEXT, number / 10)
    for tenth in range(1_005):
        engine.expire(tenth / 10)
    assert asked == [f"room {number}" for number in range(5)]


@pytest.mark.parametrize("length", [1, 100, 1_000])
def test_little_expires_in_one_step(length: int) -> None:
    """Few publications and few histories at once, however long these are; and in the end all."""
    limits = Settings(history_seconds_max=10.0, history_meta_seconds_max=10.0, history_size=length)
    engine = MemoryEngine(limits, lambda: "epoch", lambda _: False)
    rooms = 30_000 // length
    for number in range(rooms):
        engine.append_all(f"room {number}", [b"x"] * length, TEXT, 0.0, [None] * length)
    goes_on, before = True, engine.statistics()
    while goes_on:
        goes_on = engine.expire(11.0)
        after = engine.statistics()
        assert before.publications - after.publications <= 8 * 1_000 + length
        assert before.histories - after.histories <= 1_000
        before = after
    assert before.publications == before.histories == 0


def test_who_publishes_goes_to_the_back() -> None:
    """Whoever was there first, what counts is the last publication: for expiry and for both limits."""
    each = 1 + PUBLICATION_OVERHEAD_BYTES
    engine = make_engine(history_seconds_max=10.0, history_meta_seconds_max=20.0, rooms_max=3)
    for now, room in enumerate(("busy", "quiet", "busy", "other")):
        engine.append(room, b"x", TEXT, 5.0 * now)
    engine.expire(15.5)  # 10 s after the last of "quiet"
    assert engine.statistics().history_bytes == 3 * each
    engine.append("busy", b"x", TEXT, 16.0)
    engine.expire(25.5)  # 20 s
    assert engine.statistics().histories == 2
    engine.append("busy", b"x", TEXT, 26.0)
    for room in ("new", "newer"):
        engine.append(room, b"x", TEXT, 26.0)  # "other" makes way
    assert engine.append("busy", b"x", TEXT, 26.0).offset == 5


def test_the_busy_keep_their_publications() -> None:
    """At histories_bytes_max who was published to again isn't quiet."""
    each = 100 + PUBLICATION_OVERHEAD_BYTES
    engine = make_engine(histories_bytes_max=4 * each)
    for now, room in enumerate(("busy", "quiet", "busy", "other", "new")):
        engine.append(room, bytes(100), TEXT, float(now))
    assert [len(stored(engine, room, 5.0)) for room in ("busy", "quiet", "other", "new")] == [2, 0, 1, 1]


def test_history_that_is_turned_off_and_on() -> None:
    """A reload: what is stored is never with a hole, nor below the top."""
    limits = Settings()
    engine = MemoryEngine(limits, lambda: "epoch", lambda _: False)
    for size in (5, 0, 5):
        limits.history_size = size
        engine.append("room", b"x", TEXT, 0.0)
        engine.append("room", b"y", TEXT, 0.0)
    assert [publication.offset for publication in engine.read("room", 0.0, limit=9).publications] == [5, 6]


def test_a_namespace_that_comes_and_goes() -> None:
    """While there is none, its rooms have the ages of those without."""
    limits = Settings(history_seconds_max=10.0, history_meta_seconds_max=20.0)
    engine = MemoryEngine(limits, lambda: "epoch", lambda _: False)
    lasting = {"a": Namespace(history_seconds_max=1000.0)}
    limits.namespaces = lasting
    engine.append("a:room", b"x", TEXT, 0.0)
    engine.expire(15.0)
    assert stored(engine, "a:room", 15.0) == [b"x"]
    limits.namespaces = {}
    assert stored(engine, "a:room", 15.0) == []
    engine.append("a:room", b"y", TEXT, 16.0)
    limits.namespaces = lasting
    engine.expire(100.0)
    assert stored(engine, "a:room", 100.0) == [b"y"]
    limits.namespaces = {}
    engine.expire(121.0)
    assert engine.statistics().histories == 0


NAMESPACES = {
    "quick": Namespace(history_size=3, history_seconds_max=2.0, history_meta_seconds_max=6.0),
    "slow": Namespace(history_size=9, history_bytes_max=1100, history_seconds_max=12.0, history_meta_seconds_max=12.0),
    "bare": Namespace(history_size=0, history_seconds_max=4.0, history_meta_seconds_max=9.0),
}
ROOMS = st.sampled_from(["room", "quick:a", "quick:b", "slow:a", "slow:b", "bare:a"])


class Life:
    """The model of one room's stream."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.top = 0
        self.touched = 0.0
        self.stored: list[Publication] = []


class EngineLife(RuleBasedStateMachine):
    """Random lives of an engine, whose every answer is what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Settings(
            history_size=5, history_seconds_max=5.0, history_meta_seconds_max=15.0, namespaces=NAMESPACES
        )
        self.in_use: set[str] = set()
        epochs = itertools.count(1)
        self.engine = MemoryEngine(self.limits, lambda: f"epoch {next(epochs)}", self.in_use.__contains__)
        self.lives: dict[str, Life] = {}
        self.now = 0.0
        self.epochs = 0

    def bounds(self, room: str) -> Namespace:
        return self.limits.namespace(room) or self.limits

    def live(self, room: str) -> Life:
        """Touch a room, which begins its life if need be; drop what is too old."""
        if room not in self.lives:
            self.epochs += 1
            self.lives[room] = Life(f"epoch {self.epochs}")
        life = self.lives[room]
        life.touched = self.now
        due = self.now - self.bounds(room).history_seconds_max
        life.stored = [publication for publication in life.stored if publication.time >= due]
        return life

    @rule(room=ROOMS, size=st.integers(0, 1000), kind=st.sampled_from(Kind))
    def append(self, room: str, size: int, kind: Kind) -> None:
        life, bounds = self.live(room), self.bounds(room)
        publication = self.engine.append(room, bytes(size), kind, self.now)
        life.top += 1
        assert publication == Publication(
            room, life.epoch, life.top, bytes(size), kind, self.now, bounds.history_size > 0
        )
        life.stored.append(publication)
        while len(life.stored) > bounds.history_size or self.weight(life) > bounds.history_bytes_max:
            del life.stored[0]

    @rule(room=ROOMS, since=st.none() | st.integers(0, 30), limit=st.integers(0, 6), reverse=st.booleans())
    def read(self, room: str, since: int | None, limit: int, reverse: bool) -> None:
        life = self.live(room)
        expected = life.stored[::-1] if reverse else life.stored
        if since is not None:
            expected = [each for each in expected if (each.offset < since if reverse else each.offset > since)]
        told = self.engine.read(room, self.now, since, limit, reverse)
        assert told.publications == expected[:limit]
        assert (told.position.epoch, told.position.offset) == (life.epoch, life.top)

    @rule(room=ROOMS, limit=st.integers(0, 9))
    def recent(self, room: str, limit: int) -> None:
        life = self.live(room)
        told = self.engine.recent(room, limit, self.now)
        assert told.publications == (life.stored[-limit:] if limit else [])
        assert (told.position.epoch, told.position.offset) == (life.epoch, life.top)

    @rule(room=ROOMS)
    def come_or_go(self, room: str) -> None:
        self.in_use.symmetric_difference_update({room})

    @rule(half_seconds=st.integers(1, 20))
    def wait(self, half_seconds: int) -> None:
        self.now += half_seconds / 2

    @rule(room=ROOMS)
    def forget(self, room: str) -> None:
        self.engine.forget(room)
        self.lives.pop(room, None)

    @rule()
    def expire(self) -> None:
        self.engine.expire(self.now)
        for room, life in list(self.lives.items()):
            bounds = self.bounds(room)
            age = bounds.history_seconds_max
            if life.stored and life.stored[-1].time < self.now - age:
                life.stored.clear()
            if life.touched < self.now - max(age, bounds.history_meta_seconds_max):
                if room in self.in_use:
                    life.touched = self.now
                else:
                    del self.lives[room]
        statistics = self.engine.statistics()
        assert statistics.histories == len(self.lives)

    @staticmethod
    def weight(life: Life) -> int:
        return sum(len(publication.data) + PUBLICATION_OVERHEAD_BYTES for publication in life.stored)

    @invariant()
    def nothing_is_miscounted(self) -> None:
        """What the engine holds is what the model does, but for what it may drop and hasn't looked at yet."""
        statistics = self.engine.statistics()
        assert statistics.histories == len(self.lives)
        assert statistics.history_bytes == sum(map(self.weight, self.lives.values()))
        assert statistics.publications == sum(len(life.stored) for life in self.lives.values())


EngineLife.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_life_of_an_engine = pytest.mark.no_cover(EngineLife.TestCase)  # twice as fast; other tests reach the same lines
