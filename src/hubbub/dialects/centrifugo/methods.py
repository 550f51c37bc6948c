"""What each command of the structured dialect asks for: of the hub, and first of the back end, where it wants that.

Each takes the conversation, the command's number and its body, and returns a command for the hub, or what is to be
asked before. What isn't possible is raised: a `RefusedError` is an error for the client, a `FatalError` or a
`TokenError` ends the connection.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from hubbub import __version__
from hubbub.auth.access import Credentials, Membership, memberships
from hubbub.auth.permissions import Standing, may_subscribe
from hubbub.auth.tokens import Grant, TokenError, TokenFault
from hubbub.dialects.centrifugo import replies, requests
from hubbub.dialects.centrifugo.codes import (
    BAD_REQUEST,
    INTERNAL,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    Error,
    FatalError,
    RefusedError,
    room_of,
)
from hubbub.dialects.centrifugo.dialect import CentrifugoDialect
from hubbub.dialects.centrifugo.tenure import sooner
from hubbub.model.command import (
    Answer,
    Command,
    Enter,
    Publish,
    ReadHistory,
    ReadPresence,
    Refusal,
    Subscribe,
    Subscribed,
    Tell,
    Unsubscribe,
)
from hubbub.model.end import Disconnect, End
from hubbub.model.errors import RoomNameError
from hubbub.model.publication import Kind, Position
from hubbub.model.question import Allowed, Ask, Asked, Denied, Dismissed, Question, Verdict

if TYPE_CHECKING:
    from hubbub.dialects.centrifugo.conversation import CentrifugoConversation as Talk

REJECT_UNRECOVERED = 2
"""A bit of `subscribe.flag`."""
STILL_EXPIRED = msgspec.structs.replace(TOKEN_EXPIRED, temporary=True)
"""The answer to a *new* token: without that, the SDKs would never ask for another."""
KEY_CHARACTERS_MAX = 64
"""Of an idempotency key: a UUID has 36."""


# -- connect


def connect(talk: "Talk", number: int, body: requests.Connect) -> Command | Ask:
    """Find out who it is: by its token, by the back end, or not at all."""
    asked = talk.asks("connect", "")
    try:
        who = talk.access.connect(body.token or "")
    except TokenError as error:
        if error.fault is TokenFault.EXPIRED:
            talk.refused()
            raise RefusedError(TOKEN_EXPIRED) from error
        if error.fault is not TokenFault.MISSING or not asked:
            raise
        who = Credentials()  # the back end will say
    if asked:
        question = _question(talk, "connect", "", requests.compact(body.data), who.user)
        return Ask(question, partial(_after, talk, number, partial(_connected_by, talk, number, body, who)))
    return _enter(talk, number, body, who, b"")


def _connected_by(talk: "Talk", number: int, body: requests.Connect, who: Credentials, allowed: Allowed) -> Command:
    try:
        granted = {room: msgspec.json.decode(raw, type=Grant) for room, raw in allowed.rooms.items()}
        rooms = {**who.rooms, **memberships((), granted)}
    except (msgspec.DecodeError, RoomNameError, TokenError) as error:
        raise FatalError(End.UNANSWERED, f"the back end's answer: {error}") from error
    ends_at = who.ends_at if allowed.ends_at is None else allowed.ends_at
    talk.by_back_end = allowed
    known = Credentials(who.user or allowed.user, allowed.info or who.info, ends_at, rooms)
    return _enter(talk, number, body, known, allowed.data)


def _enter(talk: "Talk", number: int, body: requests.Connect, who: Credentials, data: bytes) -> Command:
    if not talk.introduce(who.user, who.info):
        return talk.over(End.TOO_MANY_OF_USER)
    talk.ready()
    talk.tenure.ends_at = who.ends_at
    returning = body.subs or {}
    wanted = [_subscription(talk, room, returning.get(room), of_server=member) for room, member in who.rooms.items()]
    reply = partial(_answer_connect, talk, number, returning, who.rooms, data, wanted)
    return Enter(talk.subscriber, wanted, reply)


def _answer_connect(
    talk: "Talk",
    number: int,
    returning: Mapping[str, requests.Subscribe],
    members: Mapping[str, Membership],
    data: bytes,
    wanted: Sequence[Subscribe],
    answers: Sequence[Answer],
) -> None:
    rooms: dict[str, object] = {}
    for subscription, answer in zip(wanted, answers, strict=True):
        room = subscription.room
        if not isinstance(answer, Subscribed):
            talk.answer(number, b"connect", replies.encode_nothing, answer)
            talk.refused()
            return
        body = returning.get(room) or requests.Subscribe()
        rooms[room] = msgspec.Raw(replies.encode_subscribed(body, {}, members[room].data, answer))
    result: dict[str, object] = {"client": talk.member.client, "version": __version__}
    result |= talk.tenure.lifetime(talk.tenure.ends_at)
    if data:
        result["data"] = msgspec.Raw(data)
    if not talk.native_pings:
        result |= {"ping": max(1, round(talk.settings.ping_seconds)), "pong": True}
    if rooms:
        result["subs"] = rooms
        talk.by_server = frozenset(rooms)
    talk.say(number, b"connect", msgspec.json.encode(result))


# -- rooms


def subscribe(talk: "Talk", number: int, body: requests.Subscribe) -> Command | Ask:
    """Join a room."""
    room = room_of(body.channel)
    who = _read_room_token(talk, body.token, room) if body.token else Credentials()
    if talk.asks("subscribe", room) and _might_join(talk, room, by_token=bool(body.token)):
        question = _question(talk, "subscribe", room, requests.compact(body.data))
        return Ask(question, partial(_after, talk, number, partial(_granted, talk, number, room, body, who)))
    return _join(talk, number, room, body, who, Allowed())


def _might_join(talk: "Talk", room: str, *, by_token: bool) -> bool:
    """Whether it makes sense to ask the back end: the hub, which decides, won't refuse for who it is."""
    namespace = talk.settings.namespace(room)
    if namespace is None or talk.settings.insecure:
        return namespace is not None
    return may_subscribe(namespace.allow_subscribe, room, Standing(talk.member.user, by_token=by_token))


def _granted(
    talk: "Talk", number: int, room: str, body: requests.Subscribe, who: Credentials, allowed: Allowed
) -> Command:
    who = Credentials(who.user, allowed.info or who.info, sooner(who.ends_at, allowed.ends_at))
    return _join(talk, number, room, body, who, allowed)


def _join(
    talk: "Talk", number: int, room: str, body: requests.Subscribe, who: Credentials, allowed: Allowed
) -> Command:
    command = _subscription(talk, room, body, by_token=bool(body.token))
    reply = partial(_answer_subscribe, talk, number, room, body, who.ends_at, allowed)
    return msgspec.structs.replace(command, reply=reply, info=who.info)


def _subscription(
    talk: "Talk",
    room: str,
    body: requests.Subscribe | None,
    *,
    by_token: bool = False,
    of_server: Membership | None = None,
) -> Subscribe:
    body = body or requests.Subscribe()
    return Subscribe(
        talk.subscriber,
        room,
        _nobody,
        since=Position(body.epoch or "", body.offset or 0) if body.recover else None,
        insist=bool((body.flag or 0) & REJECT_UNRECOVERED),
        positioned=bool(body.positioned),
        recoverable=bool(body.recoverable),
        joins=bool(body.join_leave),
        by_token=by_token,
        by_server=of_server is not None,
        info=of_server.info if of_server is not None else b"",
    )


def _read_room_token(talk: "Talk", token: str, room: str) -> Credentials:
    try:
        return talk.access.subscribe(token, talk.member.user, room)
    except TokenError as error:
        match error.fault:
            case TokenFault.EXPIRED:
                raise RefusedError(TOKEN_EXPIRED) from error
            case TokenFault.FOREIGN:
                raise
        raise RefusedError(PERMISSION_DENIED.because(str(error))) from error


def _answer_subscribe(
    talk: "Talk",
    number: int,
    room: str,
    body: requests.Subscribe,
    ends_at: float | None,
    allowed: Allowed,
    answer: Answer,
) -> None:
    lifetime = talk.tenure.lifetime(ends_at)
    talk.answer(number, b"subscribe", partial(replies.encode_subscribed, body, lifetime, allowed.data), answer)
    if isinstance(answer, Subscribed):
        talk.tenure.begin(room, ends_at, allowed.ends_at)


def unsubscribe(talk: "Talk", number: int, body: requests.Channel) -> Command:
    """Leave a room."""
    room = room_of(body.channel)
    return Unsubscribe(talk.subscriber, room, partial(_answer_unsubscribe, talk, number, room))


def _answer_unsubscribe(talk: "Talk", number: int, room: str, answer: Answer) -> None:
    talk.tenure.end(room)
    talk.by_server -= {room}
    talk.answer(number, b"unsubscribe", replies.encode_nothing, answer)


# -- what is said, and what was


def publish(talk: "Talk", number: int, body: requests.Publish) -> Command | Ask:
    """Say something in a room."""
    room, key = room_of(body.channel), body.idempotency_key or ""
    if not body.data:
        raise RefusedError(BAD_REQUEST.because("data is missing"))
    if len(key) > KEY_CHARACTERS_MAX:
        raise RefusedError(BAD_REQUEST.because(f"idempotency_key is over {KEY_CHARACTERS_MAX} characters"))
    data = requests.compact(body.data)
    if fault := requests.fault_of(data, talk.settings.message_depth_max):
        raise RefusedError(BAD_REQUEST.because(fault))
    reply = partial(talk.answer, number, b"publish", replies.encode_published)
    command = Publish(room, data, Kind.JSON, talk.member, key, talk.subscriber, reply)
    if not talk.asks("publish", room):
        return command
    question = _question(talk, "publish", room, data)
    return Ask(question, partial(_after, talk, number, partial(_let_through, command)))


def _let_through(command: Publish, allowed: Allowed) -> Command:
    return msgspec.structs.replace(command, data=allowed.data or command.data, keep=allowed.keep)


def presence(talk: "Talk", number: int, body: requests.Channel) -> Command:
    """Ask who is in a room."""
    reply = partial(talk.answer, number, b"presence", replies.encode_presence)
    return ReadPresence(talk.subscriber, room_of(body.channel), reply)


def presence_stats(talk: "Talk", number: int, body: requests.Channel) -> Command:
    """Ask how many are in a room."""
    reply = partial(talk.answer, number, b"presence_stats", replies.encode_presence_stats)
    return ReadPresence(talk.subscriber, room_of(body.channel), reply)


def history(talk: "Talk", number: int, body: requests.History) -> Command:
    """Read what was said in a room."""
    room, since = room_of(body.channel), None
    if body.since is not None:
        since = Position(body.since.epoch or "", body.since.offset or 0)
        if body.reverse and not since.offset:
            raise RefusedError(BAD_REQUEST.because("nothing is before offset 0"))
    reply = partial(talk.answer, number, b"history", replies.encode_past)
    return ReadHistory(talk.subscriber, room, reply, body.limit or 0, since, bool(body.reverse))


# -- tokens


def refresh(talk: "Talk", number: int, body: requests.Refresh) -> Command:
    """Bring a new token for the connection."""
    if not body.token:
        raise FatalError(End.BAD_REQUEST, "refresh without a token")
    try:
        who = talk.access.connect(body.token)
    except TokenError as error:
        if error.fault is not TokenFault.EXPIRED:
            raise
        raise RefusedError(STILL_EXPIRED) from error
    if who.user != talk.member.user:
        raise FatalError(End.INVALID_TOKEN, "the new token is for another user")
    said = talk.by_back_end or Allowed()  # has the last word
    ends_at = sooner(who.ends_at, said.ends_at)
    talk.tenure.ends_at = ends_at
    if who.info and not said.info:
        talk.introduce(who.user, who.info)
    result = {"client": talk.member.client, "version": __version__, **talk.tenure.lifetime(ends_at)}
    return Tell(talk.subscriber, lambda: talk.say(number, b"refresh", msgspec.json.encode(result)))


def sub_refresh(talk: "Talk", number: int, body: requests.Refresh) -> Command:
    """Bring a new token for a room."""
    room = room_of(body.channel)
    if not body.token:
        raise FatalError(End.BAD_REQUEST, "sub_refresh without a token")
    try:
        ends_at = _read_room_token(talk, body.token, room).ends_at
    except RefusedError as refused:
        if refused.error is TOKEN_EXPIRED:
            raise RefusedError(STILL_EXPIRED) from refused
        raise
    if room not in talk.tenure.rooms:
        raise RefusedError(PERMISSION_DENIED.because("there is no subscription to it that expires"))
    ends_at = talk.tenure.bounded(room, ends_at)
    talk.tenure.set_room(room, ends_at)
    content = msgspec.json.encode(talk.tenure.lifetime(ends_at))
    return Tell(talk.subscriber, lambda: talk.say(number, b"sub_refresh", content))


# -- what there isn't


def not_available(talk: "Talk", number: int, body: object) -> Command:
    """Answer what the protocol knows and hubbub doesn't offer."""
    raise RefusedError(NOT_AVAILABLE)


def send(talk: "Talk", number: int, body: object) -> Command:
    """End the connection: there is no reply that could say that nobody listens."""
    raise FatalError(End.NOT_AVAILABLE, "send: nothing here listens to it")


# -- what the back end says


def _question(talk: "Talk", what: Asked, room: str, data: bytes, user: str = "") -> Question:
    return Question(what, talk.member.client, user or talk.member.user, CentrifugoDialect.name, room, data)


def _after(talk: "Talk", number: int, go_on: Callable[[Allowed], Command], verdict: Verdict) -> Command:
    """Return what comes of the back end's verdict."""
    new = not talk.is_known
    try:
        match verdict:
            case Allowed():
                return go_on(verdict)
            case Dismissed(code, reason):
                return talk.dismissed(Disconnect(code, reason))
            case Denied(code, message, temporary):
                error = Error(code, message, temporary)
            case _:
                if new:
                    raise FatalError(End.UNANSWERED, Refusal.UNANSWERED.value)
                error = INTERNAL.because(Refusal.UNANSWERED.value)
    except FatalError as fatal:
        return talk.over(fatal.end, fatal.detail)
    if new:
        talk.refused()
    return talk.refuse(number, error)


def _nobody(answer: Answer) -> None:
    """Take the answer to what is asked as a part of something else."""


METHODS: dict[str, Callable[..., Command | Ask]] = {
    "connect": connect,
    "subscribe": subscribe,
    "unsubscribe": unsubscribe,
    "publish": publish,
    "presence": presence,
    "presence_stats": presence_stats,
    "history": history,
    "ping": not_available,
    "send": send,
    "rpc": not_available,
    "refresh": refresh,
    "sub_refresh": sub_refresh,
}
"""What each method becomes, in the order in which the first one that is given counts."""
