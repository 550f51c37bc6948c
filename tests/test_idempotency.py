"""P6 as a property of the pure core: a key is remembered as long as promised, no longer, and never makes way."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.config import Settings
from hubbub.core.idempotency import Results
from hubbub.model.command import Published
from hubbub.model.publication import Position


def at(offset: int) -> Published:
    """Return a result."""
    return Published(Position("epoch", offset))


def make_results(**limits: object) -> Results:
    """Return an empty memory."""
    return Results(Settings(**limits))  # type: ignore[arg-type]


def fill(results: Results, room: str, count: int, now: float = 0.0) -> None:
    """Remember that many results, as long as there is room."""
    for number in range(count):
        if results.has_room(room, now):
            results.remember(room, "ann", f"key {number}", at(number), now)


def test_a_key_belongs_to_a_room_and_a_scope() -> None:
    """Nothing else with the same key is a repeat."""
    results = make_results()
    results.remember("room", "ann", "key", at(7), 0.0)
    assert results.find("room", "ann", "key", 1.0) == at(7)
    assert results.find("room", "bob", "key", 1.0) is None
    assert results.find("other", "ann", "key", 1.0) is None
    assert results.find("room", "ann", "other", 1.0) is None
    assert results.find("room", "an", "nkey", 1.0) is None


def test_a_key_is_remembered_for_its_time() -> None:
    """To the end of it, whether or not anything expires in between; then it is a new key."""
    results = make_results(idempotency_seconds_max=10.0)
    results.remember("room", "ann", "key", at(1), 5.0)
    results.expire(15.0)
    assert results.find("room", "ann", "key", 15.0) == at(1)
    assert results.find("room", "ann", "key", 15.5) is None
    results.remember("room", "ann", "key", at(2), 15.5)
    assert results.find("room", "ann", "key", 15.5) == at(2)
    assert len(results) == 1


def test_the_first_result_stands() -> None:
    """Even if somebody forgot to look."""
    results = make_results()
    results.remember("room", "ann", "key", at(1), 0.0)
    results.remember("room", "ann", "key", at(2), 0.0)
    assert results.find("room", "ann", "key", 0.0) == at(1)
    assert len(results) == 1


def test_what_is_full_refuses() -> None:
    """A room's limit is the room's, the total is everyone's; time makes room again."""
    results = make_results(idempotency_keys_max=3, idempotency_keys_total_max=5, idempotency_seconds_max=10.0)
    fill(results, "room", 9)
    assert not results.has_room("room", 10.0)
    assert results.has_room("other", 10.0)
    fill(results, "other", 9, now=10.0)
    assert len(results) == 5
    assert not results.has_room("third", 10.0)
    assert [results.find("room", "ann", f"key {number}", 10.0) for number in range(3)] == [
        at(number) for number in range(3)
    ]
    assert results.has_room("room", 10.5)
    assert len(results) == 2


KEYS = st.tuples(st.sampled_from(["north", "south"]), st.sampled_from(["ann", "bob"]), st.sampled_from("abc"))


class Retries(RuleBasedStateMachine):
    """Publishes with keys, as the hub makes them, against a model that keeps all results for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Settings(idempotency_seconds_max=10.0, idempotency_keys_max=4, idempotency_keys_total_max=6)
        self.results = Results(self.limits)
        self.known: dict[tuple[str, str, str], tuple[Published, float]] = {}
        self.now = 0.0
        self.offset = 0

    def current(self) -> dict[tuple[str, str, str], Published]:
        """Return what has to be remembered now, and nothing else."""
        due = self.now - self.limits.idempotency_seconds_max
        return {name: published for name, (published, time) in self.known.items() if time >= due}

    @rule(name=KEYS)
    def publish(self, name: tuple[str, str, str]) -> None:
        room, scope, key = name
        current = self.current()
        found = self.results.find(room, scope, key, self.now)
        assert found == current.get(name)
        if found is not None:
            return
        of_the_room = sum(other == room for other, _, _ in current)
        has_room = self.results.has_room(room, self.now)
        assert has_room == (of_the_room < self.limits.idempotency_keys_max and len(current) < 6)
        if has_room:
            self.offset += 1
            self.results.remember(room, scope, key, at(self.offset), self.now)
            self.known[name] = (at(self.offset), self.now)

    @rule(half_seconds=st.integers(1, 12), expire=st.booleans())
    def wait(self, half_seconds: int, expire: bool) -> None:
        self.now += half_seconds / 2
        if expire:
            self.results.expire(self.now)
            assert len(self.results) == len(self.current())

    @rule(seconds=st.sampled_from([2.0, 10.0]), keys=st.integers(1, 4))
    def reload(self, seconds: float, keys: int) -> None:
        """A longer time doesn't bring back what is due by the shorter one, and is noticed at once."""
        self.known = {name: self.known[name] for name in self.current()}
        self.results.expire(self.now)
        self.limits.idempotency_seconds_max = seconds
        self.limits.idempotency_keys_max = keys

    @invariant()
    def everything_promised_is_found(self) -> None:
        for (room, scope, key), published in self.current().items():
            assert self.results.find(room, scope, key, self.now) == published


Retries.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_retries = pytest.mark.no_cover(Retries.TestCase)  # twice as fast; other tests reach the same lines
