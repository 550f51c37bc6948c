"""P6 as a property of the pure core: a key is remembered as long as promised, no longer, and never makes way."""

import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.config import Settings
from hubbub.core.idempotency import Results
from hubbub.model.command import Published
from hubbub.model.publication import Member, Position

ANN, BOB = Member("ann", "c1"), Member("bob", "c2")


def at(offset: int) -> Published:
    """Return a result."""
    return Published(Position("epoch", offset))


def make_results(**limits: object) -> Results:
    """Return an empty memory."""
    return Results(Settings(**limits))  # type: ignore[arg-type]


def fill(results: Results, room: str, who: Member | None = None, now: float = 0.0) -> int:
    """Remember results as long as there is room; return how many."""
    count = 0
    while results.has_room(room, who, now):
        results.remember(room, who, f"key {count}", at(count), now)
        count += 1
    return count


def strangers() -> Iterator[Member]:
    """Return one after the other, as many as one likes."""
    return (Member("", f"stranger {number}") for number in itertools.count())


def test_a_key_belongs_to_a_room_and_who_may_repeat_it() -> None:
    """Nothing else with the same key is a repeat. Strangers are one user, whichever connection they come back with."""
    results = make_results()
    results.remember("room", ANN, "key", at(7), 0.0)
    assert results.find("room", ANN, "key", 1.0) == at(7)
    assert results.find("room", Member("ann", "another"), "key", 1.0) == at(7)
    assert results.find("room", BOB, "key", 1.0) is None
    assert results.find("room", None, "key", 1.0) is None
    assert results.find("other", ANN, "key", 1.0) is None
    assert results.find("room", ANN, "other", 1.0) is None
    assert results.find("room", Member("an", "c1"), "nkey", 1.0) is None
    one, other = Member("", "ann"), Member("", "c1")
    assert results.find("room", one, "key", 1.0) is None
    results.remember("room", one, "key", at(8), 0.0)
    assert results.find("room", other, "key", 1.0) == at(8)
    results.remember("room", None, "key", at(9), 0.0)
    assert results.find("room", None, "key", 1.0) == at(9)
    assert results.find("room", Member("server", "c3"), "key", 1.0) is None


def test_a_key_is_remembered_for_its_time() -> None:
    """To the end of it, whether or not anything expires in between; then it is a new key."""
    results = make_results(idempotency_seconds_max=10.0)
    results.remember("room", ANN, "key", at(1), 5.0)
    results.expire(15.0)
    assert results.find("room", ANN, "key", 15.0) == at(1)
    assert results.find("room", ANN, "key", 15.5) is None
    results.remember("room", ANN, "key", at(2), 15.5)
    assert results.find("room", ANN, "key", 15.5) == at(2)
    assert len(results) == 1


def test_the_first_result_stands() -> None:
    """Even if somebody forgot to look."""
    results = make_results()
    results.remember("room", ANN, "key", at(1), 0.0)
    results.remember("room", ANN, "key", at(2), 0.0)
    assert results.find("room", ANN, "key", 0.0) == at(1)
    assert len(results) == 1


def test_what_is_full_refuses() -> None:
    """A room's limit is the room's, the total is everyone's; time makes room again."""
    results = make_results(idempotency_keys_max=3, idempotency_keys_total_max=5, idempotency_seconds_max=10.0)
    assert fill(results, "room") == 3
    assert not results.has_room("room", None, 10.0)
    assert results.has_room("other", None, 10.0)
    assert fill(results, "other", now=10.0) == 2
    assert len(results) == 5
    assert not results.has_room("third", None, 10.0)
    assert [results.find("room", None, f"key {number}", 10.0) for number in range(3)] == [at(0), at(1), at(2)]
    assert results.has_room("room", None, 10.5)
    assert len(results) == 2


def test_nobody_uses_up_the_keys_of_a_room() -> None:
    """One holder has a quarter; strangers, of whom there are any number, half; users go on, then the server."""
    results = make_results(idempotency_keys_max=40, idempotency_seconds_max=10.0)
    assert fill(results, "room", ANN) == 10
    assert not results.has_room("room", Member("ann", "another"), 0.0)
    assert [fill(results, "room", stranger) for stranger in itertools.islice(strangers(), 3)] == [10, 0, 0]
    assert fill(results, "room", BOB) == 10
    assert not results.has_room("room", Member("eve", "c3"), 0.0)
    assert fill(results, "room") == 10
    assert results.has_room("other", ANN, 0.0)
    assert fill(results, "room", ANN, now=10.5) == 10


def test_nobody_uses_up_the_keys_of_all_rooms() -> None:
    """Likewise; there one holder has a sixteenth."""
    results = make_results(idempotency_keys_max=1_000, idempotency_keys_total_max=160, idempotency_seconds_max=10.0)
    rooms = [f"room {number}" for number in range(100)]
    assert [fill(results, room, ANN) for room in rooms[:2]] == [10, 0]
    taken = [fill(results, room, stranger) for room, stranger in zip(rooms, strangers(), strict=False)]
    assert taken == [10] * 7 + [0] * 93
    users = [Member(f"user {number}", f"c{number}") for number in range(100)]
    assert sum(fill(results, room, user) for room, user in zip(rooms, users, strict=True)) == 40
    assert not results.has_room("room 99", Member("eve", "c"), 0.0)
    assert fill(results, "room 99") == 40
    results.expire(10.5)
    assert not any((results._order, results._rooms, results._held, results._held_in))


PEOPLE = {"server": None, "ann": ANN, "ann's other": Member("ann", "c9"), "bob": BOB}
PEOPLE |= {stranger.client: stranger for stranger in itertools.islice(strangers(), 3)}
KEYS = st.tuples(st.sampled_from(["north", "south"]), st.sampled_from(list(PEOPLE)), st.sampled_from("abc"))
TOTAL = 12  # so that ann has one, strangers stop at six, users at nine


class Retries(RuleBasedStateMachine):
    """Publishes with keys, as the hub makes them, against a model that keeps all results for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Settings(idempotency_seconds_max=10.0, idempotency_keys_max=8, idempotency_keys_total_max=TOTAL)
        self.results = Results(self.limits)
        self.known: dict[tuple[str, str, str], tuple[Published, float, str]] = {}  # by room, whose it is, key
        self.now = 0.0
        self.offset = 0

    def current(self) -> dict[tuple[str, str, str], tuple[Published, float, str]]:
        """Return what has to be remembered now, and nothing else."""
        due = self.now - self.limits.idempotency_seconds_max
        return {name: known for name, known in self.known.items() if known[1] >= due}

    def may(self, room: str, person: str) -> bool:
        """Return whether there has to be room for one more."""
        who, holders = PEOPLE[person], [(name[0], holder) for name, (_, _, holder) in self.current().items()]
        for most, found, share in (
            (self.limits.idempotency_keys_max, [holder for name, holder in holders if name == room], 1 / 4),
            (TOTAL, [holder for _, holder in holders], 1 / 16),
        ):
            if who is None and len(found) >= most:
                return False
            if who is not None and len(found) >= most * (3 / 4 if who.user else 1 / 2):
                return False
            if who is not None and found.count(who.user or who.client) >= most * share:
                return False
        return True

    @rule(name=KEYS)
    def publish(self, name: tuple[str, str, str]) -> None:
        room, person, key = name
        who = PEOPLE[person]
        whose = (room, "the server" if who is None else who.user, key)
        current = self.current()
        found = self.results.find(room, who, key, self.now)
        assert found == (current[whose][0] if whose in current else None)
        if found is not None:
            return
        has_room = self.results.has_room(room, who, self.now)
        assert has_room == self.may(room, person)
        if has_room:
            self.offset += 1
            self.results.remember(room, who, key, at(self.offset), self.now)
            holder = "the server" if who is None else who.user or who.client
            self.known[whose] = (at(self.offset), self.now, holder)

    @rule(half_seconds=st.integers(1, 12), expire=st.booleans())
    def wait(self, half_seconds: int, expire: bool) -> None:
        self.now += half_seconds / 2
        if expire:
            self.results.expire(self.now)
            assert len(self.results) == len(self.current())

    @rule(seconds=st.sampled_from([2.0, 10.0]), keys=st.integers(1, 8))
    def reload(self, seconds: float, keys: int) -> None:
        """A longer time doesn't bring back what is due by the shorter one, and is noticed at once."""
        self.known = {name: self.known[name] for name in self.current()}
        self.results.expire(self.now)
        self.limits.idempotency_seconds_max = seconds
        self.limits.idempotency_keys_max = keys

    @invariant()
    def everything_promised_is_found(self) -> None:
        for (room, user, key), (published, _, _) in self.current().items():
            who = None if user == "the server" else Member(user, "whichever")
            assert self.results.find(room, who, key, self.now) == published


Retries.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_retries = pytest.mark.no_cover(Retries.TestCase)  # twice as fast; other tests reach the same lines
