"""One seed, one world: the real node, a virtual clock, bounded pipes, clients that misbehave, a seeded scheduler.

    run_world(seed)
    ├─ chaos     some clients in some rooms publish, stall, vanish, break the protocol, come back
    ├─ healing   whoever stalled reads again; whoever is still connected must catch up, the silent must be gone
    └─ the end   everyone leaves, or the node drains; nothing may be left of anybody

What is checked, for each client and at each message: a plain one sees one contiguous run of its room's order, byte for
byte, from exactly where it joined; a structured one from each subscribe reply to the unsubscribe reply, with offsets,
joins and leaves (P1, P2); everyone's own messages are in that order as sent, each once, also those that are said
again (P3, P6); what is acknowledged stands there (P4); who comes back gets exactly what it has missed, or is told that
this isn't possible any more, and only then (P5); whoever was cut off was told why, or its stream broke; nothing is left
(P7); no internal error was logged.

    world        this: the node, who acts when, what must hold in the end
    record       what happened in each room
    client       a connection from its client's side; `plain` and `structured` are what the dialects make of it

Everything follows from the seed: Trio's scheduler is seeded too, through a private switch (see `seeded_scheduler`),
each pipe draws from a generator of its own, and the node's set of connections is walked in order (`InOrder`).
"""

import contextlib
import math
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import msgspec
import structlog
import trio
from trio._core import _run
from trio.testing import MockClock

from bounded_pipes import make_watch
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.model.command import (
    Answer,
    Command,
    Enter,
    Publish,
    ReadHistory,
    Refusal,
    Refused,
    Subscribe,
    Subscribed,
    Tell,
)
from hubbub.model.publication import Kind, Member, Publication
from hubbub.model.subscriber import Subscriber
from hubbub.node import Node, open_node
from peers import handshake
from servers import leftovers, until_quiet
from simulation.client import PATIENCE_SECONDS, Client
from simulation.plain import PlainClient
from simulation.record import Moment, Room, frame_of, label_of
from simulation.structured import Person, StructuredClient

CHAOS_SECONDS = 8.0
TICK_SECONDS = 0.05
"""Clients act at multiples of this, so that much happens at the same moment, in an order that the seed decides."""

NAMESPACES = ("", "", "watched:", "watched:", "brief:", "bare:")
"""What rooms' names begin with, in worlds with structured clients."""


class WorldError(AssertionError):
    """A promise was broken in a world; the message says which, and how to see it again."""


class Outcome(msgspec.Struct):
    """What happened in a world.

    Attributes:
        trace: one line an event; the same for the same seed.
        counts: how often what happened: what clients did, and how connections ended.
    """

    trace: list[str]
    counts: Counter[str]


@contextlib.contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Make Trio's scheduling follow from the seed. Private parts of Trio, so `test_simulation.py` has a canary."""
    state = _run._r.getstate()
    with mock.patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        _run._r.seed(seed)
        try:
            yield
        finally:
            _run._r.setstate(state)


def run_seeded(seed: int, main: Callable[[], Awaitable[None]], *instruments: trio.abc.Instrument) -> None:
    """Run `main` on a virtual clock with a scheduler that follows from the seed."""

    async def seeded() -> None:
        with seeded_scheduler(seed):
            await main()

    trio.run(seeded, clock=MockClock(autojump_threshold=0), instruments=instruments)


class InOrder(dict[object, None]):
    """A set that is walked in the order in which it was filled; a set's own order depends on addresses."""

    def add(self, item: object) -> None:
        """Add an item."""
        self[item] = None

    def discard(self, item: object) -> None:
        """Remove an item, if it is there."""
        self.pop(item, None)


@contextlib.contextmanager
def captured_log(entries: list[dict[str, object]]) -> Iterator[None]:
    """Collect what hubbub logs, at every level; each entry has its level as `level`."""

    def collect(_logger: object, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if entry.get("exc_info"):
            entry["exc_info"] = traceback.format_exc()
        entries.append({**entry, "level": method})
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[collect], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        yield
    finally:
        structlog.configure(**before)


def run_world(seed: int, mixed: bool = True) -> Outcome:
    """Run the world of this seed: with structured clients beside the plain ones, or without.

    Raises:
        WorldError: a promise was broken.
    """
    world = World(seed, mixed)
    try:
        with captured_log(world.entries), mock.patch("hubbub.node.set", InOrder, create=True):
            run_seeded(seed, world.run)
    except Exception as error:
        causes = "\n".join(
            [f"  {type(leaf).__name__}: {leaf}" for leaf in _leaves(error)]
            + [f"  {entry['event']}" for entry in world.entries if entry["level"] not in ("debug", "info")]
        )
        tail = "\n".join(f"    {line}" for line in world.trace[-15:])
        which = f"SIMULATION_SEED={seed}" + ("" if mixed else " SIMULATION_PLAIN=1")
        raise WorldError(
            f"the world of seed {seed} failed; run it again with\n"
            f"  {which} python -m pytest tests/test_simulation.py -k replay\n{causes}\n{tail}"
        ) from error
    return Outcome(world.trace, world.counts)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def make_settings(rng: random.Random) -> Settings:
    """Return small limits and short deadlines, so that they are reached."""
    return Settings(
        insecure=True,  # permissions are another matter
        head_seconds_max=4.0,
        keepalive_seconds_max=4.0,
        message_bytes_max=4096,
        message_fragments_max=6,
        control_frames_per_second_max=100,
        publications_per_second_max=rng.choice([100, 10_000]),
        publications_burst_max=rng.choice([10, 1000]),
        rate_seconds_max=1000.0,
        frames_at_once_max=rng.choice([1, 64]),
        outbox_bytes_max=8192,
        outbox_frames_max=rng.choice([12, 40, 256]),
        write_stall_seconds_max=3.0,
        inbox_commands_max=rng.choice([2, 8, 64]),
        inbox_bytes_max=rng.choice([4096, 32768]),
        pass_commands_max=rng.choice([1, 4, 64]),
        gather_passes_max=rng.choice([0, 1, 2, 4]),
        history_size=16,
        ping_seconds=2.0,
        pong_seconds_max=1.0,
        close_seconds_max=2.0,
        linger_seconds_max=0.5,
        drain_seconds_max=10.0,
    )


def add_namespaces(settings: Settings, rng: random.Random) -> None:
    """Add what only structured clients know: rooms of several kinds, and limits of their own."""
    settings.stale_seconds_max = 3.0
    settings.recovery_publications_max = rng.choice([4, 300])
    settings.namespaces = {
        "watched": Namespace(history_size=16, join_leave=True),
        "brief": Namespace(
            history_size=6, history_seconds_max=1.0, history_meta_seconds_max=1.0, join_leave=rng.random() < 0.5
        ),
        "bare": Namespace(history_size=0),
    }


class World:
    """The node, its clients, and what the node accepted.

    Args:
        seed: everything follows from it.
        mixed: whether there are structured clients beside the plain ones. They draw from a generator of their own:
            without them, the worlds are those that there were before them.
    """

    nursery: trio.Nursery
    node: Node

    def __init__(self, seed: int, mixed: bool) -> None:
        self.rng = random.Random(f"world {seed}")
        self.mixed = random.Random(f"mixed world {seed}") if mixed else None
        self.entries: list[dict[str, object]] = []
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.clients: dict[str, Client] = {}
        self.members: dict[str, Client] = {}
        names = [self._room_name(number) for number in range(self.rng.randint(1, 3))]
        self.settings = make_settings(self.rng)
        if self.mixed:
            add_namespaces(self.settings, self.mixed)
        self.rooms = {name: Room(name, self.settings.namespace(name) or self.settings) for name in names}
        self.watch = make_watch(random.Random(f"poller {seed}"))
        self.calm = self.rng.choice([1, 2, 10])  # where little is said, who stalls isn't evicted first

    def _room_name(self, number: int) -> str:
        return (self.mixed.choice(NAMESPACES) if self.mixed else "") + f"room{number}"

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{trio.current_time():.4f} {who} {what}")

    def complain(self, problem: str) -> None:
        """Note a broken promise where an exception would be caught by the hub, as a bug of the room's."""
        if problem:
            self.entries.append({"level": "error", "event": problem})

    async def run(self) -> None:
        """Live."""
        rng = self.rng
        draining = rng.random() < 0.3
        with trio.fail_after(1000):
            before = _tasks()
            async with trio.open_nursery() as self.nursery:
                node_rng = random.Random(rng.getrandbits(64))
                async with open_node(self.settings, node_rng, self.watch.poller) as (self.node, connections):
                    await trio.testing.wait_all_tasks_blocked()
                    base = _tasks()
                    self._record(self.node)
                    async with trio.open_nursery() as actors:
                        for index in range(rng.randint(3, 8)):
                            actors.start_soon(self._act, index, random.Random(rng.getrandbits(64)), connections)
                    await self._heal()
                    if not draining:
                        await self._leave()
                        with contextlib.suppress(AssertionError):
                            await until_quiet(self.node, PATIENCE_SECONDS)
                        assert not leftovers(self.node), f"left over: {leftovers(self.node)}"
                        await trio.testing.wait_all_tasks_blocked()
                        assert _tasks() == base, f"{_tasks()} tasks, {base} before"
                    self.note("world", "draining")
                self.note("world", "drained")
                left = leftovers(self.node)
                assert not left.keys() & {"serving", "connections"}, f"left over: {left}"
                await trio.sleep(PATIENCE_SECONDS)  # for what clients wait for
                self.nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert _tasks() == before
        self._check()

    def _record(self, node: Node) -> None:
        """Note the order that the engine gives, who comes and goes, and what is true when a question is answered."""
        append, append_all, carry_out = node.engine.append, node.engine.append_all, node.hub.carry_out
        enter, leave = node.rooms.subscribe, node.rooms.unsubscribe

        def recorded_append(
            room: str,
            data: bytes,
            kind: Kind,
            now: float,
            publisher: Member | None = None,
            tags: Mapping[str, str] | None = None,
        ) -> Publication:
            publication = append(room, data, kind, now, publisher, tags)
            label = label_of(publication)
            assert publisher is not None
            self.complain(self.members[publisher.client].accept(self.rooms[room], label, kind, data))
            self.complain(self.rooms[room].add(publication, label))
            return publication

        def recorded_append_all(
            room: str, messages: Sequence[bytes], kind: Kind, now: float, publishers: Sequence[Member | None]
        ) -> list[Publication]:
            publications = append_all(room, messages, kind, now, publishers)
            for publication, publisher in zip(publications, publishers, strict=True):
                label = label_of(publication)
                assert publisher is not None
                accepted = self.members[publisher.client].accept(self.rooms[room], label, kind, publication.data)
                self.complain(accepted)
                self.complain(self.rooms[room].add(publication, label))
            return publications

        def recorded_enter(subscriber: Subscriber, name: str, *how: Any, **more: Any) -> None:
            enter(subscriber, name, *how, **more)
            self.complain(self.rooms[name].enter(subscriber.member, self._client_of(subscriber)))

        def recorded_leave(subscriber: Subscriber, name: str) -> bool:
            left = leave(subscriber, name)
            if left:
                self.rooms[name].leave(subscriber.member)
            return left

        def recorded_carry_out(command: Command, now: float) -> None:
            assert not isinstance(command, Publish)
            assert command.asker is not None
            client = self._client_of(command.asker)
            client.member = command.asker.member.client
            self.members[client.member] = client
            if isinstance(command, Tell | Enter) or command.room not in self.rooms:
                carry_out(command, now)
                return
            room = self.rooms[command.room]
            if isinstance(client, PlainClient):
                assert isinstance(command, Subscribe)
                carry_out(self._with_check(command, client, room, now), now)
                return
            assert isinstance(client, StructuredClient)
            present, happened = list(room.present), len(room.events)
            inside, gone = client.member in room.present, command.asker.gone
            carry_out(command, now)
            epoch = ""
            if isinstance(command, ReadHistory) or (isinstance(command, Subscribe) and not (inside or gone)):
                epoch = node.engine.read(room.name, now).position.epoch
                self.complain(room.look(epoch, now, not present))
            client.moments.append(Moment(epoch, room.top, room.stored(now), happened, present, inside, gone))

        node.engine.append = recorded_append  # type: ignore[method-assign]
        node.engine.append_all = recorded_append_all  # type: ignore[method-assign]
        node.hub.carry_out = recorded_carry_out  # type: ignore[method-assign]
        node.rooms.subscribe = recorded_enter  # type: ignore[method-assign]
        node.rooms.unsubscribe = recorded_leave  # type: ignore[method-assign]

    def _with_check(self, command: Subscribe, client: PlainClient, room: Room, now: float) -> Subscribe:
        """Look at the answer of a plain client's joining, which it can't see itself."""
        empty = not room.present

        def reply(answer: Answer) -> None:
            if answer == Refused(Refusal.STOPPING):  # it has left already
                command.reply(answer)
                return
            assert isinstance(answer, Subscribed), answer
            self.complain(room.look(answer.position.epoch, now, empty))
            past = list(map(frame_of, answer.publications))
            self.complain(client.join(room.total_at(answer.position), past, min(client.history, room.stored(now))))
            command.reply(answer)

        return msgspec.structs.replace(command, reply=reply)

    def _client_of(self, subscriber: Subscriber) -> Client:
        return self.clients[subscriber.peer]  # type: ignore[attr-defined]

    async def _act(self, index: int, rng: random.Random, connections: trio.Nursery) -> None:
        """Be one client after the other, until the chaos is over. The first is always a good plain one."""
        person = None
        if self.mixed and index and (index == 1 or self.mixed.random() < 0.5):
            person = Person()
        good = index == 0 or rng.random() < 0.3 or (person is not None and index == 1)
        busy = rng.choice([0.05, 0.2, 0.5]) * self.calm
        with trio.move_on_at(CHAOS_SECONDS):
            await _sleep(rng.uniform(0, 2))
            for life in range(100):
                client = self._make_client(f"c{index}.{life}", person, rng)
                self.clients[client.name] = client
                connections.start_soon(self._serve, client)
                if not good and rng.random() < 0.1:
                    await self._stumble(client)
                elif await self._connect(client, good):
                    while client.lives:
                        await _sleep(rng.choice([0, rng.expovariate(1 / busy)]))
                        await client.act(good)
                await _sleep(rng.uniform(0, 0.5 if person is None else rng.choice([0.1, 0.5, 4])))

    def _make_client(self, name: str, person: Person | None, rng: random.Random) -> Client:
        rooms = list(self.rooms.values())
        if person is None:
            return PlainClient(self, name, self.rooms[rng.choice(list(self.rooms))], rng)
        if not person.rooms or rng.random() < 0.3:
            person.rooms = rng.sample(rooms, min(len(rooms), rng.choice([1, 1, 2])))
        return StructuredClient(self, name, person, rng)

    async def _serve(self, client: Client) -> None:
        try:
            await self.node.front_door.serve(client.transport, client.name, "localhost")
        finally:
            client.let_go()

    async def _connect(self, client: Client, good: bool) -> bool:
        with trio.CancelScope(shield=True):  # half a request is sent only on purpose
            return await client.connect(good)
        raise AssertionError("this scope is never cancelled")

    async def _stumble(self, client: Client) -> None:
        """Vanish during the handshake."""
        client.do("stumble", fault=True)
        if isinstance(client, PlainClient):
            client.history = 0
        request = handshake(client.path)
        part = request[: client.rng.choice([0, 10, len(request), len(request)])]
        with contextlib.suppress(trio.BrokenResourceError):
            await client.stream.send_all(part)
        for _ in range(client.rng.randint(0, 12)):
            await trio.lowlevel.checkpoint()
        kind = client.rng.random()
        if kind < 0.4:
            client.stream.end()
        elif kind < 0.8:
            client.stream.reset()
        client.over.set()
        await client.until_served()

    async def _heal(self) -> None:
        """Let everyone read; who lives must catch up, who is silent must be gone."""
        self.note("world", "healing")
        for client in self.clients.values():
            client.heal()
        await trio.sleep(PATIENCE_SECONDS)
        for client in self.clients.values():
            assert client.lives or client.served.is_set(), f"{client.name} is neither alive nor gone"
            if client.lives:
                self.counts["survived"] += 1
                assert not client.muted, f"{client.name} is silent and still connected"
                assert not (arrears := client.arrears()), f"{client.name} {arrears}"
                assert client.published == len(client.sent), (
                    f"{client.published} of {len(client.sent)} of {client.name} are published"
                )

    async def _leave(self) -> None:
        self.note("world", "leaving")
        for client in self.clients.values():
            if client.lives:
                leave = self.rng.choice([client.say_close, client.half_close, client.reset])
                self.nursery.start_soon(leave)

    def _check(self) -> None:
        """What must hold when all is over."""
        ends = Counter[str]()
        for entry in self.entries:
            assert entry["level"] in ("debug", "info"), "\n".join(f"{key}: {value}" for key, value in entry.items())
            if entry["event"] == "connection ended":
                client = self.clients[str(entry["peer"])]
                assert not client.reason, f"{client.name} ended twice: {client.reason}, {entry['reason']}"
                client.reason = str(entry["reason"])
                ends[client.reason] += 1
        for client in self.clients.values():
            assert client.over.is_set() or client.muted or client.told, f"{client.name} hasn't seen its end"
            client.check_end()
            self.trace.append(f"{client.name} ended by {client.reason}")
        self.counts.update({f"end {reason}": count for reason, count in ends.items()})
        self.counts["clients"] += len(self.clients)
        self.counts["publications"] += sum(len(room.frames) for room in self.rooms.values())
        self.counts["epochs"] += sum(room.epochs for room in self.rooms.values())
        figures = dict(
            line.rsplit(" ", 1) for line in self.node.metrics.text().decode().splitlines() if not line.startswith("#")
        )
        for name in ("hubbub_internal_errors_total", "hubbub_rooms_failed_total"):
            assert float(figures[name]) == 0, name


async def _sleep(seconds: float) -> None:
    """Sleep until a tick; 0 is only a checkpoint."""
    if seconds:
        await trio.sleep_until(math.ceil((trio.current_time() + seconds) / TICK_SECONDS) * TICK_SECONDS)
    else:
        await trio.lowlevel.checkpoint()


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living
