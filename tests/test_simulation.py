"""Simulated worlds: the promises P1, P2, P3 and P7 under everything that clients do, one seed each.

A failure names its seed. To see it again: `SIMULATION_SEED=<seed> python -m pytest tests/test_simulation.py -k replay`.
"""

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
import trio

import hubbub.connection.connection
import hubbub.connection.outbox
import hubbub.hub.task
from hubbub.connection.outbox import Outbox, State
from hubbub.connection.wire import Wire
from hubbub.core.rooms import Rooms
from hubbub.hub.inbox import Inbox
from hubbub.model.end import End
from hubbub.model.publication import Position
from hubbub.model.subscriber import Subscriber
from simulation.world import WorldError, run_seeded, run_world

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

REPLAY = os.environ.get("SIMULATION_SEED")
FIXED = range(12)
RANDOM_COUNT = 24

REMARKABLE = (14, 25, 40, 53, 62, 76, 90, 130)
"""Each has found a bug that is mended now."""

MUST_OCCUR = (
    *("history join", "early message", "stall", "stumble", "mixture", "fragmented", "burst", "survived"),
    *("end peer_closed", "end peer_left", "end peer_reset", "end shutdown", "end protocol_error"),
    *(
        "end slow_consumer",
        "end write_stall",
        "end no_pong",
        "end message_too_large",
        "end too_many_fragments",
        "end too_many_control_frames",
    ),
    *("told 1000", "told 1001", "told 1002", "told 1008", "told 1009", "told 1011", "told 1013"),
)
"""What must have happened in the worlds of one run, or they'd prove less than they seem to."""


def test_worlds() -> None:
    """In the worlds of some fixed and some random seeds every promise holds, and much has happened."""
    counts = Counter[str]()
    for seed in dict.fromkeys(
        [*FIXED, *REMARKABLE, *(random.SystemRandom().getrandbits(48) for _ in range(RANDOM_COUNT))]
    ):
        counts += run_world(seed).counts
    missing = [name for name in MUST_OCCUR if not counts[name]]
    assert not missing, f"{missing} never occurred, only {sorted(counts.items())}"
    assert counts["publications"] > 1000


@pytest.mark.skipif(REPLAY is None, reason="only with SIMULATION_SEED=<seed>")
def test_replay() -> None:
    """The world of the seed in the environment."""
    assert REPLAY is not None
    run_world(int(REPLAY))


def test_one_seed_is_one_world() -> None:
    """The same seed gives the same trace twice, another seed another."""
    first, second, other = run_world(5), run_world(5), run_world(6)
    assert first.trace == second.trace
    assert first.counts == second.counts
    assert first.trace != other.trace


def test_canary_one_seed_is_one_schedule() -> None:
    """What `seeded_scheduler` does with private parts of Trio still works."""

    def schedule_of(seed: int) -> list[int]:
        steps: list[int] = []

        async def step(name: int) -> None:
            for _ in range(5):
                steps.append(name)
                await trio.lowlevel.checkpoint()

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for name in range(10):
                    nursery.start_soon(step, name)

        run_seeded(seed, main)
        return steps

    schedules = [schedule_of(seed) for seed in (1, 2, 3, 1)]
    assert schedules[0] == schedules[3]
    assert len({tuple(schedule) for schedule in schedules}) == 3
    passes = [tuple(schedules[0][at : at + 10]) for at in range(0, 50, 10)]
    assert len(set(passes)) == 5, "the order within a pass isn't shuffled each time"


# -- mutants: each breaks something on purpose, and some world must see it


def drop_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox over its limit forgets what it is offered, and says nothing."""
    offer = Outbox.offer

    def mutant(self: Outbox, data: bytes, frames: int = 1) -> None:
        backlog = self._backlog
        if backlog is None or not backlog.is_over(self._settings):
            offer(self, data, frames)

    monkeypatch.setattr(Outbox, "offer", mutant)


def join_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was waiting in a room when a subscriber joined is handed out to it, too (rule 2 of the hub's state)."""
    subscribe = Rooms.subscribe

    def mutant(
        self: Rooms, subscriber: Subscriber, name: str, top: Position, *, waiting: int = 0, watches: bool = False
    ) -> None:
        subscribe(self, subscriber, name, top, watches=watches)

    monkeypatch.setattr(Rooms, "subscribe", mutant)


def forget_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves stays subscribed."""
    monkeypatch.setattr(Inbox, "leave", lambda self, subscriber: None)


def overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary frames don't wait for messages that are on their way through trio-websocket."""
    monkeypatch.setattr(Wire, "under_way", property(lambda self: 0, lambda self, value: None), raising=False)


def stop_within_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backlog of a peer that is evicted is dropped in the middle of a frame."""
    monkeypatch.setattr(hubbub.connection.outbox, "frame_end", lambda data, sent: sent)


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat finds nobody silent."""
    end = hubbub.connection.connection.Connection.end
    monkeypatch.setattr(
        hubbub.connection.connection.Connection, "end", lambda self, why: None if why is End.NO_PONG else end(self, why)
    )


def join_after_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is offered before the 101 is lost."""
    offer = Outbox.offer

    def mutant(self: Outbox, data: bytes, frames: int = 1) -> None:
        if self.state is not State.HELD:
            offer(self, data, frames)

    monkeypatch.setattr(Outbox, "offer", mutant)


def stall_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaving connection waits for its peer without a deadline."""

    async def mutant(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(hubbub.connection.connection, "linger", mutant)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (drop_when_full, "expected|saw"),
    (join_what_waits, "expected|beyond"),
    (forget_leaves, "subscriptions"),
    (overtake, "was due"),
    (stop_within_a_frame, "beginning of what was due|expected|begins with|another pong"),
    (never_look, "silent and still connected|not let go"),
    (join_after_opening, "expected|saw"),
    (stall_for_ever, "not let go|neither alive nor gone|serving|TooSlowError"),
]


@pytest.mark.parametrize(("mutate", "symptom"), MUTANTS, ids=[mutate.__name__ for mutate, _ in MUTANTS])
def test_mutants_are_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A world that could see nothing would prove nothing: each of these faults shows within a few seeds."""
    mutate(monkeypatch)

    def search() -> None:
        for seed in FIXED:
            run_world(seed)

    with pytest.raises(WorldError, match=symptom):
        search()
