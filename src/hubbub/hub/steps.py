"""The hub's steps: each carries out one command, and returns its answer. Plain and synchronous.

Rules:
1. A publication is accepted by the engine, which gives it its place, and waits to be handed out.
2. What a client may do is decided in the step that would do it: `hubbub.auth.permissions`. The server itself, which
   asks for its back end (no asker, or `by_server`), may everything.
3. What was waiting when a subscriber joined isn't for it: it gets that from history, if it asked, and everything
   after: each publication once (P2).
4. A leave takes effect at once: nothing is handed out to who has left, and nothing brings it back. Who leaves a room
   alone is given what was waiting for it there.
"""

import msgspec

from hubbub.auth.permissions import Standing, Who, level, may, may_subscribe
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.idempotency import Results
from hubbub.core.recovery import recover
from hubbub.core.rooms import Rooms
from hubbub.engines.base import Engine
from hubbub.hub.delivery import deliver_to
from hubbub.hub.waiting import Waiting
from hubbub.model.command import (
    Answer,
    Done,
    Past,
    Present,
    Publish,
    Published,
    PublishRun,
    PublishRuns,
    ReadHistory,
    ReadPresence,
    Refusal,
    Refused,
    RemoveHistory,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from hubbub.model.publication import Member, Passing, Position, Presence, Publication
from hubbub.model.subscriber import Loss, Subscriber

DONE = Done()


class Steps:
    """What can be asked of the hub.

    Args:
        engine: gives publications their order and keeps them.
        rooms: who is where.
        settings: limits, and what holds for each room.
        waiting: what has happened goes there.
    """

    def __init__(self, engine: Engine, rooms: Rooms, settings: Settings, waiting: Waiting) -> None:
        self._engine = engine
        self._rooms = rooms
        self._settings = settings
        self._waiting = waiting
        self.results = Results(settings)
        self.publications = 0
        self.deliveries = 0

    def publish(self, command: Publish, now: float) -> Answer:
        """Accept a publication."""
        room, key = command.room, command.idempotency_key
        if (namespace := self._settings.namespace(room)) is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        who, asker, opened = namespace.allow_publish, command.asker, self._rooms.get(room)
        if who != "subscribers":  # the default: a call less
            who = level(who, room)
        if who != "anonymous" and asker is not None:
            is_in = opened is not None and asker in opened
            if not (is_in and who == "subscribers") and not self._may(who, asker, room):
                return Refused(Refusal.DENIED)
        if key:
            first = self.results.find(room, command.publisher, key, now)
            if first is not None:
                return first
            if not self.results.has_room(room, command.publisher, now):
                return Refused(Refusal.TOO_MANY_KEYS)
        publisher = command.publisher
        if opened is not None and opened.infos and asker is not None:
            publisher = opened.member(asker)
        if command.keep or not namespace.history_size:
            publication = self._engine.append(room, command.data, command.kind, now, publisher, command.tags)
        else:
            publication = self._passing(command, publisher, now)
        self.publications += 1
        if opened is not None:
            self._waiting.add(room, publication, len(command.data))
        if command.reply is None and not key:
            return DONE
        published = Published(publication.position if publication.stored else None)
        if key:
            self.results.remember(room, command.publisher, key, published, now)
        return published

    def publish_runs(self, command: PublishRuns, now: float) -> list[tuple[PublishRun, Refusal]]:
        """Accept what some say in one room, in that order; return what was refused, and why."""
        room, runs = command.room, command.runs
        if (namespace := self._settings.namespace(room)) is None:
            return [(run, Refusal.UNKNOWN_NAMESPACE) for run in runs]
        who, opened = level(namespace.allow_publish, room), self._rooms.get(room)
        messages: list[bytes] = []
        publishers: list[Member] = []
        length = 0
        refused: list[tuple[PublishRun, Refusal]] = []
        for run in runs:
            asker = run.asker
            is_in = opened is not None and asker in opened
            if not (is_in and who == "subscribers") and not self._may(who, asker, room):
                refused.append((run, Refusal.DENIED))
                continue
            publisher = opened.member(asker) if opened is not None and opened.infos else run.publisher
            messages += run.messages
            length += run.length
            publishers += [publisher] * len(run.messages)
        if messages:
            publications = self._engine.append_all(room, messages, command.kind, now, publishers)
            self.publications += len(publications)
            if opened is not None:
                self._waiting.add_all(room, publications, length)
        return refused

    def subscribe(self, command: Subscribe, now: float) -> Answer:
        """Add a subscriber to a room."""
        name, subscriber, limits = command.room, command.asker, self._settings
        namespace = limits.namespace(name)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        room = self._rooms.get(name)
        if room is not None and subscriber in room:
            return Refused(Refusal.ALREADY_SUBSCRIBED)
        if not self._may_subscribe(namespace.allow_subscribe, command):
            return Refused(Refusal.DENIED)
        standing = Standing(subscriber.member.user, subscribed=True, by_token=command.by_token)
        if command.history and not self._may_read(namespace, standing):
            return Refused(Refusal.HISTORY_DENIED)
        if room is None and len(self._rooms) >= limits.rooms_max:
            return Refused(Refusal.TOO_MANY_ROOMS)
        if room is not None and limits.subscribers_max and room.occupancy >= limits.subscribers_max:
            return Refused(Refusal.ROOM_FULL)
        if len(self._rooms.rooms_of(subscriber)) >= limits.rooms_per_connection_max:
            return Refused(Refusal.TOO_MANY_SUBSCRIPTIONS)
        recoverable = namespace.history_size > 0 and (namespace.force_recovery or command.recoverable)
        if command.since is not None and not command.since.epoch and not self._may_read(namespace, standing):
            recoverable_since = None  # it can't even say what it has seen: that would be reading the past
        else:
            recoverable_since = command.since
        answer = self._joined(command, recoverable_since, recoverable, now)
        if command.insist and command.since is not None and not answer.recovered:
            return Refused(Refusal.UNRECOVERABLE)
        told = command.joins is not None and (limits.insecure or may(namespace.allow_presence, standing))
        self._rooms.subscribe(
            subscriber,
            name,
            answer.position,
            waiting=len(self._waiting.events(name)),
            watches=told and namespace.join_leave and (namespace.force_join_leave or bool(command.joins)),
            by_token=command.by_token,
            info=command.info,
        )
        positioned = recoverable or namespace.force_positioning or command.positioned
        return msgspec.structs.replace(answer, positioned=positioned, recoverable=recoverable)

    def announce(self, command: Subscribe) -> None:
        """Tell the room that someone has joined, where that is told; it has heard that itself."""
        namespace, room = self._settings.namespace(command.room), self._rooms.get(command.room)
        if room is not None and namespace is not None and namespace.join_leave:
            room.announced.add(command.asker)
            self._waiting.add(command.room, Presence(command.room, room.member(command.asker), joined=True))

    def unsubscribe(self, command: Unsubscribe, now: float) -> Answer:
        """Take a subscriber out of a room."""
        room = self._rooms.get(command.room)
        if room is not None and command.asker in room:
            if waiting := self._waiting.events(command.room):
                delivery = deliver_to(room, command.asker, waiting)  # it was there when that happened
                self.deliveries += delivery.publications
                command.asker.outlet.offer(delivery.data, delivery.frames)
            self.part(command.asker, command.room)
            if command.by_server:
                command.asker.lose(command.room, Loss.REMOVED)
        return DONE

    def part(self, subscriber: Subscriber, name: str) -> None:
        """Take a subscriber out of a room, and tell the others, if they know of it."""
        room = self._rooms.get(name)
        known_as = room.member(subscriber) if room is not None and subscriber in room.announced else None
        if self.take_out(subscriber, name) and known_as is not None and name in self._rooms:
            self._waiting.add(name, Presence(name, known_as, joined=False))

    def take_out(self, subscriber: Subscriber, name: str) -> bool:
        """Take a subscriber out of a room without a word; False if it wasn't there."""
        was_there = self._rooms.unsubscribe(subscriber, name)
        if name not in self._rooms:
            self._waiting.take(name)  # it is for nobody: not for who opens the room anew either
        return was_there

    def read_history(self, command: ReadHistory, now: float) -> Answer:
        """Read what is kept of a room."""
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

    def remove_history(self, command: RemoveHistory, now: float) -> Answer:
        """Let go of what is kept of a room."""
        namespace = self._settings.namespace(command.room)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        if not namespace.history_size:
            return Refused(Refusal.SWITCHED_OFF)
        self._engine.clear(command.room)
        return DONE

    def read_presence(self, command: ReadPresence, now: float) -> Answer:
        """Say who is in a room."""
        namespace = self._settings.namespace(command.room)
        if namespace is None:
            return Refused(Refusal.UNKNOWN_NAMESPACE)
        if not namespace.presence:
            return Refused(Refusal.SWITCHED_OFF)
        if not self._may(namespace.allow_presence, command.asker, command.room):
            return Refused(Refusal.DENIED)
        room = self._rooms.get(command.room)
        return Present([room.member(subscriber) for subscriber in room.subscribers()] if room is not None else [])

    def _may_read(self, namespace: Namespace, standing: Standing) -> bool:
        return self._settings.insecure or may(namespace.allow_history, standing)

    def _joined(self, command: Subscribe, since: Position | None, recoverable: bool, now: float) -> Subscribed:
        """Return what the newcomer is given of the past."""
        if since is None or not recoverable:
            past = self._engine.recent(command.room, command.history, now)
            return Subscribed(past.position, past.publications)
        limit = self._settings.recovery_publications_max
        past = self._engine.read(command.room, now, since=since.offset, limit=limit)
        missed = recover(past.position, past.publications, since)
        return Subscribed(past.position, missed or (), recovered=missed is not None)

    def _passing(self, command: Publish, publisher: Member | None, now: float) -> Publication:
        """Return a publication that isn't kept: its place is that of the last one that is."""
        top = self._engine.read(command.room, now).position
        return Passing(
            command.room,
            top.epoch,
            top.offset,
            command.data,
            command.kind,
            now,
            stored=False,
            publisher=publisher,
            tags=command.tags,
        )

    def _may(self, who: Who, asker: Subscriber | None, name: str) -> bool:
        who = level(who, name)
        if asker is None or who == "anonymous" or self._settings.insecure:
            return True
        room, user = self._rooms.get(name), asker.member.user
        if room is not None and asker in room:
            return may(who, Standing(user, subscribed=True, by_token=asker in room.by_token))
        # What a connection has said before its end may be carried out only after its leave.
        return may(who, Standing(user, subscribed=name in asker.was_in, by_token=asker.was_in.get(name, False)))

    def _may_subscribe(self, who: Who, command: Subscribe) -> bool:
        standing = Standing(command.asker.member.user, by_token=command.by_token)
        return command.by_server or self._settings.insecure or may_subscribe(who, command.room, standing)
