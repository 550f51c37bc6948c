"""One seed, one world: the real node, a virtual clock, bounded pipes, clients that misbehave, a seeded scheduler.

    run_world(seed)
    ├─ chaos     some clients in some rooms publish, stall, vanish, break the protocol, come back
    ├─ healing   whoever stalled reads again; whoever is still connected must catch up, the silent must be gone
    └─ the end   everyone leaves, or the node drains; nothing may be left of anybody

What is checked, for each client and at each message: it sees one contiguous run of its room's order, byte for
byte, from exactly where it joined (P1, P2); everyone's own messages are in that order as sent, each once (P3);
whoever was cut off was told why, or its stream broke; nothing is left (P7); no internal error was logged.

Everything follows from the seed: Trio's scheduler is seeded too, through a private switch (see `seeded_scheduler`),
and each pipe draws from a generator of its own. So it doesn't matter in which order the node walks over its set of
connections, which is the one order here that depends on addresses.
"""

import contextlib
import math
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from unittest import mock

import msgspec
import structlog
import trio
from trio._core import _run
from trio.testing import MockClock

from bounded_pipes import make_pipe
from hubbub.config import Settings
from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, MASKED, PING, PONG, TEXT, encode_frame, unmask
from hubbub.dialects.plain import PING_FRAME
from hubbub.model.command import Answer, Command, Refusal, Refused, Subscribe, Subscribed
from hubbub.model.publication import Kind, Member, Publication
from hubbub.node import Node, open_node
from peers import Closed, HandshakeRefused, Peer, close_payload, handshake, shake_hands
from servers import leftovers, until_quiet

CODES = {
    "peer_closed": {1000},
    "protocol_error": {1002, 1007},
    "message_too_large": {1009},
    "too_many_fragments": {1008},
    "too_many_control_frames": {1008},
    "no_pong": {1011},
    "slow_consumer": {1013},
    "write_stall": set[int](),
    "peer_left": set[int](),
    "peer_reset": set[int](),
    "shutdown": {1001},
}
"""What a client may be told, by the reason that the node logs. Others don't occur in a healthy node."""

CUT = 1006
"""What a client notes when its stream ends without a Close frame."""

CHAOS_SECONDS = 8.0
TICK_SECONDS = 0.05
"""Clients act at multiples of this, so that much happens at the same moment, in an order that the seed decides."""
PATIENCE_SECONDS = 20.0
"""More than all deadlines of a connection one after the other: whatever is to happen has happened by then."""


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


def run_world(seed: int) -> Outcome:
    """Run the world of this seed.

    Raises:
        WorldError: a promise was broken.
    """
    world = World(seed)
    try:
        with captured_log(world.entries):
            run_seeded(seed, world.run)
    except Exception as error:
        causes = "\n".join(f"  {type(leaf).__name__}: {leaf}" for leaf in _leaves(error))
        tail = "\n".join(f"    {line}" for line in world.trace[-15:])
        raise WorldError(
            f"the world of seed {seed} failed; run it again with\n"
            f"  SIMULATION_SEED={seed} python -m pytest tests/test_simulation.py -k replay\n{causes}\n{tail}"
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


class Room:
    """What the engine accepted in one room, in its order, each as the frame that it is sent as."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: list[bytes] = []
        self.numbers: dict[str, int] = {}  # by publisher: the number of its next message


class HearingPeer(Peer):
    """A peer that lets one see what it couldn't parse."""

    @property
    def rest(self) -> bytes:
        """The beginning of a frame whose end hasn't come."""
        return bytes(self._buffer)


class Client:
    """One connection from its client's side, and what is known of it.

    Attributes:
        attempted: its messages by number, as the frames that they'd come back as.
        faults: what it did that may cost it its connection, or keep it from hearing of it.
        first: where in the room's order its run begins; None until it has joined.
        seen: how many publications it has seen.
        told: the Close that it was sent.
        over: it has seen the end of its stream.
        served: the node is done with it.
    """

    def __init__(self, world: "World", name: str, room: Room, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.room = room
        self.rng = rng
        self.history = rng.choice([0, 0, 3, 10, 1000])
        transport, self.stream = make_pipe(random.Random(rng.getrandbits(64)), rng.choice([64, 256, 1024, 4096]))
        self.transport = transport
        self.attempted: list[bytes] = []
        self.faults: set[str] = set()
        self.first: int | None = None
        self.seen = 0
        self.told: Closed | None = None
        self.over = trio.Event()
        self.served = trio.Event()
        self.reason = ""  # as logged by the node
        self.muted = False  # says nothing any more
        self.deaf = False  # didn't take anything when the node gave it up
        self._resumed_at = 0.0
        self._pings: list[bytes] = []  # not yet answered
        self._pings_sent = 0
        self._close_sent = False
        self._reading = trio.Event()
        self._reading.set()
        self._lock = trio.StrictFIFOLock()
        self._peer: HearingPeer | None = None

    @property
    def expected(self) -> list[bytes]:
        """All that it must see, if it lives."""
        return [] if self.first is None else self.room.frames[self.first :]

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.world.note(self.name, what)

    def do(self, what: str, fault: bool = False) -> None:
        """Note what it does, and whether that may cost it its connection."""
        self.note(what)
        self.world.counts[what] += 1
        if fault:
            self.faults.add(what)

    # -- connecting and reading

    async def connect(self) -> bool:
        """Shake hands, sometimes with the first messages right behind; False if that came to nothing."""
        request = handshake(f"/chat/{self.room.name}" + (f"?history={self.history}" if self.history else ""))
        if self.history:
            self.do("history join")
        if self.rng.random() < 0.2:
            self.do("early message")
            request += self.message() + self.message()
        try:
            peer = await shake_hands(self.stream, request)
        except (HandshakeRefused, trio.BrokenResourceError, trio.TooSlowError) as error:
            self.do(f"no handshake ({type(error).__name__})")
            answer = error.response if isinstance(error, HandshakeRefused) else b""
            assert b"HTTP/1.1 ".startswith(answer[:9]), f"{self.name} was answered {answer[:40]!r}"
            self.stream.reset()
            self.over.set()
            return False
        self.note("connected")
        self._peer = HearingPeer(self.stream, bytes(peer._buffer))
        self.world.nursery.start_soon(self._read, self._peer)
        return True

    async def _read(self, peer: HearingPeer) -> None:
        try:
            while True:
                await self._reading.wait()
                try:
                    first, payload = await peer.receive_frame()
                except trio.TooSlowError:
                    continue  # nothing came, which is none of ours
                self._take(first, payload)
        except Closed as end:
            self.note(f"over: {end.reason}")
            if not self.stream.inbound.broken:
                self._check_rest(peer.rest)
            if not self.muted:
                self.stream.end()
        finally:
            self.over.set()

    def _take(self, first: int, payload: bytes) -> None:
        assert self.told is None, f"{self.name} got a frame after the Close"
        if first in (FIN | TEXT, FIN | BINARY):
            self._take_publication(encode_frame(first & 0x0F, payload))
        elif first == FIN | PING:
            if not self.muted:
                self.world.nursery.start_soon(self.write, self.frame(PONG, payload))
        elif first == FIN | PONG:
            assert self._pings, f"{self.name} got a pong that it didn't ask for"
            assert payload == self._pings.pop(0), f"{self.name} got another pong than it asked for"
        else:
            assert first == FIN | CLOSE, f"{self.name} got a frame that begins with {first:#x}"
            self.told = Closed(int.from_bytes(payload[:2], "big") if payload else 1005, payload[2:].decode())
            self.note(f"told {self.told.code} {self.told.reason}")
            self.world.counts[f"told {self.told.code}"] += 1
            if not self.muted and not self._close_sent:
                self._close_sent = True
                self.world.nursery.start_soon(self.write, self.frame(CLOSE, payload[:2]))

    def _take_publication(self, frame: bytes) -> None:
        assert self.first is not None, f"{self.name} got a publication before it joined"
        at = self.first + self.seen
        assert at < len(self.room.frames), f"{self.name} got a publication beyond the room's top"
        expected = self.room.frames[at]
        assert frame == expected, f"{self.name} got {frame[:40]!r} at offset {at + 1}, expected {expected[:40]!r}"
        self.seen += 1
        self.note(f"saw {at + 1}")

    def _check_rest(self, rest: bytes) -> None:
        """The stream ended within a frame: that must be the beginning of one that was due."""
        if rest:
            due = [
                PING_FRAME,
                *(encode_frame(PONG, payload) for payload in self._pings[:1]),
                *self.expected[self.seen :],
            ]
            assert self.told is None, f"{self.name} got bytes after the Close"
            assert rest[0] == FIN | CLOSE or any(frame.startswith(rest) for frame in due[:3]), (
                f"{self.name} was left with {rest[:40]!r}…{rest[-40:]!r}, which isn't the beginning of what was due"
            )

    # -- writing

    async def write(self, data: bytes) -> None:
        """Send bytes, after those under way; nothing happens if the stream is broken."""
        with trio.CancelScope(shield=True):  # half a frame is sent only on purpose
            async with self._lock:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.stream.send_all(data)

    def frame(self, opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0) -> bytes:
        """Return a masked frame: `peers.client_frame` at a tenth of the cost, which is most of a world's."""
        mask = self.rng.randbytes(4)
        plain = encode_frame(opcode, payload)
        header = plain[: len(plain) - len(payload)]
        first = (FIN if fin else 0) | rsv | opcode
        masked = unmask(mask + payload, 4, 4 + len(payload))
        return bytes((first, header[1] | MASKED)) + header[2:] + mask + masked

    def message(self, *, fragments: int = 1) -> bytes:
        """Return the next message, in so many frames, with a ping among them now and then."""
        rng = self.rng
        opcode = BINARY if rng.random() < 0.2 else TEXT
        size = rng.choice([rng.randint(0, 100), rng.randint(0, 100), rng.randint(100, 1000), rng.randint(1000, 3900)])
        filler = rng.choice(["x", "y", "ü"])
        payload = f"{self.name}:{len(self.attempted)}:".encode() + (filler * size).encode()[: size // 2 * 2]
        self.attempted.append(encode_frame(opcode, payload))
        cuts = sorted(rng.randint(0, len(payload)) for _ in range(fragments - 1))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        frames = []
        for index, piece in enumerate(pieces):
            frames.append(self.frame(CONTINUATION if index else opcode, piece, fin=index == len(pieces) - 1))
            if len(pieces) > 1 and rng.random() < 0.2:
                frames.append(self.ping())
        return b"".join(frames)

    def ping(self) -> bytes:
        """Return a ping, whose answer is expected."""
        self._pings_sent += 1
        payload = f"{self._pings_sent}".encode()
        self._pings.append(payload)
        return self.frame(PING, payload)

    def some(self) -> bytes:
        """Return some harmless frames, as they'd come in one segment."""
        frames = []
        for _ in range(self.rng.randint(1, 4)):
            kind = self.rng.random()
            if kind < 0.4:
                frames.append(self.ping())
            elif kind < 0.7:
                frames.append(self.message(fragments=self.rng.randint(2, 5)))
            else:
                frames.append(self.message())
        return b"".join(frames)

    # -- what it does

    async def act(self, good: bool) -> None:
        """Do one thing, drawn at random; a good client does nothing that could cost it its connection."""
        harmless: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (6, self.publish),
            (2, self.publish_burst),
            (2, self.publish_fragmented),
            (1, self.send_ping),
            (1, self.publish_mixture),
        ]
        harmful: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (3, self.stall),
            (0.4, self.say_close),
            (0.2, self.half_close),
            (0.2, self.reset),
            (0.3, self.fall_mute),
            (0.3, self.fall_silent),
            (0.2, self.send_oversize),
            (0.1, self.send_too_many_fragments),
            (0.3, self.violate),
            (0.1, self.break_off),
            (0.3, self.flood_with_pings),
        ]
        choices = harmless if good else harmless + harmful
        (_, action), *_ = self.rng.choices(choices, [weight for weight, _ in choices])
        await action()

    async def publish(self) -> None:
        """Send one message in one frame."""
        self.do("publish")
        await self.write(self.message())

    async def publish_burst(self) -> None:
        """Send many messages, together or one after the other."""
        self.do("burst")
        messages = [self.message() for _ in range(self.rng.randint(2, 12))]
        if self.rng.random() < 0.5:
            messages = [b"".join(messages)]
        for message in messages:
            await self.write(message)

    async def publish_fragmented(self) -> None:
        """Send a message in several frames and others right behind it."""
        self.do("fragmented")
        message = self.message(fragments=self.rng.randint(2, 5))
        await self.write(message + b"".join(self.message() for _ in range(self.rng.randint(0, 3))))

    async def publish_mixture(self) -> None:
        """Send pings, messages and messages in fragments in one piece."""
        self.do("mixture")
        await self.write(self.some())

    async def send_ping(self) -> None:
        """Send a ping."""
        self.do("ping")
        await self.write(self.ping())

    async def stall(self) -> None:
        """Take nothing for a while."""
        if not self.stream.inbound.stalled:
            self.do("stall", fault=True)
            self.stream.stall()
            self.world.nursery.start_soon(
                self._resume, self.rng.choice([0.3, 1.0, 2.0, 5.0]) * self.rng.uniform(0.5, 1.5)
            )

    async def _resume(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.note("resume")
        self._resumed_at = trio.current_time()
        self.stream.resume()

    async def say_close(self) -> None:
        """Close in good order; sometimes with much right before it."""
        before = self.some() if self.rng.random() < 0.5 else b""
        after = self.rng.choice(
            [b"", b"", self.frame(PING, b"late"), self.frame(CLOSE, b""), self.frame(TEXT, b"late")]
        )
        self.do("close", fault=True)
        self._close_sent = True
        await self.write(before + self.frame(CLOSE, close_payload(1000)) + after)
        await self.until_served()

    async def half_close(self) -> None:
        """Send no more."""
        self.do("half-close", fault=True)
        self.stream.end()
        await self.until_served()

    async def reset(self) -> None:
        """Break the connection."""
        self.do("reset", fault=True)
        self.stream.reset()
        await self.until_served()

    async def fall_mute(self) -> None:
        """Say nothing any more, not even pong; go on reading."""
        self.do("mute", fault=True)
        self.muted = True
        await self.over.wait()

    async def fall_silent(self) -> None:
        """Say nothing and read nothing any more."""
        self.do("silent", fault=True)
        self.muted = True
        self._reading = trio.Event()
        await self.until_served()

    async def send_oversize(self) -> None:
        """Send a message over the limit, after some others and before some more."""
        self.do("oversize", fault=True)
        size = self.rng.choice([4097, 5000, 66_000])
        before = self.some()
        big = self.frame(TEXT, b"z" * size)
        end = self.rng.random()
        if end < 0.3:
            self.muted = True
            big = big[: self.rng.randint(8, len(big))]
        elif end < 0.6:
            big += self.some() + self.rng.choice(self._violations())
        await self.write(before + big)
        await self.until_served()

    async def send_too_many_fragments(self) -> None:
        """Send a message in more frames than are allowed."""
        self.do("too many fragments", fault=True)
        some = self.some()
        pieces = [self.frame(CONTINUATION if index else TEXT, b"f", fin=False) for index in range(9)]
        await self.write(some + b"".join(pieces))
        await self.until_served()

    async def flood_with_pings(self) -> None:
        """Send more pings than are allowed, with messages before and after."""
        self.do("ping flood", fault=True)
        before = self.some()
        await self.write(before + b"".join(self.ping() for _ in range(150)) + self.some())
        await self.until_served()

    async def violate(self) -> None:
        """Send what no client may."""
        self.do("violation", fault=True)
        some = self.some()
        await self.write(some + self.rng.choice(self._violations()))
        await self.until_served()

    def _violations(self) -> list[bytes]:
        return [
            encode_frame(TEXT, b"unmasked"),
            self.frame(TEXT, b"rsv", rsv=0x40),
            self.frame(0x3, b"opcode"),
            self.frame(CONTINUATION, b"continues nothing"),
            self.frame(TEXT, b"not UTF-8: \xff"),
            self.frame(PING, b"fragmented", fin=False),
            self.frame(CLOSE, b"\x00"),
        ]

    async def break_off(self) -> None:
        """Stop within a frame, and end or vanish there."""
        self.do("break off", fault=True)
        frame = self.frame(TEXT, b"never complete")
        self.muted = True
        await self.write(frame[: self.rng.randint(1, len(frame) - 1)])
        if self.rng.random() < 0.7:
            self.stream.end()
        await self.until_served()

    async def until_served(self) -> None:
        """Wait until the node is done with it: within a bounded time, whatever happened."""
        with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE_SECONDS):
            await self.served.wait()
        assert self.served.is_set(), f"{self.name} was not let go within {PATIENCE_SECONDS} s"

    def let_go(self) -> None:
        """Note that the node is done with it."""
        self.note("served")
        self.deaf = self.stream.inbound.stalled or self._resumed_at == trio.current_time()
        self.served.set()

    def heal(self) -> None:
        """Take everything that comes from here on."""
        self._reading.set()
        if self.stream.inbound.stalled:
            self._resumed_at = trio.current_time()
        self.stream.resume()

    # -- what must hold when it is over

    @property
    def lives(self) -> bool:
        """Whether it is connected, as far as both sides know."""
        return not self.over.is_set() and not self.served.is_set() and self.told is None

    def is_up_to_date(self) -> bool:
        """Whether it has seen, and is known for, everything."""
        return self.seen == len(self.expected) and self.room.numbers.get(self.name, 0) == len(self.attempted)

    def check_end(self) -> None:
        """What it was told agrees with why it was ended."""
        reason, told = self.reason, self.told
        about = f"{self.name} (faults {sorted(self.faults)}, ended by {reason or 'nothing'}, told {told})"
        assert reason or self.first is None, f"{about}: it joined, and never ended"
        if self._peer is None:
            return  # it never saw the 101
        assert reason in CODES, about
        if told is not None:
            assert told.code in CODES[reason] | ({1000} if "close" in self.faults else set()), about
        hears = not self.faults & {"mute", "silent", "reset", "half-close", "break off"} and not self.muted
        if hears:
            assert reason not in ("peer_left", "peer_reset"), about
            assert reason not in ("write_stall", "no_pong") or "stall" in self.faults, about
        if hears and not self.deaf and reason != "write_stall":
            assert told is not None, f"{about}: nobody said why"
        if reason == "peer_closed":
            assert "close" in self.faults, about
            if hears:
                published = self.room.numbers.get(self.name, 0)
                assert published == len(self.attempted), f"{about}: {published} of {len(self.attempted)} published"


class World:
    """The node, its clients, and what the node accepted."""

    nursery: trio.Nursery
    node: Node

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"world {seed}")
        self.entries: list[dict[str, object]] = []
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.clients: dict[str, Client] = {}
        self.rooms = {f"room{number}": Room(f"room{number}") for number in range(self.rng.randint(1, 3))}
        self.settings = make_settings(self.rng)
        self.calm = self.rng.choice([1, 2, 10])  # where little is said, who stalls isn't evicted first

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{trio.current_time():.4f} {who} {what}")

    async def run(self) -> None:
        """Live."""
        rng = self.rng
        draining = rng.random() < 0.3
        with trio.fail_after(1000):
            before = _tasks()
            async with trio.open_nursery() as self.nursery:
                async with open_node(self.settings, random.Random(rng.getrandbits(64))) as (self.node, connections):
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
        """Note the order that the engine gives, and where in it each client joins."""
        append, carry_out = node.engine.append, node.hub.carry_out

        def recorded_append(
            room: str, data: bytes, kind: Kind, now: float, publisher: Member | None = None
        ) -> Publication:
            publication = append(room, data, kind, now, publisher)
            self._accepted(self.rooms[room], publication)
            return publication

        def recorded_carry_out(command: Command, now: float) -> None:
            if isinstance(command, Subscribe):
                command = recorded(command)
            carry_out(command, now)

        def recorded(command: Subscribe) -> Subscribe:
            client = self.clients[command.asker._upgrade.peer]  # type: ignore[attr-defined]

            def reply(answer: Answer) -> None:
                if answer == Refused(Refusal.STOPPING):  # it has left already
                    command.reply(answer)
                    return
                assert isinstance(answer, Subscribed), answer
                past = [_frame_of(publication) for publication in answer.publications]
                top = len(client.room.frames)
                client.first = top - len(past)
                client.note(f"joined at {top}")
                if answer.position.offset != top or past != client.room.frames[client.first :]:
                    self.entries.append({"level": "error", "event": f"{client.name} joined with a wrong history"})
                if len(past) != min(client.history, top, self.settings.history_size):
                    self.entries.append({"level": "error", "event": f"{client.name} joined with {len(past)} past"})
                command.reply(answer)

            return msgspec.structs.replace(command, reply=reply)

        node.engine.append = recorded_append  # type: ignore[method-assign]
        node.hub.carry_out = recorded_carry_out  # type: ignore[method-assign]

    def _accepted(self, room: Room, publication: Publication) -> None:
        room.frames.append(_frame_of(publication))
        name, number, _ = publication.data.split(b":", 2)
        publisher = self.clients[name.decode()]
        expected = room.numbers.get(publisher.name, 0)
        problem = ""
        if publication.offset != len(room.frames):
            problem = f"offset {publication.offset} follows {len(room.frames) - 1}"
        elif int(number) != expected:
            problem = f"message {int(number)} of {publisher.name} was accepted when {expected} was due"
        elif room.frames[-1] != publisher.attempted[expected]:
            problem = f"message {expected} of {publisher.name} was accepted with other bytes"
        if problem:  # raised here it would be caught by the hub: it looks like a bug of the room's
            self.entries.append({"level": "error", "event": problem})
        room.numbers[publisher.name] = int(number) + 1

    async def _act(self, index: int, rng: random.Random, connections: trio.Nursery) -> None:
        """Be one client after the other, until the chaos is over. The first is always a good one."""
        good = index == 0 or rng.random() < 0.3
        busy = rng.choice([0.05, 0.2, 0.5]) * self.calm
        with trio.move_on_at(CHAOS_SECONDS):
            await _sleep(rng.uniform(0, 2))
            for life in range(100):
                client = Client(self, f"c{index}.{life}", self.rooms[rng.choice(list(self.rooms))], rng)
                self.clients[client.name] = client
                connections.start_soon(self._serve, client)
                if not good and rng.random() < 0.1:
                    await self._stumble(client)
                elif await self._connect(client):
                    while client.lives:
                        await _sleep(rng.choice([0, rng.expovariate(1 / busy)]))
                        await client.act(good)
                await _sleep(rng.uniform(0, 0.5))

    async def _serve(self, client: Client) -> None:
        try:
            await self.node.front_door.serve(client.transport, client.name, "localhost")
        finally:
            client.let_go()

    async def _connect(self, client: Client) -> bool:
        with trio.CancelScope(shield=True):  # half a request is sent only on purpose
            return await client.connect()
        raise AssertionError("this scope is never cancelled")

    async def _stumble(self, client: Client) -> None:
        """Vanish during the handshake."""
        client.do("stumble", fault=True)
        client.history = 0
        request = handshake(f"/chat/{client.room.name}")
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
                assert client.is_up_to_date(), (
                    f"{client.name} saw {client.seen} of {len(client.expected)}, and "
                    f"{client.room.numbers.get(client.name, 0)} of its {len(client.attempted)} are published"
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
        figures = dict(
            line.rsplit(" ", 1) for line in self.node.metrics.text().decode().splitlines() if not line.startswith("#")
        )
        for name in ("hubbub_internal_errors_total", "hubbub_rooms_failed_total"):
            assert float(figures[name]) == 0, name


def _frame_of(publication: Publication) -> bytes:
    return encode_frame(BINARY if publication.kind is Kind.BINARY else TEXT, publication.data)


async def _sleep(seconds: float) -> None:
    """Sleep until a tick; 0 is only a checkpoint."""
    if seconds:
        await trio.sleep_until(math.ceil((trio.current_time() + seconds) / TICK_SECONDS) * TICK_SECONDS)
    else:
        await trio.lowlevel.checkpoint()


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living
