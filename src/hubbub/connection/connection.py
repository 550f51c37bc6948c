"""A connection's life, from the accepted upgrade to the last byte of its end.

    serve_connection ── nursery
      ├─ the body: this function; takes what came through trio-websocket, waits for the end, says goodbye
      ├─ the reader: trio-websocket's task, reading through the wire; ordinary messages go on from there
      └─ the writer: while the outbox has a backlog

Rules:
1. A plain client's room is joined before the 101 is sent: from the 101 on, nothing is missed (P2).
2. Whoever finds a reason to end says so (`end`): it is remembered (the first counts) and the body is woken. Only
   the body closes. Ending is not cancellation: frames that have begun are finished, a Close is sent. What the peer
   sent before its own end is published.
3. Leaving the hub is synchronous, happens on every path, and happens before goodbye is said.
4. Every wait has a deadline: joining (`head_seconds_max`), the goodbye (`close_seconds_max`), each piece of a send.
5. When the body is done, the nursery is cancelled: nobody waits for the reader.
"""

import contextlib
import uuid
from collections.abc import Mapping

import structlog
import trio
import trio_websocket

from hubbub.connection.heartbeat import Pulse, first_pulse
from hubbub.connection.linger import linger
from hubbub.connection.outbox import Outbox, State
from hubbub.connection.services import Services, Upgrade
from hubbub.connection.session import Session, asks_for_much
from hubbub.connection.stock import break_cycle, forget_handshake
from hubbub.connection.transport import Transport
from hubbub.connection.wire import Wire
from hubbub.core.frames import cut_reason, encode_close
from hubbub.dialects.base import Dialect
from hubbub.model.command import Answer, Refusal, Refused, Subscribed
from hubbub.model.end import NOBODY_TO_TELL, Disconnect, End
from hubbub.model.publication import Member
from hubbub.model.question import Ask
from hubbub.model.subscriber import Loss

log = structlog.get_logger()

PATIENCE_MIN = 0.8
"""Of `close_seconds_max`: a thousand who are told to go at once and don't answer aren't all given up in one moment."""
NOWHERE: Mapping[str, bool] = {}


async def serve_connection(transport: Transport, upgrade: Upgrade, services: Services) -> Refused | None:
    """Serve one WebSocket connection to its end; or return why it was refused, when nothing has been sent yet.

    *Resource handling*: what is opened here is closed here. The transport stays the caller's to close.
    *Error handling*: raises nothing but cancellation. What peers do is an `End`, never an exception; an exception is
    a bug of ours: it is logged with its traceback, and ends this connection only.
    """
    connection = refused = None
    peer = upgrade.peer
    try:
        async with trio.open_nursery() as nursery:
            connection = Connection(transport, upgrade, services, nursery)
            del upgrade  # or an idle connection would hold its request
            services.connections.add(connection)
            try:
                connection.be_counted()
                refused = await connection.open()
                if refused is None:
                    await connection.serve()
                    await connection.part()
            finally:
                services.connections.discard(connection)
                connection.leave()
                connection.cut_off = connection.ended in (None, End.SHUTDOWN) and not connection.outbox.is_done
                connection.outbox.close()
                nursery.cancel_scope.cancel()
    except* Exception:
        log.exception("connection ended by an internal error", peer=peer)
        if connection is not None:
            connection.end(End.INTERNAL_ERROR)
    finally:
        if connection is not None:
            connection.end(End.CANCELLED)  # if nothing else was said
            connection.report()
            connection.release()
    if connection is not None and connection.said_goodbye:
        await linger(transport, services.settings)
    return refused


class Connection:
    """One peer; implements `hubbub.model.subscriber.Subscriber` for the hub."""

    __slots__ = (
        "_nursery",
        "_scope",
        "_services",
        "_subprotocol",
        "_transport",
        "_websocket",
        "code",
        "conversation",
        "cut_off",
        "detail",
        "encoder",
        "ended",
        "farewell",
        "gone",
        "member",
        "opened",
        "opened_at",
        "outbox",
        "peer",
        "pulse",
        "said_goodbye",
        "session",
        "was_in",
        "wire",
    )

    def __init__(self, transport: Transport, upgrade: Upgrade, services: Services, nursery: trio.Nursery) -> None:
        settings = services.settings
        self._transport = transport
        self._subprotocol = upgrade.subprotocol
        self._websocket: trio_websocket.WebSocketConnection | None = None
        self.peer = upgrade.peer
        self._services = services
        self._nursery = nursery
        self._scope: trio.CancelScope | None = None  # what the body is waiting in; `end` cancels it
        self.opened_at = trio.current_time()
        self.encoder: Dialect = upgrade.dialect
        self.farewell: Disconnect | None = None  # what the back end wants the peer to be told
        self.member = Member("", str(uuid.UUID(int=services.rng.getrandbits(128), version=4)))
        self.ended: End | None = None
        self.conversation = upgrade.converse(self, self.member)
        self.gone = False
        self.opened = False  # whether its 101 is out
        self.was_in = NOWHERE
        self.detail = ""  # more about the end, for the peer and the log
        self.code: int | None = None  # of the Close: ours, or the peer's if that came first
        self.cut_off = False  # at a stop, before it had everything and the Close
        self.said_goodbye = False  # everything that was queued, and a Close, has been given to the transport
        end = self.end  # bound once
        self.outbox = Outbox(transport, nursery, settings, services.outboxes, end)
        self.session = Session(self.conversation, services, self.outbox, self.peer, transport, end)
        self.wire = Wire(
            transport,
            self.outbox,
            self.session,
            upgrade.head,
            upgrade.leftover,
            settings,
            services.exits,
            end,
        )
        self.pulse: Pulse = first_pulse(self.opened_at, settings, services.rng)

    @property
    def outlet(self) -> Outbox:
        """Its outbox."""
        return self.outbox

    @property
    def bytes_taken(self) -> int:
        """How much the peer's machine has acknowledged. (Over TLS about that: the kernel counts what is encrypted.)"""
        return self.outbox.bytes_sent - self._transport.unsent_bytes()

    def end(self, end: End, detail: str = "") -> None:
        """Say why the connection is to end, and wake its body. The first reason counts. Never waits or raises."""
        self.flush()  # what has been answered is sent
        if self.ended is None:
            self.ended, self.detail = end, detail
            self.wire.end()
            self.session.end(by_peer=end in (End.PEER_CLOSED, End.PEER_LEFT))
            if self._scope is not None:
                self._scope.cancel()
            if end is End.SLOW_CONSUMER:
                waiting = self.outbox.bytes_queued
                log.info("evicted", peer=self.peer, **self.conversation.about, bytes_queued=waiting)

    def evict(self, end: End, detail: str = "") -> None:
        """As `end`: the hub's word for it."""
        self.end(end, detail)

    def dismiss(self, disconnect: Disconnect) -> None:
        """End because the back end wants it so, with its words. Never waits or raises."""
        if self.ended is None:
            # Without a reason npm's SDK doesn't look at the code, and comes back whatever it says.
            self.farewell = disconnect if disconnect.reason else Disconnect(disconnect.code, "force disconnect")
        self.end(End.DISMISSED)

    def introduce(self, member: Member) -> bool:
        """Be seen like this from now on; False if the user has too many connections, so that this one ends."""
        self.member = member
        return self.be_counted()

    def be_counted(self) -> bool:
        """Be one of the user's connections; one too many ends. Does nothing before it is one of the node's."""
        if self._services.connections.introduce(self) <= self._services.settings.connections_per_user_max:
            return True
        self.end(End.TOO_MANY_OF_USER)
        return False

    def flush(self) -> None:
        """Send the replies that have been given, unless it has left the hub: as long as there are pushes."""
        if not self.gone and (frame := self.conversation.replies()):
            self.session.charge(len(frame))
            self.outbox.offer_history(frame, 1)  # it has asked for it, and an answer may be a whole history

    def lose(self, room: str, loss: Loss) -> None:
        """Tell the peer that it isn't in the room any more; a connection that has no words for that ends."""
        if self.ended is None:
            told = self.conversation.lose(room, loss)
            if isinstance(told, End):
                self.end(told)
            else:
                self.outbox.offer(told)

    def cut(self) -> None:
        """End at once, without another word, and let go of what waits. Never waits or raises."""
        self._nursery.cancel_scope.cancel()
        self.outbox.close()

    def leave(self) -> None:
        """Leave the hub. Idempotent; never waits or raises."""
        if not self.gone:
            self.gone = True
            self._services.inbox.leave(self)

    # -- the body. Three parts, one after the other: what waits for the whole life is `serve`, and no frame above it

    async def open(self) -> Refused | None:
        """Join the room and send the 101; or return why not."""
        settings = self._services.settings
        refused: Refused | None = Refused(Refusal.BUSY)
        late = False
        if self.ended is None:
            with trio.move_on_after(settings.head_seconds_max) as self._scope:
                refused = await self._join()
            late, self._scope = self._scope.cancelled_caught, None
        if self.ended is End.TOO_MANY_OF_USER:
            return Refused(Refusal.TOO_MANY_OF_USER)
        if refused is not None or self.ended is not None:
            self.end(End.HANDSHAKE_TIMEOUT if late else End.REFUSED)
            return refused or Refused(Refusal.STOPPING)
        await self._shake_hands()
        self.opened = True
        self._services.count_open()
        log.debug("upgraded", peer=self.peer, dialect=self.encoder.name, **self.conversation.about)
        return None

    async def serve(self) -> None:
        """Wait for the end; until then, take the messages that go through trio-websocket."""
        try:
            while self.ended is None:
                if self.wire.passes_on:
                    await self._take_next()
                else:
                    await self.wire.passing.wait()
        except trio_websocket.ConnectionClosed:
            self.end(End.PROTOCOL_ERROR)  # its verdict; every other way to get here has been noted by the wire

    async def part(self) -> None:
        """Leave, and say goodbye if there is anybody to hear it."""
        settings, websocket = self._services.settings, self._websocket
        assert websocket is not None
        self.leave()
        await self._services.exits.pass_through()  # a thousand may have broken under one broadcast
        with trio.move_on_after(settings.close_seconds_max):
            await self._take_the_rest(websocket)
        if self.ended is End.SHUTDOWN:
            # As long as it takes something; the drain's deadline is the node's to keep.
            with contextlib.suppress(trio.BrokenResourceError):
                await self.outbox.flushed()
        if self.ended not in NOBODY_TO_TELL:
            with trio.move_on_after(settings.close_seconds_max * self._services.rng.uniform(PATIENCE_MIN, 1.0)):
                await self._say_goodbye(websocket)
            self.said_goodbye = self.outbox.is_done

    def report(self) -> None:
        """Count the end and log it."""
        end = self.ended or End.CANCELLED
        self._services.count_end(end, self.cut_off)
        if self.opened and self.conversation.is_known:
            self._services.notices.disconnected(self.member, self.code, end.value)
        write = log.debug if end in (End.PEER_CLOSED, End.PEER_LEFT, End.PEER_RESET) else log.info
        write(
            "connection ended",
            reason=end.value,
            code=self.code,
            **({"detail": self.detail} if self.detail else {}),
            peer=self.peer,
            **self.conversation.about,
            seconds=round(trio.current_time() - self.opened_at, 3),
            bytes_sent=self.outbox.bytes_sent,
            bytes_received=self.wire.bytes_received,
        )

    def release(self) -> None:
        """Let go of the parts, which refer back to the connection: what can be freed now needs no garbage collector."""
        if self._websocket is not None:
            break_cycle(self._websocket)
        self._transport.set_taker(None)
        del self.conversation, self.outbox, self.session, self.wire, self._nursery, self._websocket

    async def _join(self) -> Refused | None:
        """Let the hub answer what must be answered first. History, if asked for, is the first thing in the outbox."""
        answered = trio.Event()
        answers: list[Answer] = []

        def reply(answer: Answer) -> None:
            if isinstance(answer, Subscribed) and answer.publications:
                frames = b"".join(map(self.encoder.encode_publication, answer.publications))
                self.outbox.offer_history(frames, len(answer.publications))
            answers.append(answer)
            answered.set()

        for step in self.conversation.opening(reply):
            command = step.then(await self._services.ask(step.question, self.peer)) if isinstance(step, Ask) else step
            if isinstance(command, Refused):
                return command
            if command is not None:
                turns = self._services.inbox.large_questions
                async with turns if asks_for_much(command) else contextlib.nullcontext():
                    await self._services.inbox.put(command)
                    await answered.wait()
        return next((answer for answer in answers if isinstance(answer, Refused)), None)

    async def _shake_hands(self) -> None:
        """Let trio-websocket read the head and queue the 101: it waits for our own tasks only."""
        request = await trio_websocket.wrap_server_stream(
            self._nursery,
            self.wire,
            max_message_size=self._services.settings.message_bytes_max,
            receive_buffer_size=None,
        )
        self._websocket = websocket = await request.accept(subprotocol=self._subprotocol)
        request.headers.clear()  # or its reader would hold them until the next message for it
        forget_handshake(websocket)
        if self.conversation.has_runs:
            self._transport.set_taker(self.wire.take)

    async def _take_next(self) -> None:
        """Take a message that goes through trio-websocket."""
        assert self._websocket is not None
        with trio.CancelScope() as self._scope:  # `end` cancels the wait for a message, never its publication
            message = await self._websocket.get_message()
        was_cancelled, self._scope = self._scope.cancelled_caught, None
        if not was_cancelled:
            await self._take(message)

    async def _take_the_rest(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """Take what the peer sent before the end, as far as it had arrived; the caller sets the deadline."""
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while self.wire.under_way:
                await self._take(await websocket.get_message())

    async def _take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.session.receive(message.encode(), False)
        else:
            await self.session.receive(bytes(message), True)
        self.wire.message_taken()

    async def _say_goodbye(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """Send what is queued and a Close, and wait for the peer's; the caller sets the deadline."""
        assert self.ended is not None
        with contextlib.suppress(trio.BrokenResourceError):
            if self.ended in (End.PEER_CLOSED, End.PROTOCOL_ERROR):
                await _answered(websocket)
                verdict = websocket.closed
                last_word = encode_close(verdict.code, verdict.reason or verdict.name) if verdict else b""
                self.code = verdict.code if verdict else None
            else:
                disconnect = self.farewell or self.encoder.disconnect(self.ended)
                reason = cut_reason(f"{disconnect.reason}: {self.detail}" if self.detail else disconnect.reason)
                last_word = encode_close(disconnect.code, reason)
                self.code = disconnect.code
                await websocket.aclose(disconnect.code, reason)
            if self.outbox.state in (State.OPEN, State.EVICTED):  # not where no answer could be sent any more
                # trio-websocket found fault with the input and closed without a word; RFC 6455 section 7.1.7 wants one.
                if self.ended is End.PEER_CLOSED:
                    self.ended = End.PROTOCOL_ERROR
                self.outbox.seal(last_word)
            await self.outbox.flushed()


async def _answered(websocket: trio_websocket.WebSocketConnection) -> None:
    """Wait until trio-websocket has answered the peer's Close, or has found fault with it."""
    with contextlib.suppress(trio_websocket.ConnectionClosed):
        while True:
            await websocket.get_message()
