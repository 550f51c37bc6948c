"""One connection that speaks the structured dialect: commands in, replies out.

    NEW ── connect ──▶ READY ── whatever isn't allowed ──▶ OVER
     └──── anything else ────────────────────────────────────▲

Rules:
1. Commands are carried out in their order, and answered in it: what needs no hub goes through it all the same.
2. What a client can't mean (broken JSON, a command too early, an unknown one) ends the connection with a code. What
   can't be done is an error, and the connection goes on.
3. Replies that were given in one pass of the hub leave in one frame, separated by newlines.
4. One pong a ping.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from hubbub import __version__
from hubbub.config import Settings
from hubbub.core.frames import PING, TEXT, encode_frame
from hubbub.dialects.centrifugo import requests
from hubbub.dialects.centrifugo.codes import (
    BAD_REQUEST,
    ERRORS,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    UNSUBSCRIBES,
    Error,
)
from hubbub.dialects.centrifugo.dialect import encode_member, encode_publication, encode_push
from hubbub.model.command import (
    Answer,
    Command,
    Past,
    Present,
    Publish,
    Published,
    ReadHistory,
    ReadPresence,
    Refused,
    Reply,
    Subscribe,
    Subscribed,
    Tell,
    Unsubscribe,
)
from hubbub.model.end import End
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name
from hubbub.model.publication import Kind, Member, Position
from hubbub.model.subscriber import Loss, Subscriber

PING_FRAME = encode_frame(TEXT, b"{}")
NATIVE_PING_FRAME = encode_frame(PING, b"hubbub")

REJECT_UNRECOVERED = 2
"""A bit of `subscribe.flag`."""
KEY_CHARACTERS_MAX = 64
"""Of an idempotency key: a UUID has 36."""


class State(enum.Enum):
    """Where the conversation is."""

    NEW = "new"
    READY = "ready"
    OVER = "over"  # the connection is ending: nothing is listened to any more


class _RefusedError(Exception):
    """The command gets this error."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


class _FatalError(Exception):
    """The connection ends."""

    def __init__(self, end: End, detail: str) -> None:
        super().__init__(detail)
        self.end = end
        self.detail = detail


class Conversation:
    """Implements `hubbub.dialects.base.Conversation`.

    Args:
        subscriber: the connection.
        member: how others see it.
        settings: ping_seconds, message_commands_max.
        native_pings: whether the client asked for pings of RFC 6455 instead of the protocol's own.
    """

    __slots__ = ("_native_pings", "_pings", "_replies", "_settings", "_state", "_subscriber", "member")

    def __init__(self, subscriber: Subscriber, member: Member, settings: Settings, native_pings: bool) -> None:
        self._subscriber = subscriber
        self._settings = settings
        self._native_pings = native_pings
        self._state = State.NEW
        self._replies: list[bytes] = []
        self._pings = 0  # those that haven't been answered
        self.member = member

    @property
    def about(self) -> Mapping[str, str]:
        """Who it is."""
        return {"user": self.member.user, "client": self.member.client}

    @property
    def is_established(self) -> bool:
        """Whether `connect` has come."""
        return self._state is State.READY

    def opening(self, reply: Reply) -> None:
        """Nothing is owed before the 101."""

    def receive(self, data: bytes, binary: bool) -> Sequence[Command]:
        """Return what the commands of one frame ask of the hub."""
        if self._state is State.OVER:
            return ()
        commands: list[Command] = []
        try:
            if binary:
                raise _FatalError(End.WRONG_FORMAT, "allowed: text frames of JSON")
            most = self._settings.message_commands_max
            is_long = data.count(b"\n") > most  # then it isn't even taken apart: it may be a megabyte of nothing
            lines = [] if is_long else [line for line in data.split(b"\n") if line.strip()]
            if is_long or len(lines) > most:
                raise _FatalError(End.BAD_REQUEST, f"over message_commands_max = {most} commands")
            if not lines:
                raise _FatalError(End.BAD_REQUEST, "a frame without a command")
            for line in lines:
                commands += self._understand(line)
        except _FatalError as fatal:
            self._state = State.OVER
            end, detail = fatal.end, fatal.detail
            commands.append(Tell(self._subscriber, lambda: self._subscriber.evict(end, detail), ends=True))
        return commands

    def replies(self) -> bytes:
        """Return the frame of the replies that wait."""
        if not self._replies:
            return b""
        replies, self._replies = self._replies, []
        return encode_frame(TEXT, b"\n".join(replies))

    def lose(self, room: str, loss: Loss) -> bytes:
        """Return the push that ends a subscription."""
        unsubscribe = UNSUBSCRIBES[loss]
        return encode_push(room, b'"unsubscribe":' + msgspec.json.encode(unsubscribe))

    def ping(self) -> bytes:
        """Return a ping of the kind that the client asked for."""
        if self._native_pings:
            return NATIVE_PING_FRAME
        self._pings += 1
        return PING_FRAME

    # -- commands

    def _understand(self, line: bytes) -> Sequence[Command]:
        try:
            request = requests.decode(line)
        except requests.MalformedRequestError as error:
            raise _FatalError(End.BAD_REQUEST, str(error)) from error
        for method in requests.METHODS:
            body = getattr(request, method)
            if body is not None:
                break
        else:
            self._pong(request)
            return ()
        if not request.id and method != "send":
            raise _FatalError(End.BAD_REQUEST, "a command without an id above 0")
        if (self._state is State.NEW) != (method == "connect"):
            raise _FatalError(End.BAD_REQUEST, "allowed: connect first, and once")
        number = request.id or 0
        try:
            return (_METHODS[method](self, number, body),)
        except _RefusedError as refused:
            content = msgspec.json.encode(refused.error)
            return (Tell(self._subscriber, lambda: self._say(number, b"error", content)),)

    def _pong(self, request: requests.Request) -> None:
        if request.id:
            raise _FatalError(End.BAD_REQUEST, "unknown command")
        if not self._pings:
            raise _FatalError(End.BAD_REQUEST, "a pong without a ping")
        self._pings -= 1

    def _connect(self, number: int, body: requests.Connect) -> Command:
        if body.token:
            raise _FatalError(End.INVALID_TOKEN, "no tokens are configured here")
        self._state = State.READY
        result: dict[str, object] = {"client": self.member.client, "version": __version__}
        if not self._native_pings:
            result |= {"ping": max(1, round(self._settings.ping_seconds)), "pong": True}
        return Tell(self._subscriber, lambda: self._say(number, b"connect", msgspec.json.encode(result)))

    def _subscribe(self, number: int, body: requests.Subscribe) -> Command:
        room = _room(body.channel)
        if body.token:
            raise _RefusedError(PERMISSION_DENIED.because("no tokens are configured here"))
        return Subscribe(
            self._subscriber,
            room,
            partial(self._answer_subscribe, number, body),
            since=Position(body.epoch or "", body.offset or 0) if body.recover else None,
            insist=bool((body.flag or 0) & REJECT_UNRECOVERED),
            positioned=bool(body.positioned),
            recoverable=bool(body.recoverable),
            joins=bool(body.join_leave),
        )

    def _unsubscribe(self, number: int, body: requests.Channel) -> Command:
        return Unsubscribe(self._subscriber, _room(body.channel), partial(self._answer_empty, number, b"unsubscribe"))

    def _publish(self, number: int, body: requests.Publish) -> Command:
        room, key = _room(body.channel), body.idempotency_key or ""
        if not body.data:
            raise _RefusedError(BAD_REQUEST.because("data is missing"))
        if len(key) > KEY_CHARACTERS_MAX:
            raise _RefusedError(BAD_REQUEST.because(f"idempotency_key is over {KEY_CHARACTERS_MAX} characters"))
        data = requests.compact(body.data)
        if requests.is_deeper(data, self._settings.message_depth_max):
            most = self._settings.message_depth_max
            raise _RefusedError(BAD_REQUEST.because(f"data is nested deeper than message_depth_max = {most}"))
        if requests.has_longer_number(data):
            raise _RefusedError(BAD_REQUEST.because(f"data has a number of over {requests.DIGITS_MAX} digits"))
        reply = partial(self._answer_publish, number)
        return Publish(room, data, Kind.JSON, self.member, key, self._subscriber, reply)

    def _presence(self, number: int, body: requests.Channel) -> Command:
        return ReadPresence(self._subscriber, _room(body.channel), partial(self._answer_presence, number))

    def _presence_stats(self, number: int, body: requests.Channel) -> Command:
        return ReadPresence(self._subscriber, _room(body.channel), partial(self._answer_presence_stats, number))

    def _history(self, number: int, body: requests.History) -> Command:
        room, since = _room(body.channel), None
        if body.since is not None:
            since = Position(body.since.epoch or "", body.since.offset or 0)
            if body.reverse and not since.offset:
                raise _RefusedError(BAD_REQUEST.because("nothing is before offset 0"))
        reply = partial(self._answer_history, number)
        return ReadHistory(self._subscriber, room, reply, body.limit or 0, since, bool(body.reverse))

    def _not_available(self, number: int, body: object) -> Command:
        raise _RefusedError(NOT_AVAILABLE)

    def _send(self, number: int, body: object) -> Command:
        raise _FatalError(End.NOT_AVAILABLE, "send: nothing here listens to it")

    def _refresh(self, number: int, body: requests.Refresh) -> Command:
        if not body.token:
            raise _FatalError(End.BAD_REQUEST, "refresh without a token")
        raise _FatalError(End.INVALID_TOKEN, "no tokens are configured here")

    def _sub_refresh(self, number: int, body: requests.Refresh) -> Command:
        _room(body.channel)
        raise _RefusedError(PERMISSION_DENIED.because("no tokens are configured here"))

    # -- replies

    def _say(self, number: int, member: bytes, content: bytes) -> None:
        self._replies.append(b'{"id":%d,"%s":%s}' % (number, member, content))

    def _was_refused(self, number: int, answer: Answer) -> bool:
        if not isinstance(answer, Refused):
            return False
        self._say(number, b"error", msgspec.json.encode(ERRORS[answer.why].because(answer.why.value)))
        return True

    def _answer_empty(self, number: int, member: bytes, answer: Answer) -> None:
        if not self._was_refused(number, answer):
            self._say(number, member, b"{}")

    def _answer_subscribe(self, number: int, body: requests.Subscribe, answer: Answer) -> None:
        if self._was_refused(number, answer):
            return
        assert isinstance(answer, Subscribed)
        members: list[bytes] = []
        if answer.recoverable:
            members.append(b'"recoverable":true')
        if answer.positioned:
            offset = body.offset if answer.recovered else answer.position.offset
            epoch = msgspec.json.encode(answer.position.epoch)
            members.append(b'"positioned":true,"epoch":%s,"offset":%d' % (epoch, offset or 0))
        if answer.publications:
            members.append(b'"publications":[%s]' % b",".join(map(encode_publication, answer.publications)))
        if answer.recovered:
            members.append(b'"recovered":true')
        if body.recover:
            members.append(b'"was_recovering":true')
        self._say(number, b"subscribe", b"{%s}" % b",".join(members))

    def _answer_publish(self, number: int, answer: Answer) -> None:
        if self._was_refused(number, answer):
            return
        assert isinstance(answer, Published)
        position = answer.position
        content = b"{}"
        if position is not None:
            content = b'{"offset":%d,"epoch":%s}' % (position.offset, msgspec.json.encode(position.epoch))
        self._say(number, b"publish", content)

    def _answer_presence(self, number: int, answer: Answer) -> None:
        if self._was_refused(number, answer):
            return
        assert isinstance(answer, Present)
        members = (b'"%s":%s' % (member.client.encode(), encode_member(member)) for member in answer.members)
        self._say(number, b"presence", b'{"presence":{%s}}' % b",".join(members))

    def _answer_presence_stats(self, number: int, answer: Answer) -> None:
        if self._was_refused(number, answer):
            return
        assert isinstance(answer, Present)
        users = len({member.user for member in answer.members})
        self._say(number, b"presence_stats", b'{"num_clients":%d,"num_users":%d}' % (len(answer.members), users))

    def _answer_history(self, number: int, answer: Answer) -> None:
        if self._was_refused(number, answer):
            return
        assert isinstance(answer, Past)
        publications = b",".join(map(encode_publication, answer.publications))
        epoch, offset = msgspec.json.encode(answer.position.epoch), answer.position.offset
        self._say(number, b"history", b'{"publications":[%s],"epoch":%s,"offset":%d}' % (publications, epoch, offset))


def _room(name: str | None) -> str:
    if not name:
        raise _FatalError(End.BAD_REQUEST, "a command without its channel")
    try:
        return check_room_name(name)
    except RoomNameError as error:
        raise _RefusedError(BAD_REQUEST.because(str(error))) from error


_METHODS: dict[str, Callable[..., Command]] = {
    "connect": Conversation._connect,
    "subscribe": Conversation._subscribe,
    "unsubscribe": Conversation._unsubscribe,
    "publish": Conversation._publish,
    "presence": Conversation._presence,
    "presence_stats": Conversation._presence_stats,
    "history": Conversation._history,
    "ping": Conversation._not_available,
    "send": Conversation._send,
    "rpc": Conversation._not_available,
    "refresh": Conversation._refresh,
    "sub_refresh": Conversation._sub_refresh,
}
"""What each method becomes, in the order in which the first one that is given counts."""
