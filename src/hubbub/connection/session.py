"""The session: what one peer's messages ask for, handed to the hub strictly in order, and not too fast.

It runs where the message was read: in the reader's task, in the body's for what went through trio-websocket, or, while
the reader waits, wherever the poller looks (`receive_nowait`). One message at a time; only fragments of the next may be
counted meanwhile. It must not close the connection: it says why it ends, and the body of `serve_connection` closes.

Rules:
1. Backpressure: while the hub's inbox is full, or this peer is over its rates, nothing more is read from it, and TCP
   slows it down. What has been read is never dropped for its rate.
2. A publication counts by how many get it: in a room k times `rate_occupancy`, k times. A fragment of a message
   counts as a publication, since it costs as much as one in a small room, and so does any other command; to ask who
   is in a room counts by how many are, and so do joining and leaving where that is told. Answers count by size.
3. One answer at a time, where it may be large: who comes back to a hundred rooms gets the second history when the
   first has left. So its outbox isn't filled by what it has asked for itself. And all connections take turns with such
   questions, so that a thousand who ask at one moment don't keep the hub from what others say.
4. Where the back end is to be asked first, only this connection waits for its answer: what the peer says later is
   carried out later. When the connection ends by us, or is broken, nobody is asked any more; when the peer has left
   in order, what it had said is asked about for `close_seconds_max`. The rest of that message is dropped: nothing of
   it overtakes what was to be asked.
5. A peer that is over its rates for `rate_seconds_max` on end is disconnected.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import structlog
import trio

from hubbub.connection.outbox import Outbox
from hubbub.connection.services import Services
from hubbub.connection.transport import Transport
from hubbub.core.rate import Bucket
from hubbub.dialects.base import Conversation
from hubbub.model.command import (
    Command,
    Enter,
    Publish,
    ReadHistory,
    ReadPresence,
    Refused,
    Subscribe,
    Tell,
    Unsubscribe,
)
from hubbub.model.end import End
from hubbub.model.question import Ask

RUNS_PER_BURST = 8
"""A run of messages is parted where it counts more than that share of a burst: as much as a lease (`core/rate`)."""

log = structlog.get_logger()


class Session:
    """One peer's conversation with the hub.

    Args:
        conversation: the dialect's side: messages to commands.
        services: the hub's inbox, how many are in a room, the rates, who asks the back end.
        outbox: this peer's.
        peer: its address, for the back end.
        transport: the peer's: whether it is still there.
        on_end: called when the connection must end.
    """

    __slots__ = (
        "_answered",
        "_ask",
        "_asking",
        "_bytes",
        "_conversation",
        "_inbox",
        "_left_at",
        "_may_ask",
        "_occupancy",
        "_on_end",
        "_on_pause",
        "_outbox",
        "_paced",
        "_pauses",
        "_peer",
        "_publications",
        "_settings",
        "_transport",
        "handing_over",
    )

    def __init__(
        self,
        conversation: Conversation,
        services: Services,
        outbox: Outbox,
        peer: str,
        transport: Transport,
        on_end: Callable[[End], None],
    ) -> None:
        now, settings = trio.current_time(), services.settings
        self._conversation = conversation
        self._inbox = services.inbox
        self._outbox = outbox
        self._occupancy = services.occupancy
        self._settings = settings
        self._ask = services.ask
        self._peer = peer
        self._transport = transport
        self._may_ask = True
        self._asking: trio.CancelScope | None = None  # around the question that is under way
        self._left_at: float | None = None  # when the peer was found to have left in order
        self._on_pause = services.count_pause
        self._on_end = on_end
        self._publications = Bucket(settings.publications_per_second_max, settings.publications_burst_max, now)
        self._bytes = Bucket(settings.publication_bytes_per_second_max, settings.publication_bytes_burst_max, now)
        self._paced = True
        self._answered: trio.Event | None = None  # whether the last large question has been
        self._pauses: set[trio.CancelScope] | None = None  # from the first one on
        self.handing_over = 0  # how many wait for the hub, or its rates: then silence is our doing, not the peer's

    async def receive(self, data: bytes, binary: bool) -> None:
        """Take one message; waits as the rules say. Raises nothing of its own."""
        self.handing_over += 1
        unpaid = float(len(data))  # what isn't published has been read all the same
        try:
            for step in self._conversation.receive(data, binary):
                command = await self._permitted(step) if isinstance(step, Ask) else step
                if command is None:
                    break
                if type(command) is Publish:  # the hot path: a coroutine less
                    if not self._inbox.put_nowait(command):
                        await self._inbox.put(command)
                    weight = self._occupancy(command.room) / self._settings.rate_occupancy
                    if weight < 1.0:  # a call less
                        weight = 1.0
                    size = len(command.data) * weight
                else:
                    if asks_for_much(command):
                        await self._put_question(command)
                    else:
                        await self._inbox.put(command)
                    if type(command) is Enter:
                        await self._answer_of(command)
                    weight, size = self._weigh(command), 0.0
                if seconds := self._owed(weight, max(unpaid, size)):
                    await self._wait(seconds)
                unpaid = 0.0
        except Exception:
            log.exception("connection ended by an internal error")
            self._on_end(End.INTERNAL_ERROR)
        self.handing_over -= 1

    def receive_nowait(self, messages: Sequence[bytes], binary: bool) -> bool:
        """Take messages that came at once, if nobody has to wait for anything; else do nothing, and return False."""
        run = self._conversation.receive_run(messages, binary)
        if run is None:
            return False
        weight = self._occupancy(run.room) / self._settings.rate_occupancy
        if weight < 1.0:
            weight = 1.0
        count, size = len(messages) * weight, run.length * weight
        if self._publications.lease < count or self._bytes.lease < size or not self._inbox.put_run_nowait(run):
            return False
        self._publications.spend(count)
        self._bytes.spend(size)
        return True

    async def receive_run(self, messages: Sequence[bytes], binary: bool) -> None:
        """Take several messages that came at once, as one command if they can be one; waits as the rules say."""
        try:
            run = self._conversation.receive_run(messages, binary)
        except Exception:
            log.exception("connection ended by an internal error")
            self._on_end(End.INTERNAL_ERROR)
            return
        if run is None:
            for message in messages:
                await self.receive(message, binary)
            return
        self.handing_over += 1
        weight = max(1.0, self._occupancy(run.room) / self._settings.rate_occupancy)
        most = max(1, int(self._settings.publications_burst_max / RUNS_PER_BURST / weight))
        for start in range(0, len(messages), most):
            part = run if most >= len(messages) else run.part(start, start + most)
            await self._inbox.put_run(part)
            if seconds := self._owed(weight * len(part.messages), weight * part.length):
                await self._wait(seconds)
        self.handing_over -= 1

    def charge(self, answered_bytes: int) -> None:
        """Count what the peer was answered: as much as the largest message may hold is as a publication."""
        self._publications.spend(answered_bytes / self._settings.message_bytes_max)

    async def receive_fragment(self) -> None:
        """Count a frame that is only a part of a message; waits as the rules say."""
        if seconds := self._owed(1.0, 0.0):
            self.handing_over += 1
            await self._wait(seconds)
            self.handing_over -= 1

    def end(self, by_peer: bool) -> None:
        """Pause no longer: the connection is ending, and its input must be read to its end."""
        self._paced = False
        if by_peer:
            self._left_at = trio.current_time()
        else:
            self._may_ask = False
            if self._asking is not None:
                self._asking.cancel()
        for pause in self._pauses or ():
            pause.cancel()

    async def _permitted(self, step: Ask) -> Command | None:
        """Return what the back end lets a step become; None if nobody waits for that any more."""
        if self._transport.is_broken():
            self._on_end(End.PEER_RESET)
        if self._left_at is None and self._transport.peer_left():
            self._left_at = trio.current_time()
        deadline = math.inf if self._left_at is None else self._left_at + self._settings.close_seconds_max
        if not self._may_ask or trio.current_time() >= deadline:
            return None
        with trio.CancelScope() as self._asking:
            verdict = await self._ask(step.question, self._peer)
        was_cancelled, self._asking = self._asking.cancelled_caught, None
        if was_cancelled:
            return None
        command = step.then(verdict)
        assert command is not None, "only before the 101 there may be nothing to do"
        assert not isinstance(command, Refused), "only before the 101 is there anyone to refuse"
        return command

    async def _answer_of(self, command: Enter) -> None:
        """Wait until it has been answered: who isn't let in is no longer listened to."""
        if command.subscriptions:
            answered = trio.Event()
            await self._inbox.put(Tell(command.asker, answered.set))
            await answered.wait()

    def _weigh(self, command: Command) -> float:
        """Return as how many publications a command counts that is none."""
        if isinstance(command, ReadPresence):
            return self._crowd(command.room)
        if isinstance(command, Subscribe | Unsubscribe):
            namespace = self._settings.namespace(command.room)
            if namespace is not None and namespace.join_leave:
                return self._crowd(command.room)
        return float(len(command.subscriptions)) if isinstance(command, Enter) else 1.0

    def _crowd(self, room: str) -> float:
        crowd = self._occupancy(room) / self._settings.rate_occupancy
        return max(1.0, crowd)

    async def _put_question(self, command: Command) -> None:
        """Ask for something large once what was asked for before has been answered and has left, and in turn."""
        turns, has_turn = self._inbox.large_questions, False
        if self._paced:
            with self._pausing():
                if self._answered is not None:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await self._answered.wait()
                        await self._outbox.flushed()
                await turns.acquire()
                has_turn = True
        self._answered = answered = trio.Event()

        def have_answered() -> None:
            answered.set()
            if has_turn:
                turns.release()

        assert command.asker is not None
        try:
            await self._inbox.put(command)
            await self._inbox.put(Tell(command.asker, have_answered))
        except BaseException:
            if has_turn:
                turns.release()
            raise

    def _owed(self, weight: float, weighted_bytes: float) -> float:
        """Return how long to pause for what counts as so many publications and bytes."""
        publications, data = self._publications, self._bytes
        allowed = publications.spend(weight)
        if (data.spend(weighted_bytes) and allowed) or not self._paced:
            return 0.0
        now = trio.current_time()
        seconds = max(publications.settle(now), data.settle(now))
        since = min(
            now if bucket.overdrawn_since is None else bucket.overdrawn_since for bucket in (publications, data)
        )
        if seconds and now - since >= self._settings.rate_seconds_max:
            self._on_end(End.TOO_FAST)
            return 0.0  # no pause now: its answer to the Close is to be read
        return seconds

    async def _wait(self, seconds: float) -> None:
        self._on_pause()
        with self._pausing():
            await trio.sleep(seconds)

    @contextlib.contextmanager
    def _pausing(self) -> Iterator[None]:
        """Be cut short by `end`."""
        if self._pauses is None:
            self._pauses = set()
        with trio.CancelScope() as pause:
            self._pauses.add(pause)
            try:
                yield
            finally:
                self._pauses.discard(pause)


def asks_for_much(command: Command) -> bool:
    """Return whether the answer may be large."""
    match command:
        case Subscribe():
            return command.since is not None or command.history > 0
        case Enter():
            return any(subscription.since is not None for subscription in command.subscriptions)
        case ReadHistory():
            return command.limit != 0
    return isinstance(command, ReadPresence)
