"""The hub's state: which publication goes to whom. Plain and synchronous; run by `hubbub.hub.task`.

Rules:
1. What commands do is said in `hubbub.hub.steps`. What has happened in a room meanwhile goes to each subscriber in one
   piece, encoded once a dialect (`take`).
2. What is handed out follows what was handed out before, or the room's subscribers are told that it doesn't (P2).
3. An exception in a room's step ends that room, not the node: its subscribers are told, its history is lost. One in
   an answer ends the connection that it is for.
4. Every question gets one answer. Answers wait in their asker until its `flush`; the server's own don't wait.
"""

from collections.abc import Callable, Iterator, Mapping

import msgspec
import structlog

from hubbub.config import Settings
from hubbub.core.rooms import Room, Rooms
from hubbub.engines.base import Engine
from hubbub.hub.delivery import Delivery, deliver
from hubbub.hub.steps import DONE, Steps
from hubbub.hub.waiting import Event, Waiting
from hubbub.model.command import (
    Answer,
    Command,
    Enter,
    Publish,
    PublishRuns,
    ReadHistory,
    ReadPresence,
    Refusal,
    Refused,
    RemoveHistory,
    Subscribe,
    Subscribed,
    Tell,
    Unsubscribe,
)
from hubbub.model.end import End
from hubbub.model.publication import Publication
from hubbub.model.subscriber import Loss, Subscriber

ALONE_EVENTS_MAX = 32
"""Who leaves a room alone is given what waits for it there, up to so much; more is handed out to all first."""

log = structlog.get_logger()


class HubStatistics(msgspec.Struct, frozen=True):
    """What the hub holds at this moment, and what it has done since the start."""

    rooms: int
    subscriptions: int
    publications: int
    deliveries: int
    rooms_failed: int
    gaps: int
    idempotency_keys: int
    refused: Mapping[Refusal, int]


class Hub:
    """Rooms, and what has happened in them but isn't handed out yet.

    Args:
        engine: gives publications their order and keeps them.
        rooms: who is where.
        settings: limits, and what holds for each room.
    """

    def __init__(self, engine: Engine, rooms: Rooms, settings: Settings) -> None:
        self._engine = engine
        self._rooms = rooms
        self._waiting = Waiting()
        self._steps = Steps(engine, rooms, settings, self._waiting)
        self._answered: dict[Subscriber, None] = {}  # those with answers to flush, in order
        self._owes_ack = False  # whether one of these is the answer to a publish
        self._rooms_failed = 0
        self._gaps = 0
        self._refused = dict.fromkeys(Refusal, 0)
        self._step_of: dict[type, Callable[..., Answer]] = {
            Subscribe: self._steps.subscribe,
            Unsubscribe: self._steps.unsubscribe,
            ReadHistory: self._steps.read_history,
            ReadPresence: self._steps.read_presence,
            RemoveHistory: self._steps.remove_history,
        }

    # -- commands

    def publish(self, command: Publish, now: float) -> bool:
        """Accept a publication; True if its room should be handed out at once, for its size."""
        answer: Answer
        try:
            answer = self._steps.publish(command, now)
        except Exception:
            answer = self._end_room(command.room)
        if type(answer) is Refused:
            self._refused[answer.why] += 1
        if command.reply is not None:
            self._owes_ack = self._owes_ack or command.asker is not None
            self._answer(command.asker, command.reply, answer)
        elif type(answer) is Refused and command.asker is not None:
            command.asker.evict(End.NOT_PERMITTED, "" if answer.why is Refusal.DENIED else answer.why.value)
        return self._waiting.is_piece(command.room)

    def publish_runs(self, command: PublishRuns, now: float) -> bool:
        """As `publish`, for what some clients say in one room."""
        try:
            refused = self._steps.publish_runs(command, now)
        except Exception:
            answer = self._end_room(command.room)
            refused = [(run, answer.why) for run in command.runs]
        for run, why in refused:
            self._refused[why] += 1
            run.asker.evict(End.NOT_PERMITTED, "" if why is Refusal.DENIED else why.value)
        return self._waiting.is_piece(command.room)

    def comes_after_what_waits(self, command: Command) -> bool:
        """Whether everything must be handed out and flushed first.

        Who has published hears it before it hears that it was accepted, and joins or leaves after both. And what many
        were waiting for isn't made anew for each of them as they leave.
        """
        if isinstance(command, Unsubscribe) and len(self._waiting.events(command.room)) > ALONE_EVENTS_MAX:
            return True
        if not self._owes_ack:
            return False
        return isinstance(command, Subscribe | Enter | Unsubscribe) or (isinstance(command, Tell) and command.ends)

    def carry_out(self, command: Command, now: float) -> None:
        """Carry out any other command, and answer it."""
        if isinstance(command, Tell):
            self._answer(command.asker, lambda _: command.act(), DONE)
            return
        if isinstance(command, Enter):
            answers = [self._answer_to(subscription, now) for subscription in command.subscriptions]
            entered = all(isinstance(answer, Subscribed) for answer in answers)
            if not entered:  # all or none; nobody has heard of any yet
                for room in self._rooms.rooms_of(command.asker):
                    self._steps.take_out(command.asker, room)
            self._answer(command.asker, lambda _: command.reply(answers), DONE)
            if entered:
                for subscription in command.subscriptions:
                    self._announce(subscription)
            return
        assert not isinstance(command, Publish)
        answer = self._answer_to(command, now)
        self._answer(command.asker, command.reply, answer)
        if isinstance(command, Subscribe) and isinstance(answer, Subscribed):
            self._announce(command)

    def take_answered(self) -> list[Subscriber]:
        """Return those who have been given answers, for them to `flush`, in order."""
        answered, self._answered, self._owes_ack = list(self._answered), {}, False
        return answered

    def leave(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of all its rooms."""
        rooms = self._rooms.rooms_of(subscriber)
        subscriber.was_in = {name: subscriber in room.by_token for name in rooms if (room := self._rooms.get(name))}
        for name in rooms:
            self._steps.part(subscriber, name)

    def expire(self, now: float) -> bool:
        """Drop what is too old; True if there may be more than one step can do."""
        self._steps.results.expire(now)
        return self._engine.expire(now)

    # -- handing out

    def waiting(self) -> list[str]:
        """Return the rooms that have something to hand out."""
        return self._waiting.rooms()

    def take(self, name: str) -> Iterator[Delivery]:
        """Give what is to be handed out in that room now, and to whom, a piece at a time.

        Until the last one has been handed out, no command may be carried out.
        """
        events, room = self._waiting.take(name), self._rooms.get(name)
        if not events or room is None:
            return
        try:
            yield from self._deliveries_of(room, events)
        except Exception:
            self._end_room(name)

    def statistics(self) -> HubStatistics:
        """Return what is held and what was done."""
        return HubStatistics(
            rooms=len(self._rooms),
            subscriptions=self._rooms.subscriptions,
            publications=self._steps.publications,
            deliveries=self._steps.deliveries,
            rooms_failed=self._rooms_failed,
            gaps=self._gaps,
            idempotency_keys=len(self._steps.results),
            refused=self._refused,
        )

    # -- answers

    def _answer_to(
        self, command: Subscribe | Unsubscribe | ReadHistory | ReadPresence | RemoveHistory, now: float
    ) -> Answer:
        answer: Answer
        try:
            gone = command.asker is not None and command.asker.gone
            answer = Refused(Refusal.STOPPING) if gone else self._step_of[type(command)](command, now)
        except Exception:
            answer = self._end_room(command.room)
        if type(answer) is Refused:
            self._refused[answer.why] += 1
        return answer

    def _announce(self, command: Subscribe) -> None:
        command.asker.flush()  # its reply goes before anything of the room's
        self._steps.announce(command)

    def _answer(self, asker: Subscriber | None, reply: Callable[[Answer], None], answer: Answer) -> None:
        if asker is not None:
            self._answered[asker] = None
        try:
            reply(answer)
        except Exception:
            log.exception("connection ended by an internal error")
            if asker is not None:
                asker.evict(End.INTERNAL_ERROR)

    # -- parts

    def _deliveries_of(self, room: Room, events: list[Event]) -> Iterator[Delivery]:
        newcomers, room.newcomers = room.newcomers, {}
        publications = [event for event in events if type(event) is Publication]
        if publications and not self._follows(room, publications):
            self._gaps += 1
            self._lose_all(room.name, Loss.GAP)
            return
        if publications:
            room.top = publications[-1].position
        for delivery in deliver(room, newcomers, events, len(publications)):
            self._steps.deliveries += delivery.publications * len(delivery.outlets)
            yield delivery

    def _follows(self, room: Room, publications: list[Publication]) -> bool:
        first, last, top = publications[0], publications[-1], room.top
        return (
            first.epoch == last.epoch == top.epoch
            and first.offset == top.offset + 1
            and last.offset == top.offset + len(publications)
        )

    def _end_room(self, name: str) -> Refused:
        log.exception("room ended by an internal error", room=name)
        self._rooms_failed += 1
        self._waiting.take(name)
        self._engine.forget(name)
        self._lose_all(name, Loss.ROOM_ENDED)
        return Refused(Refusal.INTERNAL_ERROR)

    def _lose_all(self, name: str, loss: Loss) -> None:
        room = self._rooms.get(name)
        for subscriber in list(room.subscribers()) if room is not None else ():
            self._rooms.unsubscribe(subscriber, name)
            subscriber.lose(name, loss)
