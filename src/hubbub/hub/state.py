"""The hub's state: which publication goes to whom. Plain and synchronous; run by `hubbub.hub.task`.

Rules:
1. A publication is accepted by the engine, which gives it its place, and handed out later (`take`): what has happened
   in a room meanwhile goes to each subscriber in one piece, encoded once a dialect.
2. What was waiting when a subscriber joined isn't for it: it gets that from history, if it asked, and everything
   after: each publication once (P2).
3. A leave takes effect at once: nothing is handed out to who has left, and nothing brings it back.
4. What is handed out follows what was handed out before, or the room's subscribers are told that it doesn't (P2).
5. What a client may do is decided in the step that would do it: `hubbub.auth.permissions`.
6. An exception in a room's step ends that room, not the node: its subscribers are told, its history is lost. One in
   an answer ends the connection that it is for.
7. Every question gets one answer. Answers wait in their asker until `flush`.
"""

from collections.abc import Callable, Mapping

import msgspec
import structlog

from hubbub.auth.permissions import Standing, Who, may, may_subscribe
from hubbub.config import Settings
from hubbub.core.idempotency import Results
from hubbub.core.recovery import recover
from hubbub.core.rooms import Room, Rooms
from hubbub.engines.base import Engine
from hubbub.hub.delivery import Delivery, deliver, deliver_to
from hubbub.model.command import (
    Answer,
    Command,
    Done,
    Enter,
    Past,
    Present,
    Publish,
    Published,
    ReadHistory,
    ReadPresence,
    Refusal,
    Refused,
    Subscribe,
    Subscribed,
    Tell,
    Unsubscribe,
)
from hubbub.model.end import End
from hubbub.model.publication import Presence, Publication
from hubbub.model.subscriber import Loss, Subscriber

PIECE_BYTES_MAX = 256 * 1024
"""What a room has accepted is handed out early once it is this much, so that no piece is far larger than
what an outbox may hold."""

DONE = Done()

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
        self._settings = settings
        self._results = Results(settings)
        self._waiting: dict[str, list[Publication | Presence]] = {}  # by room, in order, not yet handed out
        self._waiting_bytes: dict[str, int] = {}
        self._answered: dict[Subscriber, None] = {}  # those with answers to flush, in order
        self._owes_ack = False  # whether one of these is the answer to a publish
        self._publications = 0
        self._deliveries = 0
        self._rooms_failed = 0
        self._gaps = 0
        self._refused = dict.fromkeys(Refusal, 0)
        self._steps: dict[type, Callable[..., Answer]] = {
            Subscribe: self._subscribe,
            Unsubscribe: self._unsubscribe,
            ReadHistory: self._read_history,
            ReadPresence: self._read_presence,
        }

    # -- commands

    def publish(self, command: Publish, now: float) -> bool:
        """Accept a publication; True if its room should be handed out at once, for its size."""
        answer: Answer
        try:
            answer = self._publish(command, now)
        except Exception:
            answer = self._end_room(command.room)
        if type(answer) is Refused:
            self._refused[answer.why] += 1
        if command.reply is not None and command.asker is not None:
            self._owes_ack = True
            self._answer(command.asker, command.reply, answer)
        elif type(answer) is Refused and command.asker is not None:
            command.asker.evict(End.NOT_PERMITTED, "" if answer.why is Refusal.DENIED else answer.why.value)
        return self._waiting_bytes.get(command.room, 0) >= PIECE_BYTES_MAX

    def comes_after_what_waits(self, command: Command) -> bool:
        """Whether everything must be handed out and flushed first.

        Who has published hears it before it hears that it was accepted, and joins or leaves after both.
        """
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
                    self._rooms.unsubscribe(command.asker, room)
            self._answer(command.asker, lambda _: command.reply(answers), DONE)
            if entered:
                for subscription, answer in zip(command.subscriptions, answers, strict=True):
                    self._announce(subscription, answer)
            return
        assert not isinstance(command, Publish)
        answer = self._answer_to(command, now)
        self._answer(command.asker, command.reply, answer)
        if isinstance(command, Subscribe):
            self._announce(command, answer)

    def flush(self) -> None:
        """Let everyone send the answers that it has been given."""
        answered, self._answered, self._owes_ack = self._answered, {}, False
        for subscriber in answered:
            subscriber.flush()

    def leave(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of all its rooms."""
        rooms = self._rooms.rooms_of(subscriber)
        subscriber.was_in = {name: subscriber in room.by_token for name in rooms if (room := self._rooms.get(name))}
        for name in rooms:
            self._part(subscriber, name)

    def expire(self, now: float) -> bool:
        """Drop what is too old; True if there may be more than one step can do."""
        self._results.expire(now)
        return self._engine.expire(now)

    # -- handing out

    def waiting(self) -> list[str]:
        """Return the rooms that have something to hand out."""
        return list(self._waiting)

    def take(self, name: str) -> list[Delivery]:
        """Return what is to be handed out in that room now, and to whom; it counts as handed out."""
        events = self._waiting.pop(name, None)
        self._waiting_bytes.pop(name, None)
        room = self._rooms.get(name)
        if events is None or room is None:
            return []
        try:
            return self._deliveries_of(room, events)
        except Exception:
            self._end_room(name)
            return []

    def statistics(self) -> HubStatistics:
        """Return what is held and what was done."""
        return HubStatistics(
            rooms=len(self._rooms),
            subscriptions=self._rooms.subscriptions,
            publications=self._publications,
            deliveries=self._deliveries,
            rooms_failed=self._rooms_failed,
            gaps=self._gaps,
            idempotency_keys=len(self._results),
            refused=self._refused,
        )

    # -- steps: each returns its answer

    def _publish(self, command: Publish, now: float) -> Answer:
        room, key = command.room, command.idempotency_key
        if (namespace := self._settings.namespace(room)) is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        who, asker, opened = namespace.allow_publish, command.asker, self._rooms.get(room)
        if who != "anonymous" and asker is not None:
            is_in = opened is not None and asker in opened
            if not (is_in and who == "subscribers") and not self._may(who, asker, room):
                return Refused(Refusal.DENIED)
        scope = ""
        if key:
            scope = f"user {command.publisher.user}" if command.publisher is not None else "server"
            first = self._results.find(room, scope, key, now)
            if first is not None:
                return Published(first if namespace.history_size else None)
            if not self._results.has_room(room, now):
                return Refused(Refusal.TOO_MANY_KEYS)
        publication = self._engine.append(room, command.data, command.kind, now, command.publisher)
        self._publications += 1
        if key:
            self._results.remember(room, scope, key, publication.position, now)
        if opened is not None:
            self._happen(room, publication)
            self._waiting_bytes[room] = self._waiting_bytes.get(room, 0) + len(command.data)
        if command.reply is None:
            return DONE
        return Published(publication.position if publication.stored else None)

    def _subscribe(self, command: Subscribe, now: float) -> Answer:
        name, subscriber, limits = command.room, command.asker, self._settings
        namespace = limits.namespace(name)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        room = self._rooms.get(name)
        if room is not None and subscriber in room:
            return Refused(Refusal.ALREADY_SUBSCRIBED)
        if not self._may_subscribe(namespace.allow_subscribe, command):
            return Refused(Refusal.DENIED)
        if room is None and len(self._rooms) >= limits.rooms_max:
            return Refused(Refusal.TOO_MANY_ROOMS)
        if room is not None and limits.subscribers_max and room.occupancy >= limits.subscribers_max:
            return Refused(Refusal.ROOM_FULL)
        if len(self._rooms.rooms_of(subscriber)) >= limits.rooms_per_connection_max:
            return Refused(Refusal.TOO_MANY_SUBSCRIPTIONS)
        recoverable = namespace.history_size > 0 and (namespace.force_recovery or command.recoverable)
        answer = self._joined(command, recoverable, now)
        if command.insist and command.since is not None and not answer.recovered:
            return Refused(Refusal.UNRECOVERABLE)
        standing = Standing(subscriber.member.user, subscribed=True, by_token=command.by_token)
        told = command.joins is not None and (limits.insecure or may(namespace.allow_presence, standing))
        self._rooms.subscribe(
            subscriber,
            name,
            answer.position,
            waiting=len(self._waiting.get(name, ())),
            watches=told and namespace.join_leave and (namespace.force_join_leave or bool(command.joins)),
            by_token=command.by_token,
        )
        positioned = recoverable or namespace.force_positioning or command.positioned
        return msgspec.structs.replace(answer, positioned=positioned, recoverable=recoverable)

    def _joined(self, command: Subscribe, recoverable: bool, now: float) -> Subscribed:
        """Return what the newcomer is given of the past."""
        since = command.since
        if since is None or not recoverable:
            past = self._engine.recent(command.room, command.history, now)
            return Subscribed(past.position, past.publications)
        limit = self._settings.recovery_publications_max
        past = self._engine.read(command.room, now, since=since.offset, limit=limit)
        missed = recover(past.position, past.publications, since)
        return Subscribed(past.position, missed or (), recovered=missed is not None)

    def _unsubscribe(self, command: Unsubscribe, now: float) -> Answer:
        room = self._rooms.get(command.room)
        if room is not None and command.asker in room and (waiting := self._waiting.get(command.room)):
            delivery = deliver_to(room, command.asker, waiting)  # it was there when that happened
            self._deliveries += delivery.publications
            command.asker.offer(delivery.data, delivery.frames)
        self._part(command.asker, command.room)
        return DONE

    def _read_history(self, command: ReadHistory, now: float) -> Answer:
        namespace = self._settings.namespace(command.room)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        if not namespace.history_size:
            return Refused(Refusal.SWITCHED_OFF)
        if not self._may(namespace.allow_history, command.asker, command.room):
            return Refused(Refusal.DENIED)
        most = self._settings.recovery_publications_max
        limit = most if command.limit < 0 else min(command.limit, most)
        since = command.since
        past = self._engine.read(
            command.room, now, since=since.offset if since else None, limit=limit, reverse=command.reverse
        )
        if since is not None and since.epoch and since.epoch != past.position.epoch:
            return Refused(Refusal.UNRECOVERABLE)
        return Past(past.position, past.publications)

    def _read_presence(self, command: ReadPresence, now: float) -> Answer:
        namespace = self._settings.namespace(command.room)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        if not namespace.presence:
            return Refused(Refusal.SWITCHED_OFF)
        if not self._may(namespace.allow_presence, command.asker, command.room):
            return Refused(Refusal.DENIED)
        room = self._rooms.get(command.room)
        return Present([subscriber.member for subscriber in room.subscribers()] if room is not None else [])

    # -- parts of steps

    def _answer_to(self, command: Subscribe | Unsubscribe | ReadHistory | ReadPresence, now: float) -> Answer:
        answer: Answer
        try:
            answer = self._steps[type(command)](command, now) if not command.asker.gone else Refused(Refusal.STOPPING)
        except Exception:
            answer = self._end_room(command.room)
        if type(answer) is Refused:
            self._refused[answer.why] += 1
        return answer

    def _announce(self, command: Subscribe, answer: Answer) -> None:
        command.asker.flush()  # its reply goes before anything of the room's
        namespace, room = self._settings.namespace(command.room), self._rooms.get(command.room)
        if isinstance(answer, Subscribed) and room is not None and namespace is not None and namespace.join_leave:
            room.announced.add(command.asker)
            self._happen(command.room, Presence(command.room, command.asker.member, joined=True))

    def _may(self, who: Who, asker: Subscriber, name: str) -> bool:
        if who == "anonymous" or self._settings.insecure:
            return True
        room, user = self._rooms.get(name), asker.member.user
        if room is not None and asker in room:
            return may(who, Standing(user, subscribed=True, by_token=asker in room.by_token))
        # What a connection has said before its end may be carried out only after its leave.
        return may(who, Standing(user, subscribed=name in asker.was_in, by_token=asker.was_in.get(name, False)))

    def _may_subscribe(self, who: Who, command: Subscribe) -> bool:
        standing = Standing(command.asker.member.user, by_token=command.by_token)
        return command.by_server or self._settings.insecure or may_subscribe(who, command.room, standing)

    def _happen(self, room: str, event: Publication | Presence) -> None:
        waiting = self._waiting.get(room)
        if waiting is None:
            self._waiting[room] = [event]
        else:
            waiting.append(event)

    def _part(self, subscriber: Subscriber, name: str) -> None:
        room = self._rooms.get(name)
        announced = room is not None and subscriber in room.announced
        if self._rooms.unsubscribe(subscriber, name) and announced and name in self._rooms:
            self._happen(name, Presence(name, subscriber.member, joined=False))

    def _answer(self, asker: Subscriber, reply: Callable[[Answer], None], answer: Answer) -> None:
        self._answered[asker] = None
        try:
            reply(answer)
        except Exception:
            log.exception("connection ended by an internal error")
            asker.evict(End.INTERNAL_ERROR)

    def _deliveries_of(self, room: Room, events: list[Publication | Presence]) -> list[Delivery]:
        newcomers, room.newcomers = room.newcomers, {}
        publications = [event for event in events if type(event) is Publication]
        if publications and not self._follows(room, publications):
            self._gaps += 1
            self._lose_all(room.name, Loss.GAP)
            return []
        if publications:
            room.top = publications[-1].position
        deliveries = deliver(room, newcomers, events, len(publications))
        self._deliveries += sum(delivery.publications * len(delivery.offers) for delivery in deliveries)
        return deliveries

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
        self._waiting.pop(name, None)
        self._waiting_bytes.pop(name, None)
        self._engine.forget(name)
        self._lose_all(name, Loss.ROOM_ENDED)
        return Refused(Refusal.INTERNAL_ERROR)

    def _lose_all(self, name: str, loss: Loss) -> None:
        room = self._rooms.get(name)
        for subscriber in list(room.subscribers()) if room is not None else ():
            self._rooms.unsubscribe(subscriber, name)
            subscriber.lose(name, loss)
