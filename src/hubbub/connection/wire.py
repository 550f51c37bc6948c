"""The wire: what trio-websocket sees of the connection, and the short way past it.

trio-websocket is given this stream instead of the socket, so that limits and order are kept here, without a look
at its private parts. Its reader task calls `receive_some`; that is where the connection's input is read, or waited for
while the poller reads (rule 2).

Rules:
1. What trio-websocket sees first is a request head that the front door wrote from checked fields, never the
   client's bytes. Until the 101 is in the outbox nothing more is read.
2. Complete, ordinary data frames (FIN, no RSV, masked, minimal length, valid UTF-8) go straight to the session, and
   well-formed pings are answered, here: 2 µs instead of 60. All else goes to trio-websocket: Closes, fragments, and
   the verdict on whatever is malformed. (A ping that it would come to after our Close would be an error there.)
   Where a read is nothing but short ones, and none has to wait, the reader isn't even woken (`take`).
3. Nothing overtakes: while a message is on its way through trio-websocket, later ones go that way too.
4. The first byte that is neither an ordinary frame nor a fragment nor a well-formed control frame closes the short
   way for good: from there on trio-websocket gets the bytes as they come.
5. Lengths are judged where they are declared: a message over the limit is refused before it is stored, and
   what still comes of that frame is skipped, so that the peer's Close can be seen.
6. Once the connection ends, or the peer has sent its Close, data is discarded, up to a limit; only a Close goes on.
7. b'' means the end of the stream, never "only data frames came".
8. After `frames_at_once_max` frames the others get a turn: a segment full of tiny frames is no privilege. And who
   ends the connection takes turns with the others who do (`turnstile`).
9. Outbound, everything goes to the outbox; only a Close waits until it is out.

RFC 6455 sections 5.2 to 5.5.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

import structlog
import trio

from hubbub.config import Settings
from hubbub.connection.bell import Bell
from hubbub.connection.outbox import Outbox
from hubbub.connection.poller import RECEIVE_BYTES
from hubbub.connection.session import Session
from hubbub.connection.transport import Transport
from hubbub.connection.turnstile import Turnstile
from hubbub.core.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    CONTROL_BYTES_MAX,
    FIN,
    OPCODE,
    PING,
    PONG,
    RSV,
    TEXT,
    MalformedFrameError,
    encode_frame,
    measure_client_frame,
    read_run,
    unmask,
)
from hubbub.core.rate import Bucket
from hubbub.model.end import End

TAKEN_BYTES_MAX = 4096
"""A longer read isn't taken where it is read: it is many messages, or long ones, and worth waking the reader for."""

RUN_MESSAGE_BYTES_MAX = 1024
"""Longer messages are handed over one by one: they cost by their bytes, and a reader that waits would hold more."""

log = structlog.get_logger()

_TEXT_WHOLE = FIN | TEXT
_BINARY_WHOLE = FIN | BINARY
_PING = FIN | PING
_PONG = FIN | PONG


class Wire(trio.abc.Stream):
    """The stream handed to `trio_websocket.wrap_server_stream`.

    Args:
        transport: its receive side is the wire's alone; what the poller reads for it comes to `take`.
        outbox: takes what trio-websocket sends.
        session: takes whole messages, and counts fragments; may wait, but never for the hub's answers.
        head: the request head written by the front door.
        leftover: what the client sent behind its head: the first frames, perhaps.
        settings: message_bytes_max, message_fragments_max.
        turnstile: where ends take turns.
        on_end: called when the wire learns that, and why, the connection ends.

    *Resource handling*: closing the wire only makes it refuse; the transport is `serve_connection`'s to close.
    """

    __slots__ = (
        "_calm",
        "_closed",
        "_control_frames",
        "_discarded_bytes",
        "_ending",
        "_fragments",
        "_head",
        "_leftover",
        "_message_bytes",
        "_on_end",
        "_opening",
        "_outbox",
        "_rest",
        "_session",
        "_settings",
        "_short_way",
        "_skip_bytes",
        "_transport",
        "_turnstile",
        "bytes_received",
        "heard",
        "passing",
        "under_way",
    )

    def __init__(
        self,
        transport: Transport,
        outbox: Outbox,
        session: Session,
        head: bytes,
        leftover: bytes,
        settings: Settings,
        turnstile: Turnstile,
        on_end: Callable[[End], None],
    ) -> None:
        self._transport = transport
        self._outbox = outbox
        self._session = session
        self._head = head
        self._leftover = leftover  # received, but not yet looked at
        self._settings = settings
        self._turnstile = turnstile
        self._on_end = on_end
        self._opening: trio.Event | None = trio.Event()  # until the 101 has been sent
        self._calm = False  # nothing stands between an ordinary message and the session
        self._closed = False
        self._discarded_bytes = 0  # since the end
        self._short_way = True
        self._ending = False
        self._rest = b""  # the beginning of a frame that isn't complete
        self._skip_bytes = 0  # of a refused frame: then it is ending
        self._fragments = 0  # of the message being received in fragments; 0 = none is
        self._message_bytes = 0  # of that message
        self._control_frames: Bucket | None = None  # from the first one on
        self.bytes_received = 0
        self.under_way = 0  # whole messages given to trio-websocket and not yet taken from it
        self.heard = False  # whether anything was received since the heartbeat last looked
        self.passing = Bell()  # rings when something goes through trio-websocket, and at the end

    def message_taken(self) -> None:
        """Say that a message that went through trio-websocket has been dealt with."""
        self.under_way -= 1

    def end(self) -> None:
        """Discard data from here on: the connection is ending."""
        self._ending = True
        self._calm = False
        self.passing.ring()

    @property
    def passes_on(self) -> bool:
        """Whether trio-websocket has something in hand: a message, or the beginning of one, or a fault to find."""
        return bool(self.under_way or self._fragments) or not self._short_way

    # -- what trio-websocket's reader task calls

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes for trio-websocket, having dealt with the ordinary messages among them.

        Raises:
            trio.ClosedResourceError: the wire has been closed.
            trio.BrokenResourceError: the connection is broken.
        """
        if self._head:
            head, self._head = self._head, b""
            await trio.lowlevel.checkpoint()
            return head
        if self._opening is not None:
            await self._opening.wait()
        while True:
            if self._leftover:
                data, self._leftover = self._leftover, b""
                await trio.lowlevel.checkpoint()
            else:
                self._calm = not (self._ending or self._rest or self.passes_on)
                try:
                    data = await self._transport.receive_some(RECEIVE_BYTES)
                except trio.BrokenResourceError:
                    await self._turnstile.pass_through()
                    self._on_end(End.PEER_RESET)
                    raise
            if self._closed:
                raise trio.ClosedResourceError("the wire has been closed")
            if not data:
                await self._turnstile.pass_through()
                self._on_end(End.PEER_LEFT)
                return b""
            self.heard = True
            self.bytes_received += len(data)
            if self._ending:
                await self._tire_of(data)
            if through := await self._divide(data) if self._short_way else data:
                self.passing.ring()
                return through
            data = b""  # or an idle connection would hold what it last received

    def take(self, data: bytes) -> bool:
        """Deal with what is nothing but short, ordinary messages, if none has to wait; else touch nothing: False."""
        first = data[0]
        if not self._calm or len(data) > TAKEN_BYTES_MAX or (first != _TEXT_WHOLE and first != _BINARY_WHOLE):
            return False
        settings = self._settings
        try:
            payloads, stops = read_run(data, 0, settings.frames_at_once_max, self._short_bytes_max())
            if not payloads or stops[-1] < len(data) or not (first == _BINARY_WHOLE or _are_utf8(payloads)):
                return False
            if not self._session.receive_nowait(payloads, first == _BINARY_WHOLE):
                return False
        except Exception:  # it is this connection's alone, though the task is another's
            log.exception("connection ended by an internal error")
            self._on_end(End.INTERNAL_ERROR)
        self.heard = True
        self.bytes_received += len(data)
        return True

    async def _tire_of(self, data: bytes) -> None:
        """Stop reading from a peer that goes on and on after the end: TCP stops it, the close deadline lets it go."""
        self._discarded_bytes += len(data)
        if self._discarded_bytes > self._settings.linger_bytes_max:
            await trio.sleep_forever()

    async def _divide(self, data: bytes) -> bytes:
        """Deal with the ordinary messages in `data`; return what is for trio-websocket, in its order."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        end = len(data)
        at = min(self._skip_bytes, end)
        self._skip_bytes -= at
        through: list[bytes] = []
        turn = self._settings.frames_at_once_max
        while at < end:
            if not turn:
                if through:
                    self._leftover, at = data[at:], end  # what trio-websocket does with these costs more still
                    break
                turn = self._settings.frames_at_once_max
                await trio.lowlevel.checkpoint()
            turn -= 1
            first = data[at]
            try:
                span = measure_client_frame(data, at)
                if span is None:
                    break
                start, stop = span
                if self._is_unwanted(first, stop - start):
                    at, self._skip_bytes = min(stop, end), max(0, stop - end)
                    continue
            except MalformedFrameError:
                self._short_way = False
                through.append(data[at:])
                at = end
                break
            if stop > end:
                break
            if first == _PING:
                self._limit_control_frames()
                self._outbox.offer(encode_frame(PONG, unmask(data, start, stop)))
            elif first == _PONG:
                self._limit_control_frames()
            elif first != _TEXT_WHOLE and first != _BINARY_WHOLE:
                await self._note_passing(first, stop - start)
                through.append(data[at:stop])
            elif self.under_way or not (messages := self._messages(data, at, (start, stop), turn + 1)):
                self.under_way += 1
                through.append(data[at:stop])
            else:
                payloads, stop = messages
                turn -= len(payloads) - 1
                if len(payloads[0]) <= RUN_MESSAGE_BYTES_MAX:
                    await self._session.receive_run(payloads, first == _BINARY_WHOLE)
                else:
                    await self._session.receive(payloads[0], first == _BINARY_WHOLE)
            at = stop
        if at < end:
            self._rest = data[at:]
        return b"".join(through)

    def _messages(self, data: bytes, at: int, span: tuple[int, int], most: int) -> tuple[list[bytes], int] | None:
        """Return the ordinary messages at `at`, at most so many, and where they stop; `span` is of the first's payload.

        None if the first is text that isn't UTF-8. Only short ones come together.
        """
        (start, stop), text = span, data[at] == _TEXT_WHOLE
        if stop - start > RUN_MESSAGE_BYTES_MAX:
            payload = unmask(data, start, stop)
            return ([payload], stop) if not text or _is_utf8(payload) else None
        payloads, stops = read_run(data, at, most, self._short_bytes_max())
        if text and not _are_utf8(payloads):
            payloads = list(takewhile(_is_utf8, payloads))
        return (payloads, stops[len(payloads) - 1]) if payloads else None

    def _short_bytes_max(self) -> int:
        return min(RUN_MESSAGE_BYTES_MAX, self._settings.message_bytes_max)

    def _is_unwanted(self, first: int, length: int) -> bool:
        """Whether the frame is to be skipped: it is over a limit, or data after the end (rules 5 and 6).

        Raises:
            MalformedFrameError: the frame isn't well-formed, or may not stand here (rule 4).
        """
        opcode = first & OPCODE
        if first & RSV:
            raise MalformedFrameError("a reserved bit is set")
        if opcode >= CLOSE:
            if opcode > PONG or not first & FIN or length > CONTROL_BYTES_MAX:
                raise MalformedFrameError("not a control frame of RFC 6455")
            return self._ending and opcode != CLOSE
        if self._ending:
            return True
        if opcode > BINARY or (opcode == CONTINUATION) != (self._fragments > 0):
            raise MalformedFrameError("not a data frame that may stand here")
        if self._message_bytes + length > self._settings.message_bytes_max:
            self._refuse(End.MESSAGE_TOO_LARGE)
            return True
        if self._fragments >= self._settings.message_fragments_max:
            self._refuse(End.TOO_MANY_FRAGMENTS)
            return True
        return False

    async def _note_passing(self, first: int, length: int) -> None:
        """Keep count of a fragment or a Close on its way to trio-websocket."""
        if first & OPCODE == CLOSE:
            await self._turnstile.pass_through()
            self._refuse(End.PEER_CLOSED)
        elif first & FIN:
            self._fragments = self._message_bytes = 0
            self.under_way += 1
        else:
            self._fragments += 1
            self._message_bytes += length
            await self._session.receive_fragment()

    def _limit_control_frames(self) -> None:
        now = trio.current_time()
        if self._control_frames is None:
            rate = self._settings.control_frames_per_second_max
            self._control_frames = Bucket(rate, rate, now)
        if self._control_frames.take(1, now):
            self._refuse(End.TOO_MANY_CONTROL_FRAMES)

    def _refuse(self, end: End) -> None:
        self._ending = True
        self._on_end(end)

    # -- what trio-websocket sends

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue what trio-websocket sends: the 101, and in the end a Close, which waits until it is out.

        Raises:
            trio.BrokenResourceError: the Close couldn't be sent.
        """
        frame = bytes(data)
        if self._opening is not None:
            self._outbox.open(frame)
            self._opening.set()
            self._opening = None
        else:
            assert frame[0] == FIN | CLOSE, "trio-websocket has nothing else to say"
            self._outbox.seal(frame)
            await self._outbox.flushed()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: the outbox takes everything."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Refuse to receive from here on. What is queued is sent by `serve_connection`, which closes the rest."""
        self._closed = True
        await trio.lowlevel.checkpoint()


def _are_utf8(payloads: Sequence[bytes]) -> bool:
    return all(map(bytes.isascii, payloads)) or all(map(_is_utf8, payloads))


def _is_utf8(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
