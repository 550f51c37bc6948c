"""The memory engine against the engine's contract, and its bounds in count, bytes, age and rooms."""

import itertools

import hypothesis.strategies as st
from hypothesis import given

from hubbub.config import Settings
from hubbub.core.history import PUBLICATION_OVERHEAD_BYTES
from hubbub.engines.memory import MemoryEngine


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
    accepted = [engine.append("room", bytes(size), False, 0.0) for size in sizes]
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
        engine.append("room", str(second).encode(), False, float(second))
    assert stored(engine, now=12.5) == [b"3", b"4"]
    engine.append("room", b"new", False, 13.5)
    assert stored(engine, now=13.5) == [b"4", b"new"]
    engine.expire(24.0)
    assert engine.statistics().histories == 0


def test_a_forgotten_room_starts_a_new_epoch() -> None:
    """Offsets are never used twice under one epoch."""
    engine = make_engine(history_seconds_max=10.0)
    engine.append("room", b"old", False, 0.0)
    before = engine.recent("room", 0, 0.0).position
    engine.expire(100.0)
    engine.append("room", b"new", False, 100.0)
    after = engine.recent("room", 0, 100.0).position
    assert (before.offset, after.offset) == (1, 1)
    assert before.epoch != after.epoch


def test_a_room_in_use_keeps_its_epoch_and_offsets() -> None:
    """However long it is quiet; only what is too old goes."""
    in_use = {"room"}
    engine = make_engine(in_use, history_seconds_max=10.0)
    engine.append("room", b"old", False, 0.0)
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
        engine.append(f"room {number}", b"x", False, float(number))
    assert engine.statistics().histories == 5
    assert [stored(engine, f"room {number}", 50.0) for number in (0, 1, 49)] == [[b"x"]] * 3


def test_a_full_house_in_use_still_accepts() -> None:
    """With every history in use, a publication is accepted all the same: subscriptions are what is limited."""
    in_use = {f"room {number}" for number in range(200)}
    engine = make_engine(in_use, rooms_max=100)
    for number in range(150):
        engine.append(f"room {number}", b"x", False, 0.0)
    assert engine.statistics().histories == 150
