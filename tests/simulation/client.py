"""What all clients of a simulated world share: the pipe, frames, pings, and the ways to misbehave below the dialect."""

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import TYPE_CHECKING

import trio

from bounded_pipes import make_pipe
from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, MASKED, PING, PONG, TEXT, encode_frame, unmask
from hubbub.model.publication import Kind
from peers import Closed, HandshakeRefused, Peer, close_payload, handshake, shake_hands
from simulation.record import Message, Room

if TYPE_CHECKING:
    from simulation.world import World

PATIENCE_SECONDS = 20.0
"""More than all deadlines of a connection one after the other: whatever is to happen has happened by then."""

Choices = list[tuple[float, Callable[[], Awaitable[None]]]]
"""What a client may do, and how often."""


class HearingPeer(Peer):
    """A peer that lets one see what it couldn't parse."""

    @property
    def rest(self) -> bytes:
        """The beginning of a frame whose end hasn't come."""
        return bytes(self._buffer)


class Client:
    """One connection from its client's side, and what is known of it.

    Attributes:
        codes: what it may be told, by the reason that the node logs. Others don't occur in a healthy node.
        path: where it connects.
        joined: whether the hub knows it.
        attempted: its own messages by number.
        sent: what it has sent, in its order, by room: its own messages, and those that it repeats.
        faults: what it did that may cost it its connection, or keep it from hearing of it.
        told: the Close that it was sent.
        over: it has seen the end of its stream.
        served: the node is done with it.
        member: how others see it; "" until the hub knows it.
    """

    codes: Mapping[str, Set[int]]
    path: str
    joined: bool

    def __init__(self, world: "World", name: str, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.rng = rng
        pipe_rng, capacity = random.Random(rng.getrandbits(64)), rng.choice([64, 256, 1024, 4096])
        transport, self.stream = make_pipe(pipe_rng, capacity, world.watch)
        self.transport = transport
        self.attempted: list[Message] = []
        self.sent: list[tuple[Room, Message]] = []
        self.faults: set[str] = set()
        self.told: Closed | None = None
        self.over = trio.Event()
        self.served = trio.Event()
        self.member = ""
        self.reason = ""  # as logged by the node
        self.muted = False  # says nothing any more
        self.deaf = False  # didn't take anything when the node gave it up
        self._accepted = 0  # of those sent
        self._resumed_at = 0.0
        self._pings: list[bytes] = []  # not yet answered
        self._pings_sent = 0
        self._close_sent = False
        self._reading = trio.Event()
        self._reading.set()
        self._lock = trio.StrictFIFOLock()
        self._peer: HearingPeer | None = None

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.world.note(self.name, what)

    def do(self, what: str, fault: bool = False) -> None:
        """Note what it does, and whether that may cost it its connection."""
        self.note(what)
        self.world.counts[what] += 1
        if fault:
            self.faults.add(what)

    # -- what the dialects differ in

    async def connect(self, good: bool) -> bool:
        """Shake hands and say the first words; False if that came to nothing."""
        raise NotImplementedError

    def message(self, *, fragments: int = 1) -> bytes:
        """Return the next message, in so many frames, with a ping among them now and then."""
        raise NotImplementedError

    def some(self) -> bytes:
        """Return some harmless frames, as they'd come in one segment."""
        raise NotImplementedError

    def harmless(self) -> Choices:
        """Return what also a good client does."""
        raise NotImplementedError

    def harmful(self) -> Choices:
        """Return what may cost it its connection."""
        return [
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

    def arrears(self) -> str:
        """Return what it must still see; "" if nothing."""
        raise NotImplementedError

    def _take_data(self, opcode: int, payload: bytes) -> None:
        raise NotImplementedError

    def _is_due(self, rest: bytes) -> bool:
        """Whether this can be the beginning of a data frame that was due."""
        raise NotImplementedError

    # -- connecting and reading

    async def shake_hands(self, words: bytes = b"") -> bool:
        """Shake hands, with these words right behind; False if that came to nothing."""
        try:
            peer = await shake_hands(self.stream, handshake(self.path) + words)
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
            self._take_data(first & 0x0F, payload)
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

    def _check_rest(self, rest: bytes) -> None:
        """The stream ended within a frame: that must be the beginning of one that was due."""
        if rest:
            pongs = [encode_frame(PONG, payload) for payload in self._pings[:1]]
            assert self.told is None, f"{self.name} got bytes after the Close"
            assert rest[0] == FIN | CLOSE or any(frame.startswith(rest) for frame in pongs) or self._is_due(rest), (
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

    def frames(self, opcode: int, payload: bytes, count: int) -> bytes:
        """Return one message in so many frames, with a ping among them now and then."""
        rng = self.rng
        cuts = sorted(rng.randint(0, len(payload)) for _ in range(count - 1))
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

    # -- what it does

    async def act(self, good: bool) -> None:
        """Do one thing, drawn at random; a good client does nothing that could cost it its connection."""
        choices = self.harmless() if good else self.harmless() + self.harmful()
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
        """Send some harmless frames in one piece."""
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

    @property
    def published(self) -> int:
        """How many of those that it has sent are accepted, up to the first that isn't."""
        while self._accepted < len(self.sent):
            room, message = self.sent[self._accepted]
            if not (message.key and message.label in room.places):
                break
            self._accepted += 1
        return self._accepted

    def accept(self, room: Room, label: str, kind: Kind, data: bytes) -> str:
        """Note that the engine accepts a message from it; return what is wrong with it: it must be the next (P3)."""
        at = self.published
        if at == len(self.sent):
            return f"{label} was accepted from {self.name}, which hasn't sent it"
        self._accepted += 1
        due_room, due = self.sent[at]
        if (label, room) != (due.label, due_room):
            return f"message {label} of {self.name} was accepted in {room.name} when {due.label} was due"
        return "" if (kind, data) == (due.kind, due.data) else f"message {label} was accepted with other bytes"

    def check_end(self) -> None:
        """What it was told agrees with why it was ended."""
        reason, told = self.reason, self.told
        about = f"{self.name} (faults {sorted(self.faults)}, ended by {reason or 'nothing'}, told {told})"
        assert reason or not self.joined, f"{about}: it joined, and never ended"
        if self._peer is None:
            return  # it never saw the 101
        assert reason in self.codes, about
        if told is not None:
            assert told.code in self.codes[reason] | ({1000} if "close" in self.faults else set()), about
        hears = not self.faults & {"mute", "silent", "reset", "half-close", "break off"} and not self.muted
        if hears:
            assert reason not in ("peer_left", "peer_reset"), about
            assert reason not in ("write_stall", "no_pong") or "stall" in self.faults, about
        if hears and not self.deaf and reason != "write_stall":
            assert told is not None, f"{about}: nobody said why"
        if reason == "peer_closed":
            assert "close" in self.faults, about
            if hears:
                assert self.published == len(self.sent), f"{about}: {self.published} of {len(self.sent)} published"
