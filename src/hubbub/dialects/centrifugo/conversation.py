"""One connection that speaks the structured dialect: commands in, replies out.

    NEW ── connect ──▶ READY ── whatever isn't allowed ──▶ OVER
     ├──── anything else ────────────────────────────────────▲
     └── an expired token ──▶ REFUSED ── stale ──────────────┘

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
from hubbub.auth.access import Access
from hubbub.auth.tokens import TokenError, TokenFault
from hubbub.config import Settings
from hubbub.core.frames import PING, TEXT, encode_frame
from hubbub.dialects.centrifugo import replies, requests
from hubbub.dialects.centrifugo.codes import (
    BAD_REQUEST,
    ERRORS,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNSUBSCRIBES,
    FatalError,
    RefusedError,
    room_of,
)
from hubbub.dialects.centrifugo.dialect import encode_push
from hubbub.dialects.centrifugo.tenure import Tenure
from hubbub.model.command import (
    Answer,
    Command,
    Enter,
    Publish,
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
    REFUSED = "refused"  # it may get a new token, and come back
    READY = "ready"
    OVER = "over"  # the connection is ending: nothing is listened to any more


_DEAF = frozenset({State.REFUSED, State.OVER})
"""What comes then isn't looked at."""


class CentrifugoConversation:
    """Implements `hubbub.dialects.base.Conversation`.

    Args:
        subscriber: the connection.
        member: how others see it.
        settings: ping_seconds, message_commands_max, stale_seconds_max, token_grace_seconds_max.
        access: who it is.
        now: the node's clock.
        native_pings: whether the client asked for pings of RFC 6455 instead of the protocol's own.
    """

    __slots__ = (
        "_access",
        "_began_at",
        "_native_pings",
        "_pings",
        "_replies",
        "_settings",
        "_state",
        "_subscriber",
        "_tenure",
        "member",
    )

    def __init__(
        self,
        subscriber: Subscriber,
        member: Member,
        settings: Settings,
        access: Access,
        now: float,
        native_pings: bool,
    ) -> None:
        self._subscriber = subscriber
        self._settings = settings
        self._access = access
        self._began_at = now
        self._tenure = Tenure(settings, access)
        self._native_pings = native_pings
        self._state = State.NEW
        self._replies: list[bytes] = []
        self._pings = 0  # those that haven't been answered
        self.member = member

    @property
    def about(self) -> Mapping[str, str]:
        """Who it is."""
        return {"user": self.member.user, "client": self.member.client}

    def overdue(self, now: float) -> End | None:
        """Return why the connection must end by now: no introduction, or no new token in time."""
        if self._state in (State.NEW, State.REFUSED):
            return End.STALE if now - self._began_at >= self._settings.stale_seconds_max else None
        return self._tenure.overdue(now)

    def opening(self, reply: Reply) -> None:
        """Nothing is owed before the 101."""

    def receive(self, data: bytes, binary: bool) -> Sequence[Command]:
        """Return what the commands of one frame ask of the hub."""
        if self._state in _DEAF:
            return ()
        commands: list[Command] = []
        try:
            if binary:
                raise FatalError(End.WRONG_FORMAT, "allowed: text frames of JSON")
            lines = requests.lines_of(data, self._settings.message_commands_max)
            for line in lines:
                commands += self._understand(line)
                if self._state in _DEAF:
                    break
        except (FatalError, requests.MalformedRequestError) as error:
            self._state = State.OVER
            end = error.end if isinstance(error, FatalError) else End.BAD_REQUEST
            detail = str(error)
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
        self._tenure.set_room(room, None)
        return encode_push(room, b'"unsubscribe":' + msgspec.json.encode(UNSUBSCRIBES[loss]))

    def ping(self) -> bytes:
        """Return a ping of the kind that the client asked for."""
        if self._native_pings:
            return NATIVE_PING_FRAME
        self._pings += 1
        return PING_FRAME

    # -- commands

    def _understand(self, line: bytes) -> Sequence[Command]:
        request = requests.decode(line)
        for method in requests.METHODS:
            body = getattr(request, method)
            if body is not None:
                break
        else:
            self._pong(request)
            return ()
        if not request.id and method != "send":
            raise FatalError(End.BAD_REQUEST, "a command without an id above 0")
        if (self._state is State.NEW) != (method == "connect"):
            raise FatalError(End.BAD_REQUEST, "allowed: connect first, and once")
        number = request.id or 0
        try:
            return (_METHODS[method](self, number, body),)
        except TokenError as error:
            raise FatalError(_FATAL_TOKENS.get(error.fault, End.INVALID_TOKEN), str(error)) from error
        except RefusedError as refused:
            content = msgspec.json.encode(refused.error)
            return (Tell(self._subscriber, lambda: self._say(number, b"error", content)),)

    def _pong(self, request: requests.Request) -> None:
        if request.id:
            raise FatalError(End.BAD_REQUEST, "unknown command")
        if not self._pings:
            raise FatalError(End.BAD_REQUEST, "a pong without a ping")
        self._pings -= 1

    def _connect(self, number: int, body: requests.Connect) -> Command:
        try:
            who = self._access.connect(body.token or "")
        except TokenError as error:
            if error.fault is not TokenFault.EXPIRED:
                raise
            self._state = State.REFUSED
            raise RefusedError(TOKEN_EXPIRED) from error
        self._state = State.READY
        self._tenure.ends_at = who.ends_at
        self.member = Member(who.user, self.member.client, who.info)
        self._subscriber.introduce(self.member)
        returning = body.subs or {}
        wanted = [self._subscription(room, returning.get(room), by_server=True) for room in who.rooms]
        return Enter(self._subscriber, wanted, partial(self._answer_connect, number, returning, wanted))

    def _subscription(
        self, room: str, body: requests.Subscribe | None, *, by_token: bool = False, by_server: bool = False
    ) -> Subscribe:
        body = body or requests.Subscribe()
        return Subscribe(
            self._subscriber,
            room,
            _nobody,
            since=Position(body.epoch or "", body.offset or 0) if body.recover else None,
            insist=bool((body.flag or 0) & REJECT_UNRECOVERED),
            positioned=bool(body.positioned),
            recoverable=bool(body.recoverable),
            joins=bool(body.join_leave),
            by_token=by_token,
            by_server=by_server,
        )

    def _subscribe(self, number: int, body: requests.Subscribe) -> Command:
        room = room_of(body.channel)
        ends_at = self._read_room_token(body.token, room) if body.token else None
        command = self._subscription(room, body, by_token=bool(body.token))
        return msgspec.structs.replace(command, reply=partial(self._answer_subscribe, number, room, body, ends_at))

    def _read_room_token(self, token: str, room: str) -> float | None:
        try:
            return self._access.subscribe(token, self.member.user, room).ends_at
        except TokenError as error:
            match error.fault:
                case TokenFault.EXPIRED:
                    raise RefusedError(TOKEN_EXPIRED) from error
                case TokenFault.FOREIGN:
                    raise
            raise RefusedError(PERMISSION_DENIED.because(str(error))) from error

    def _unsubscribe(self, number: int, body: requests.Channel) -> Command:
        room = room_of(body.channel)
        return Unsubscribe(self._subscriber, room, partial(self._answer_unsubscribe, number, room))

    def _publish(self, number: int, body: requests.Publish) -> Command:
        room, key = room_of(body.channel), body.idempotency_key or ""
        if not body.data:
            raise RefusedError(BAD_REQUEST.because("data is missing"))
        if len(key) > KEY_CHARACTERS_MAX:
            raise RefusedError(BAD_REQUEST.because(f"idempotency_key is over {KEY_CHARACTERS_MAX} characters"))
        data = requests.compact(body.data)
        if fault := requests.fault_of(data, self._settings.message_depth_max):
            raise RefusedError(BAD_REQUEST.because(fault))
        reply = partial(self._answer, number, b"publish", replies.encode_published)
        return Publish(room, data, Kind.JSON, self.member, key, self._subscriber, reply)

    def _presence(self, number: int, body: requests.Channel) -> Command:
        reply = partial(self._answer, number, b"presence", replies.encode_presence)
        return ReadPresence(self._subscriber, room_of(body.channel), reply)

    def _presence_stats(self, number: int, body: requests.Channel) -> Command:
        reply = partial(self._answer, number, b"presence_stats", replies.encode_presence_stats)
        return ReadPresence(self._subscriber, room_of(body.channel), reply)

    def _history(self, number: int, body: requests.History) -> Command:
        room, since = room_of(body.channel), None
        if body.since is not None:
            since = Position(body.since.epoch or "", body.since.offset or 0)
            if body.reverse and not since.offset:
                raise RefusedError(BAD_REQUEST.because("nothing is before offset 0"))
        reply = partial(self._answer, number, b"history", replies.encode_past)
        return ReadHistory(self._subscriber, room, reply, body.limit or 0, since, bool(body.reverse))

    def _not_available(self, number: int, body: object) -> Command:
        raise RefusedError(NOT_AVAILABLE)

    def _send(self, number: int, body: object) -> Command:
        raise FatalError(End.NOT_AVAILABLE, "send: nothing here listens to it")

    def _refresh(self, number: int, body: requests.Refresh) -> Command:
        if not body.token:
            raise FatalError(End.BAD_REQUEST, "refresh without a token")
        try:
            who = self._access.connect(body.token)
        except TokenError as error:
            if error.fault is not TokenFault.EXPIRED:
                raise
            raise RefusedError(TOKEN_EXPIRED) from error
        if who.user != self.member.user:
            raise FatalError(End.INVALID_TOKEN, "the new token is for another user")
        self._tenure.ends_at = who.ends_at
        result = {"client": self.member.client, "version": __version__, **self._tenure.lifetime(who.ends_at)}
        return Tell(self._subscriber, lambda: self._say(number, b"refresh", msgspec.json.encode(result)))

    def _sub_refresh(self, number: int, body: requests.Refresh) -> Command:
        room = room_of(body.channel)
        if not body.token:
            raise FatalError(End.BAD_REQUEST, "sub_refresh without a token")
        ends_at = self._read_room_token(body.token, room)
        if room not in self._tenure.rooms:
            raise RefusedError(PERMISSION_DENIED.because("there is no subscription to it that expires"))
        self._tenure.set_room(room, ends_at)
        content = msgspec.json.encode(self._tenure.lifetime(ends_at))
        return Tell(self._subscriber, lambda: self._say(number, b"sub_refresh", content))

    # -- replies

    def _say(self, number: int, member: bytes, content: bytes) -> None:
        self._replies.append(replies.encode_reply(number, member, content))

    def _answer(self, number: int, member: bytes, encode: Callable[[Answer], bytes], answer: Answer) -> None:
        """Reply what `encode` makes of the answer, or an error if it is a refusal."""
        if isinstance(answer, Refused):
            self._say(number, b"error", msgspec.json.encode(ERRORS[answer.why].because(answer.why.value)))
        else:
            self._say(number, member, encode(answer))

    def _answer_connect(
        self,
        number: int,
        returning: Mapping[str, requests.Subscribe],
        wanted: Sequence[Subscribe],
        answers: Sequence[Answer],
    ) -> None:
        rooms: dict[str, object] = {}
        for subscription, answer in zip(wanted, answers, strict=True):
            if not isinstance(answer, Subscribed):
                self._answer(number, b"connect", replies.encode_nothing, answer)
                self._state = State.REFUSED
                return
            body = returning.get(subscription.room) or requests.Subscribe()
            rooms[subscription.room] = msgspec.Raw(replies.encode_subscribed(body, {}, answer))
        result: dict[str, object] = {"client": self.member.client, "version": __version__}
        result |= self._tenure.lifetime(self._tenure.ends_at)
        if not self._native_pings:
            result |= {"ping": max(1, round(self._settings.ping_seconds)), "pong": True}
        if rooms:
            result["subs"] = rooms
        self._say(number, b"connect", msgspec.json.encode(result))

    def _answer_subscribe(
        self, number: int, room: str, body: requests.Subscribe, ends_at: float | None, answer: Answer
    ) -> None:
        self._answer(
            number, b"subscribe", partial(replies.encode_subscribed, body, self._tenure.lifetime(ends_at)), answer
        )
        if isinstance(answer, Subscribed):
            self._tenure.set_room(room, ends_at)

    def _answer_unsubscribe(self, number: int, room: str, answer: Answer) -> None:
        self._tenure.set_room(room, None)
        self._answer(number, b"unsubscribe", replies.encode_nothing, answer)


def _nobody(answer: Answer) -> None:
    """Take the answer to what is asked as a part of something else."""


_FATAL_TOKENS = {TokenFault.MISSING: End.BAD_REQUEST, TokenFault.STRANGER: End.NOT_PERMITTED}
"""How a connection ends whose token isn't accepted; all other faults: an invalid token."""

_METHODS: dict[str, Callable[..., Command]] = {
    "connect": CentrifugoConversation._connect,
    "subscribe": CentrifugoConversation._subscribe,
    "unsubscribe": CentrifugoConversation._unsubscribe,
    "publish": CentrifugoConversation._publish,
    "presence": CentrifugoConversation._presence,
    "presence_stats": CentrifugoConversation._presence_stats,
    "history": CentrifugoConversation._history,
    "ping": CentrifugoConversation._not_available,
    "send": CentrifugoConversation._send,
    "rpc": CentrifugoConversation._not_available,
    "refresh": CentrifugoConversation._refresh,
    "sub_refresh": CentrifugoConversation._sub_refresh,
}
"""What each method becomes, in the order in which the first one that is given counts."""
