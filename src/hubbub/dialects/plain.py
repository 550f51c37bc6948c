"""The plain dialect: every message goes verbatim to everyone in the room, the sender included.

It is the chat of the twenty-line tutorials, kept on purpose: `new WebSocket('ws://localhost:8000/chat')` with
`onmessage` and `send` is a complete client. Text stays text, binary stays binary. There is no envelope, so
there are no positions and no recovery: order, history on arrival, and an end with a code are what it has.

What structured clients say arrives as text: a JSON string as what it says, anything else as it is written.

What a peer is told is the table below; 1xxx are the codes of RFC 6455 section 7.4.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import msgspec

from hubbub.auth.access import Credentials
from hubbub.auth.permissions import Standing, may_subscribe
from hubbub.core.frames import BINARY, PING, TEXT, encode_frame
from hubbub.model.command import Command, Publish, PublishRun, Refusal, Refused, Reply, Subscribe, Tell
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Kind, Member, Position, Presence, Publication, encode_as_json
from hubbub.model.question import Allowed, Ask, Asked, Asks, Denied, Dismissed, Question, Unanswered, Verdict
from hubbub.model.subscriber import Loss, Subscriber

_TEXT_KIND, _BINARY_KIND = Kind.TEXT, Kind.BINARY  # an attribute of an Enum takes ten times as long as a name
PING_FRAME = encode_frame(PING, b"hubbub")

DISCONNECTS = {
    End.MESSAGE_TOO_LARGE: Disconnect(1009, "message too large"),
    End.TOO_MANY_FRAGMENTS: Disconnect(1008, "message has too many fragments"),
    End.TOO_MANY_CONTROL_FRAMES: Disconnect(1008, "too many control frames"),
    End.TOO_FAST: Disconnect(1008, "too many messages"),
    End.NOT_PERMITTED: Disconnect(1008, "not permitted to publish here"),
    End.EXPIRED: Disconnect(1008, "the token has expired"),
    End.REMOVED: Disconnect(1008, "removed from the room"),
    End.TOO_MANY_OF_USER: Disconnect(1008, "too many connections of this user"),
    End.DISMISSED: Disconnect(1008, "dismissed"),
    End.UNANSWERED: Disconnect(1013, "the back end gave no usable answer; try again later"),
    End.NO_PONG: Disconnect(1011, "no pong"),
    End.SLOW_CONSUMER: Disconnect(1013, "slow consumer"),
    End.SHUTDOWN: Disconnect(1001, "server is shutting down"),
    End.ROOM_ENDED: Disconnect(1011, "room ended by an internal error"),
    End.INTERNAL_ERROR: Disconnect(1011, "internal error"),
}
"""Ends that aren't here leave nobody to tell, or are answered by trio-websocket (protocol errors, Close)."""


class PlainDialect:
    """Implements `hubbub.dialects.base.Dialect`."""

    name = "plain"

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the data as one frame, of the kind it came in."""
        data, kind = publication.data, publication.kind
        if kind is _TEXT_KIND:
            return encode_frame(TEXT, data)
        if kind is _BINARY_KIND:
            return encode_frame(BINARY, data)
        if data.startswith(b'"'):
            return encode_frame(TEXT, msgspec.json.decode(data, type=str).encode())
        return encode_frame(TEXT, data)

    def encode_presence(self, presence: Presence) -> bytes:
        """Plain clients have no words for it, and are never watchers."""
        return b""

    def disconnect(self, end: End) -> Disconnect:
        """Return what the peer is told of this end."""
        return DISCONNECTS[end]


class PlainConversation:
    """One plain connection: it is in one room, and all that it says is published there.

    Args:
        subscriber: the connection.
        member: how others would see it without a token.
        who: what its token says.
        room: its room.
        history: how many of the room's last publications it gets first.
        asks: whether the back end is to be asked.
    """

    __slots__ = ("_asks", "_ends_at", "_history", "_subscriber", "member", "room")

    has_runs = True

    def __init__(
        self, subscriber: Subscriber, member: Member, who: Credentials, room: str, history: int, asks: Asks
    ) -> None:
        self._subscriber = subscriber
        self._history = history
        self._asks = asks
        self._ends_at = who.ends_at
        self.member = Member(who.user, member.client, who.info)
        self.room = room
        subscriber.introduce(self.member)

    @property
    def is_known(self) -> bool:
        """It is known from the beginning."""
        return True

    @property
    def about(self) -> Mapping[str, str]:
        """Its room."""
        return {"room": self.room}

    def opening(self, reply: Reply) -> Iterator[Command | Ask]:
        """Join the room, before anything else; the back end may have to say whether it may."""
        join = Subscribe(self._subscriber, self.room, reply, history=self._history)
        if self._asks("connect", self.room):
            yield Ask(self._question("connect", ""), self._connected)
        might = may_subscribe("anonymous", self.room, Standing(self.member.user))  # or the hub will refuse anyway
        if might and self._asks("subscribe", self.room):
            yield Ask(self._question("subscribe", self.room), partial(self._granted, join))
        else:
            yield join

    def receive(self, data: bytes, binary: bool) -> Sequence[Command | Ask]:
        """Return the one command that a message is: publish it."""
        kind = _BINARY_KIND if binary else _TEXT_KIND
        command = Publish(self.room, data, kind, self.member, asker=self._subscriber)
        if not self._asks("publish", self.room):
            return (command,)
        question = self._question("publish", self.room, encode_as_json(command.data, command.kind))
        return (Ask(question, partial(self._published, command)),)

    def receive_run(self, messages: Sequence[bytes], binary: bool) -> PublishRun | None:
        """Return the one command that messages are, unless the back end is to be asked about each."""
        if self._asks("publish", self.room):
            return None
        kind = _BINARY_KIND if binary else _TEXT_KIND
        return PublishRun(self.room, messages, sum(map(len, messages)), kind, self.member, self._subscriber)

    def overdue(self, now: float) -> End | None:
        """Its token can't be renewed: when it has expired, that's it."""
        return End.EXPIRED if self._ends_at is not None and self._ends_at <= now else None

    def replies(self) -> bytes:
        """Nothing is ever replied."""
        return b""

    def lose(self, room: str, loss: Loss) -> End:
        """Without its room it has nothing left."""
        return End.REMOVED if loss is Loss.REMOVED else End.ROOM_ENDED

    def ping(self) -> bytes:
        """A ping of RFC 6455."""
        return PING_FRAME

    def admit(
        self,
        room: str,
        reply: Reply,
        *,
        info: bytes = b"",
        data: bytes = b"",
        since: Position | None = None,
        ends_at: float | None = None,
    ) -> None:
        """It couldn't tell the rooms apart."""

    def extend(self, ends_at: float | None, info: bytes) -> None:
        """Let it be until then."""
        self._ends_at = ends_at
        if info:
            self._introduce(self.member.user, info)

    def _question(self, what: Asked, room: str, data: bytes = b"") -> Question:
        return Question(what, self.member.client, self.member.user, PlainDialect.name, room, data)

    def _introduce(self, user: str, info: bytes) -> None:
        self.member = Member(user, self.member.client, info)
        self._subscriber.introduce(self.member)

    def _connected(self, verdict: Verdict) -> Refused | None:
        if isinstance(verdict, Allowed):
            self._introduce(self.member.user or verdict.user, verdict.info or self.member.info)
            if verdict.ends_at is not None:
                self._ends_at = verdict.ends_at
            return None
        return _refusal_of(verdict, Refusal.NOT_LET_IN)

    def _granted(self, join: Subscribe, verdict: Verdict) -> Command | Refused:
        if isinstance(verdict, Allowed):
            return msgspec.structs.replace(join, info=verdict.info)
        return _refusal_of(verdict, Refusal.DENIED)

    def _published(self, command: Publish, verdict: Verdict) -> Command:
        if isinstance(verdict, Allowed):
            if verdict.data:
                command = msgspec.structs.replace(command, data=verdict.data, kind=Kind.JSON)
            return msgspec.structs.replace(command, keep=verdict.keep)
        subscriber = self._subscriber
        match verdict:
            case Dismissed(code, reason):
                return Tell(subscriber, partial(subscriber.dismiss, Disconnect(code, reason)), ends=True)
            case Denied(_, message):
                return Tell(subscriber, partial(subscriber.evict, End.NOT_PERMITTED, message), ends=True)
        return Tell(subscriber, partial(subscriber.evict, End.UNANSWERED), ends=True)


def _refusal_of(verdict: Verdict, why: Refusal) -> Refused:
    return Refused(Refusal.UNANSWERED if isinstance(verdict, Unanswered) else why)
