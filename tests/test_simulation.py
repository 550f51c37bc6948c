"""Simulated worlds: the promises P1 to P7 under everything that clients do, one seed each.

A failure names its seed. To see it again: `SIMULATION_SEED=<seed> python -m pytest tests/test_simulation.py -k replay`
(and `SIMULATION_PLAIN=1` if it was a world of plain clients only).
"""

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import trio

import hubbub.connection.connection
import hubbub.connection.outbox
import hubbub.hub.steps
import hubbub.hub.task
from hubbub.connection.connection import Connection
from hubbub.connection.outbox import Outbox, State
from hubbub.connection.poller import RECEIVE_BYTES, Inlet
from hubbub.connection.wire import Wire
from hubbub.core.idempotency import Results
from hubbub.core.recovery import recover
from hubbub.core.rooms import Rooms
from hubbub.hub.inbox import Inbox
from hubbub.hub.state import Hub
from hubbub.hub.steps import Steps
from hubbub.model.command import Answer, Command, Done, Published, PublishRuns, Queued, Subscribe, Unsubscribe
from hubbub.model.end import End
from hubbub.model.publication import Member, Position, Publication
from hubbub.model.subscriber import Subscriber
from simulation.world import WorldError, run_seeded, run_world

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

REPLAY = os.environ.get("SIMULATION_SEED")
REPLAY_MIXED = not os.environ.get("SIMULATION_PLAIN")
FIXED = range(12)
RANDOM_COUNT = 24

REMARKABLE = (61, 110, 130)
REMARKABLE_PLAIN = (14, 25, 40, 53, 62, 76, 90, 130)
"""Each has found a bug that is mended now, the latter in worlds of plain clients only."""

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
    *("early commands", "come", "go", "look around", "repeat", "retry", "nonsense", "no introduction"),
    *("recovered", "missed", "not recovered", "error 102", "error 105", "error 107", "error 108", "error 112"),
    *("end stale", "end bad_request", "told 3001", "told 3008", "told 3012", "told 3501", "told 3502"),
)
"""What must have happened in the worlds of one run, or they'd prove less than they seem to."""


def test_worlds() -> None:
    """In the worlds of some fixed and some random seeds every promise holds, and much has happened."""
    counts = Counter[str]()
    for seed in (*FIXED, *REMARKABLE, *(random.SystemRandom().getrandbits(48) for _ in range(RANDOM_COUNT))):
        counts += run_world(seed).counts
    for seed in REMARKABLE_PLAIN:
        counts += run_world(seed, mixed=False).counts
    missing = [name for name in MUST_OCCUR if not counts[name]]
    assert not missing, f"{missing} never occurred, only {sorted(counts.items())}"
    assert counts["publications"] > 1000


@pytest.mark.skipif(REPLAY is None, reason="only with SIMULATION_SEED=<seed>")
def test_replay() -> None:
    """The world of the seed in the environment."""
    assert REPLAY is not None
    run_world(int(REPLAY), REPLAY_MIXED)


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


def forget_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while a task is busy isn't remembered (rule 4 of the poller)."""
    on_ready = Inlet.on_ready
    monkeypatch.setattr(Inlet, "on_ready", lambda self, events: on_ready(self, events) if self.waiting else None)


def take_out_of_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while a task is busy is taken at once (rule 2 of the poller)."""
    on_ready = Inlet.on_ready

    def mutant(self: Inlet, events: int) -> None:
        if self.waiting is None and self.take is not None and not self._may_have and not self._arrived:
            with contextlib.suppress(OSError):
                data = self._receive(RECEIVE_BYTES)
                if data and not self.take(data):
                    self._arrived = data
        on_ready(self, events)

    monkeypatch.setattr(Inlet, "on_ready", mutant)


def grow_out_of_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said joins what was said before, though something else has come between (rule 4 of the inbox)."""
    put_nowait = Inbox.put_nowait

    def mutant(self: Inbox, command: Queued) -> bool:
        growing = self._growing
        done = put_nowait(self, command)
        if not isinstance(command, PublishRuns):
            self._growing = growing
        return done

    monkeypatch.setattr(Inbox, "put_nowait", mutant)


def stop_within_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backlog of a peer that is evicted is dropped in the middle of a frame."""
    monkeypatch.setattr(hubbub.connection.outbox, "frame_end", lambda data, sent: sent)


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat finds nobody silent."""
    end = hubbub.connection.connection.Connection.end
    monkeypatch.setattr(
        hubbub.connection.connection.Connection,
        "end",
        lambda self, why, *more: None if why is End.NO_PONG else end(self, why, *more),
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


# -- these only structured clients can see


def recover_whatever_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery doesn't look at the epoch."""
    monkeypatch.setattr(
        hubbub.hub.steps,
        "recover",
        lambda top, publications, since: recover(top, publications, Position(top.epoch, since.offset)),
    )


def recover_with_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery gives what is still stored, if that isn't all that was missed."""

    def mutant(top: Position, publications: Sequence[Publication], since: Position) -> Sequence[Publication] | None:
        missed = recover(top, publications, since)
        if missed is None and publications and since.epoch == top.epoch and publications[-1].offset == top.offset:
            return publications
        return missed

    monkeypatch.setattr(hubbub.hub.steps, "recover", mutant)


def push_before_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a subscribe waits for the end of the pass, as all others do."""
    carry_out, flush = Hub.carry_out, Connection.flush
    joining: list[Subscribe] = []

    def mutant(self: Hub, command: Command, now: float) -> None:
        if isinstance(command, Subscribe):
            joining.append(command)
        carry_out(self, command, now)
        joining.clear()

    monkeypatch.setattr(Hub, "carry_out", mutant)
    monkeypatch.setattr(Connection, "flush", lambda self: None if joining else flush(self))


def lose_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who disconnects leaves its rooms without a word."""

    def mutant(self: Hub, subscriber: Subscriber) -> None:
        for room in self._rooms.rooms_of(subscriber):
            self._rooms.unsubscribe(subscriber, room)

    monkeypatch.setattr(Hub, "leave", mutant)


def miss_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who unsubscribes misses what waits in the room."""
    comes_after = Hub.comes_after_what_waits

    def mutant(self: Steps, command: Unsubscribe, now: float) -> Answer:
        self.part(command.asker, command.room)
        return Done()

    monkeypatch.setattr(Steps, "unsubscribe", mutant)
    monkeypatch.setattr(
        Hub,
        "comes_after_what_waits",
        lambda self, command: not isinstance(command, Unsubscribe) and comes_after(self, command),
    )


def acknowledge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers are answered before anybody, they themselves included, sees what they have published."""
    hand_out_all = hubbub.hub.task._hand_out_all

    async def mutant(hub: Hub, served: int) -> int:
        for subscriber in hub.take_answered():
            subscriber.flush()
        return await hand_out_all(hub, served)

    monkeypatch.setattr(hubbub.hub.task, "_hand_out_all", mutant)


def acknowledge_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated publish is told a place that isn't its own."""
    find = Results.find

    def mutant(self: Results, room: str, who: Member | None, key: str, now: float) -> Published | None:
        first = find(self, room, who, key, now)
        if first is None or first.position is None:
            return first
        return Published(Position(first.position.epoch, first.position.offset + 1))

    monkeypatch.setattr(Results, "find", mutant)


def forget_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated publish is a second publication."""
    monkeypatch.setattr(Results, "find", lambda *_: None)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (drop_when_full, "expected|saw"),
    (join_what_waits, "expected|beyond"),
    (forget_leaves, "subscriptions"),
    (overtake, "was due"),
    (forget_edges, "ended by no_pong"),
    (take_out_of_turn, "was due"),
    (grow_out_of_turn, "was due"),
    (stop_within_a_frame, "beginning of what was due|expected|begins with|another pong"),
    (never_look, "silent and still connected|not let go"),
    (join_after_opening, "expected|saw"),
    (stall_for_ever, "not let go|neither alive nor gone|serving|TooSlowError"),
    (recover_whatever_epoch, "asked .* subscribe"),
    (recover_with_a_hole, "asked .* subscribe"),
    (push_before_the_reply, "of a room that it isn't in"),
    (lose_leaves, "expected .*leave|hasn't seen all"),
    (miss_what_waits, "left .* and saw"),
    (acknowledge_first, "before it saw it"),
    (acknowledge_elsewhere, "asked .* publish"),
    (forget_keys, "a second time"),
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
        for seed in FIXED:  # where all are plain, more is said in one go
            run_world(len(FIXED) + seed, mixed=False)

    with pytest.raises(WorldError, match=symptom):
        search()
