"""The outbox: frames on their way to one peer.

Rules:
1. One FIFO for everything the peer is sent: publications, pings, pongs, the Close, the 101 before them.
2. `offer` never waits and never raises. Nothing queued and the transport takes it all: it is sent at once, without
   a task switch. Otherwise it waits in a memory channel, and a writer task, started for the backlog, sends what
   waits joined into few sends, and ends when nothing is left.
3. What *already* waits is bounded in bytes and frames. An offer beyond that is refused: the peer is a slow consumer.
   From then on it gets nothing but the rest of the frame that has begun, and the Close: with what it has missed
   there would be a gap (P2). A peer that takes no byte for `write_stall_seconds_max` is given up.
4. A frame that has begun is finished before anything else is sent, or nothing is ever sent again.
5. After a Close nothing more is taken: SEALED.

    HELD ──open──▶ OPEN ─────────seal────────▶ SEALED       a failed send, or a stall:  ──▶ BROKEN
     └──over a limit──┴─▶ EVICTED ───────seal───▲           the connection is over:     ──▶ CLOSED

HELD is the time before the 101: the room is joined first, so that no publication is missed, but nothing may
overtake the 101.

*Resource handling*: `serve_connection` opens the outbox and closes it before its nursery ends; the writer runs in
that nursery. Both ends of the memory channel live from the first queued piece to the last.
"""

import enum
import math
from collections.abc import Callable

import trio

from hubbub.config import Settings
from hubbub.connection.transport import Transport
from hubbub.core.frames import FIN, frame_end
from hubbub.model.end import End

JOINED_BYTES_MAX = 64 * 1024
"""The writer joins what waits up to here into one send: more fills no socket buffer any better."""


class State(enum.Enum):
    """Where in its life an outbox is (rule 5 and the picture above)."""

    HELD = enum.auto()
    OPEN = enum.auto()
    EVICTED = enum.auto()
    SEALED = enum.auto()
    BROKEN = enum.auto()
    CLOSED = enum.auto()


class OutboxTotal:
    """What waits in all outboxes together.

    Args:
        settings: outboxes_bytes_max.
        on_over: called when it is more than that, to make room. It must not wait or raise.
    """

    __slots__ = ("_on_over", "_settings", "bytes")

    def __init__(self, settings: Settings, on_over: Callable[[], None]) -> None:
        self._settings = settings
        self._on_over = on_over
        self.bytes = 0

    def add(self, count: int) -> None:
        """Count bytes that wait, or, negative, no longer."""
        self.bytes += count
        if count > 0 and self.bytes > self._settings.outboxes_bytes_max:
            self._on_over()


class Backlog:
    """What waits: the pieces in the memory channel, and the rest of the piece in the writer's hand."""

    __slots__ = (
        "_closed",
        "_put",
        "_take",
        "_total",
        "bytes",
        "dropping",
        "frames",
        "history_bytes",
        "history_frames",
    )

    def __init__(self, total: OutboxTotal) -> None:
        self._total = total
        self._closed = False
        # `is_over` is the bound, by settings that may change meanwhile; here it would be one that can raise.
        self._put, self._take = trio.open_memory_channel[tuple[bytes, int]](math.inf)
        self.bytes = 0
        self.frames = 0
        self.history_bytes = 0  # of these, put by `offer_history`: a newcomer isn't slow for what it has asked for
        self.history_frames = 0
        self.dropping = False

    def is_over(self, settings: Settings) -> bool:
        """Whether what waits already, history apart, is as much as may wait."""
        return (
            self.bytes - self.history_bytes >= settings.outbox_bytes_max
            or self.frames - self.history_frames >= settings.outbox_frames_max
        )

    def put(self, piece: bytes, frames: int) -> None:
        """Add a piece."""
        self._put.send_nowait((piece, frames))
        self.frames += frames
        self.count(len(piece))

    def take(self) -> tuple[bytes, int]:
        """Return what waits, joined, up to a sensible size, and its number of frames; b'' if nothing does."""
        pieces: list[bytes] = []
        size = frames = 0
        while size < JOINED_BYTES_MAX:
            try:
                piece, piece_frames = self._take.receive_nowait()
            except trio.WouldBlock:
                break
            pieces.append(piece)
            size += len(piece)
            frames += piece_frames
        return b"".join(pieces), frames

    def drop(self) -> None:
        """Forget every piece that hasn't begun; of the one that has, only the frame that has begun is left."""
        while True:
            piece, frames = self.take()
            if not piece:
                break
            self.frames -= frames
            self.count(-len(piece))
        self.dropping = True

    def count(self, count: int) -> None:
        """Count bytes that wait, or, negative, no longer: here and in the total."""
        if not self._closed:
            self.bytes += count
            self._total.add(count)

    def close(self) -> None:
        """Close both ends of the memory channel."""
        self.count(-self.bytes)
        self._closed = True
        self._put.close()
        self._take.close()


class Outbox:
    """Frames waiting for one peer.

    Args:
        transport: its send side is the outbox's alone; by `direct` the hub sends for it.
        nursery: the connection's; the writer runs there.
        settings: outbox_bytes_max, outbox_frames_max, write_stall_seconds_max.
        total: of all outboxes.
        on_end: called, once, when the peer is a slow consumer, stalls, or is found gone. It must not wait or raise.
    """

    __slots__ = (
        "_backlog",
        "_flushed",
        "_nursery",
        "_on_end",
        "_settings",
        "_state",
        "_total",
        "_transport",
        "bytes_sent",
        "direct",
    )

    def __init__(
        self,
        transport: Transport,
        nursery: trio.Nursery,
        settings: Settings,
        total: OutboxTotal,
        on_end: Callable[[End], None],
    ) -> None:
        self._transport = transport
        self._nursery = nursery
        self._settings = settings
        self._total = total
        self._on_end = on_end
        self._state = State.HELD
        self.direct: Callable[[bytes], int] | None = None  # OPEN, and nothing queued: what is offered is sent at once
        self._backlog: Backlog | None = None
        self._flushed: trio.Event | None = None
        self.bytes_sent = 0

    @property
    def state(self) -> State:
        """Where in its life the outbox is."""
        return self._state

    @property
    def bytes_queued(self) -> int:
        """How many bytes wait, the unsent part of a piece that has begun included."""
        return self._backlog.bytes if self._backlog else 0

    @property
    def frames_queued(self) -> int:
        """How many frames wait, those in the writer's hand included."""
        return self._backlog.frames if self._backlog else 0

    @property
    def is_done(self) -> bool:
        """Whether everything, a Close last, has been given to the transport."""
        return self._state is State.SEALED and self._backlog is None

    def offer(self, data: bytes, frames: int = 1) -> None:
        """Take complete frames to be sent. Never waits, never raises; does nothing unless HELD or OPEN."""
        send = self.direct
        if send is not None:
            try:
                sent = send(data)
            except (OSError, trio.BrokenResourceError) as error:
                sent = 0
                if not isinstance(error, BlockingIOError):
                    self._break(End.PEER_RESET)
                    return
            self.bytes_sent += sent
            if sent < len(data):
                self.go_on(data, frames, sent)
        elif self._state is State.OPEN or self._state is State.HELD:
            if self._backlog is None:
                self._backlog = Backlog(self._total)
            if self._backlog.is_over(self._settings):
                self.evict()
            else:
                self._backlog.put(data, frames)

    def offer_history(self, data: bytes, frames: int) -> None:
        """Take what was asked for of the past: it doesn't count against the limits, being bounded by its own.

        One at a time: who asks again before it has read the last one has no such privilege.
        """
        self.offer(data, frames)
        backlog = self._backlog
        if backlog is not None and not backlog.history_bytes:
            backlog.history_bytes = min(len(data), backlog.bytes)
            backlog.history_frames = min(frames, backlog.frames)

    def evict(self) -> None:
        """Forget what waits, but for the rest of a frame that has begun, and end the connection."""
        if self._state is State.OPEN or self._state is State.HELD:
            self._state = State.EVICTED
            self.direct = None
            self._on_end(End.SLOW_CONSUMER)
            if self._backlog is not None:
                self._backlog.drop()

    def open(self, head: bytes) -> None:
        """Send `head` (the 101), then what was offered while HELD, then whatever comes. To be called once."""
        if self._state is State.HELD:
            self._state = State.OPEN
        if self._backlog is not None:
            self.go_on(head, 0, 0)  # also for one who was evicted while HELD: the 101, then the Close
        else:
            self.direct = self._transport.send_bare
            self.offer(head, 0)
            if self._state is not State.OPEN:
                self.direct = None

    def seal(self, close_frame: bytes) -> None:
        """Send the Close after everything queued, and take nothing more; does nothing unless OPEN or EVICTED."""
        if self._state is State.OPEN or self._state is State.EVICTED:
            self._state = State.SEALED
            if self._backlog is None:
                self.direct = self._transport.send_bare  # also of one who was evicted
                self.offer(close_frame, 1)
                self.direct = None
            else:
                self._backlog.put(close_frame, 1)

    async def flushed(self) -> None:
        """Wait until nothing is queued. Not a checkpoint if nothing is.

        Raises:
            trio.BrokenResourceError: something couldn't be sent.
        """
        while self._backlog is not None:
            if self._flushed is None:
                self._flushed = trio.Event()
            await self._flushed.wait()
        if self._state in (State.BROKEN, State.CLOSED):
            raise trio.BrokenResourceError(f"outbox is {self._state.name}")

    def close(self) -> None:
        """Drop everything. Idempotent."""
        self._finish(State.CLOSED)

    def go_on(self, piece: bytes, frames: int, sent: int) -> None:
        """Start the writer with the rest of a piece that has begun; nothing else may be queued but for one HELD."""
        self.direct = None  # before the writer starts: the next offer must not start another
        if self._backlog is None:
            self._backlog = Backlog(self._total)
        backlog = self._backlog  # counting may end this very connection
        backlog.frames += frames
        backlog.count(len(piece) - sent)
        self._nursery.start_soon(self._run_writer, backlog, piece, frames, sent)

    async def _run_writer(self, backlog: Backlog, piece: bytes, frames: int, sent: int) -> None:
        while piece:
            failure = await self._write(backlog, piece, sent)
            if self._backlog is not backlog:
                return  # closed meanwhile
            if failure is not None:
                self._break(failure)
                return
            backlog.frames -= frames
            backlog.history_frames -= min(backlog.history_frames, frames)  # it is what goes first
            (piece, frames), sent = backlog.take(), 0
        # No checkpoint since `take` found nothing: nobody can have put a piece that would be left behind.
        self._finish(self._state)

    async def _write(self, backlog: Backlog, piece: bytes, sent: int) -> End | None:
        view = memoryview(piece)
        is_head = not piece[0] & FIN  # the 101 goes out whole, or not at all
        while sent < len(piece):
            stop = len(piece) if is_head or not backlog.dropping else frame_end(piece, sent)
            if sent == stop:
                break  # at a frame's end, and what follows isn't wanted any more
            with trio.move_on_after(self._settings.write_stall_seconds_max) as deadline:
                try:
                    taken = await self._transport.send_some(view[sent:stop])
                except trio.BrokenResourceError:
                    return End.PEER_RESET
            if deadline.cancelled_caught:
                return End.WRITE_STALL
            sent += taken
            backlog.count(-taken)
            backlog.history_bytes -= min(backlog.history_bytes, taken)
            self.bytes_sent += taken
        backlog.count(sent - len(piece))
        backlog.dropping = False  # what was put after the drop, the Close, is wanted
        return None

    def _break(self, end: End) -> None:
        self._finish(State.BROKEN)
        self._on_end(end)

    def _finish(self, state: State) -> None:
        """Let go of the backlog, go on in `state`, and wake who waits for the flush."""
        self._state = state
        self.direct = self._transport.send_bare if state is State.OPEN else None
        if self._backlog is not None:
            self._backlog.close()
            self._backlog = None
        if self._flushed is not None:
            self._flushed.set()
            self._flushed = None
