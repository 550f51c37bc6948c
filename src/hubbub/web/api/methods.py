"""What a back end may do: the table of methods, and what each of them does.

Rules:
1. Each gets its errand and its request, and returns its result as JSON; what can't be done is a `RefusedError`.
2. A request is looked at completely before the hub is asked for anything.
3. The server itself asks: permissions of rooms, which are for clients, don't concern it; namespaces and limits do.
4. What concerns a user concerns all its connections; where there are none, that is a success, too.
"""

import base64
import binascii
import fnmatch
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import trio

from hubbub import __version__
from hubbub.auth.api_keys import Scope
from hubbub.connection.connection import Connection
from hubbub.dialects.centrifugo import replies
from hubbub.dialects.centrifugo.codes import BAD_REQUEST, NOT_AVAILABLE, PERMISSION_DENIED, RefusedError
from hubbub.dialects.centrifugo.methods import KEY_CHARACTERS_MAX
from hubbub.dialects.centrifugo.requests import fault_of
from hubbub.model.command import Publish, ReadHistory, ReadPresence, Refused, RemoveHistory, Unsubscribe
from hubbub.model.end import Disconnect, End
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name
from hubbub.model.publication import Kind, Position
from hubbub.web.api import requests, results
from hubbub.web.api.errand import Errand, Question, error_of, telling

NOTHING = b"{}"
FORCE_DISCONNECT = Disconnect(3503, "force disconnect")
REASON_BYTES_MAX = 123
"""What a Close frame has room for besides its code."""
ROOMS_PER_CHECKPOINT = 1_000
"""How many rooms are looked at before other tasks may run: some 0.5 ms."""


class Method(msgspec.Struct, frozen=True):
    """One method.

    Attributes:
        request: the type of its body; its docstring is the method's description.
        result: the type of its result.
        scope: what its key must be good for.
        run: carries it out.
    """

    request: type[requests.Request]
    result: type[msgspec.Struct]
    scope: Scope
    run: Callable[[Errand, Any], Awaitable[bytes]]


async def carry_out(errand: Errand, name: str, request: requests.Request) -> bytes:
    """Carry out a request, and return its result as JSON.

    Raises:
        RefusedError: it can't be.
    """
    method = METHODS[name]
    if not errand.key.may(method.scope):
        allowed = ", ".join(name for name, method in METHODS.items() if errand.key.may(method.scope))
        raise RefusedError(PERMISSION_DENIED.because(f"the key {errand.key.name} may {allowed}"))
    for member in request.unsupported:
        if getattr(request, member):
            raise RefusedError(NOT_AVAILABLE.because(member))
    return await method.run(errand, request)


# -- rooms


async def publish(errand: Errand, request: requests.Publish) -> bytes:
    """Say something in a room."""
    answer = await errand.ask(_publication(errand, request)(_room(request.channel)))
    return replies.encode_published(answer)


async def broadcast(errand: Errand, request: requests.Broadcast) -> bytes:
    """Say the same in several rooms: in each as if it were the only one."""
    _check_count(errand, "channels", len(request.channels))
    publication = _publication(errand, request)
    asked: dict[int, Question] = {}
    responses = [b""] * len(request.channels)
    for index, room in enumerate(request.channels):
        try:
            asked[index] = publication(_room(room))
        except RefusedError as refused:
            responses[index] = encode_error(refused)
    answers = await errand.ask_all(list(asked.values()))
    for index, answer in zip(asked, answers, strict=True):
        if isinstance(answer, Refused):
            responses[index] = encode_error(RefusedError(error_of(answer)))
        else:
            responses[index] = b'{"result":%s}' % replies.encode_published(answer)
    return b'{"responses":[%s]}' % b",".join(responses)


async def presence(errand: Errand, request: requests.Presence) -> bytes:
    """Say who is in a room."""
    return replies.encode_presence(await errand.ask(partial(ReadPresence, None, _room(request.channel))))


async def presence_stats(errand: Errand, request: requests.PresenceStats) -> bytes:
    """Say how many are in a room."""
    return replies.encode_presence_stats(await errand.ask(partial(ReadPresence, None, _room(request.channel))))


async def history(errand: Errand, request: requests.History) -> bytes:
    """Read what is kept of a room."""
    room, since, limit, reverse = _room(request.channel), None, int(request.limit or 0), bool(request.reverse)
    if request.since is not None:
        since = _position(request.since)
        if reverse and not since.offset:
            raise RefusedError(BAD_REQUEST.because("nothing is before offset 0"))
    return replies.encode_past(await errand.ask(lambda reply: ReadHistory(None, room, reply, limit, since, reverse)))


async def history_remove(errand: Errand, request: requests.HistoryRemove) -> bytes:
    """Let go of what is kept of a room."""
    await errand.ask(partial(RemoveHistory, None, _room(request.channel)))
    return NOTHING


async def channels(errand: Errand, request: requests.Channels) -> bytes:
    """List the rooms that anyone is in, as they are when it is their turn to be looked at."""
    matches = re.compile(fnmatch.translate(request.pattern or "*")).match
    rooms, found = errand.means.rooms, {}
    names = rooms.names()
    for start in range(0, len(names), ROOMS_PER_CHECKPOINT):
        for name in names[start : start + ROOMS_PER_CHECKPOINT]:
            if matches(name) and (occupancy := rooms.occupancy(name)):
                found[name] = results.Room(occupancy)
        await trio.lowlevel.checkpoint()
    return msgspec.json.encode(results.ChannelsResult(found))


# -- users


async def subscribe(errand: Errand, request: requests.Subscribe) -> bytes:
    """Put a user's connections into a room."""
    room, ends_at = _room(request.channel), errand.on_our_clock(request.expire_at)
    info, data = _json(errand, "info", request.info), _json(errand, "data", request.data)
    since = None if request.recover_since is None else _position(request.recover_since)
    options: Any = {"info": info, "data": data, "since": since, "ends_at": ends_at}
    await errand.tell_all(
        [(one, partial(one.conversation.admit, room, **options)) for one in _connections(errand, request)]
    )
    return NOTHING


async def unsubscribe(errand: Errand, request: requests.Unsubscribe) -> bytes:
    """Take a user's connections out of a room."""
    room = _room(request.channel)
    await errand.tell_all(
        [(one, partial(Unsubscribe, one, room, by_server=True)) for one in _connections(errand, request)]
    )
    return NOTHING


async def disconnect(errand: Errand, request: requests.Disconnect) -> bytes:
    """End a user's connections."""
    farewell, spared = _farewell(request.disconnect), set(request.whitelist or ())
    leaving = [one for one in _connections(errand, request) if one.member.client not in spared]
    await errand.tell_all([(one, telling(one, partial(one.dismiss, farewell), ends=True)) for one in leaving])
    return NOTHING


async def refresh(errand: Errand, request: requests.Refresh) -> bytes:
    """Say how long a user's connections last."""
    info, ends_at = _json(errand, "info", request.info), errand.on_our_clock(request.expire_at)
    expired = request.expired or (ends_at is not None and ends_at <= trio.current_time())
    await errand.tell_all(
        [
            (one, telling(one, partial(one.end, End.EXPIRED), ends=True))
            if expired
            else (one, telling(one, partial(one.conversation.extend, ends_at, info)))
            for one in _connections(errand, request)
        ]
    )
    return NOTHING


# -- the server


async def info(errand: Errand, request: requests.Info) -> bytes:
    """Say how the server is."""
    means = errand.means
    node = results.Node(
        uid=means.uid,
        name=means.name,
        version=__version__,
        num_clients=len(means.connections),
        num_users=means.connections.users,
        num_channels=len(means.rooms),
        num_subs=means.rooms.subscriptions,
        uptime=int(trio.current_time() - means.started_at),
    )
    return msgspec.json.encode(results.InfoResult([node]))


async def batch(errand: Errand, request: requests.Batch) -> bytes:
    """Carry out commands one after the other; one that can't be carried out doesn't keep the next from it."""
    _check_count(errand, "commands", len(request.commands))
    done: list[bytes] = []
    for command in request.commands:
        name, body = command.only()
        try:
            done.append(b'{"%s":%s}' % (name.encode(), await carry_out(errand, name, body)))
        except RefusedError as refused:
            done.append(encode_error(refused))
    return b'{"replies":[%s]}' % b",".join(done)


METHODS = {
    "publish": Method(requests.Publish, results.Published, Scope.PUBLISH, publish),
    "broadcast": Method(requests.Broadcast, results.BroadcastResult, Scope.PUBLISH, broadcast),
    "subscribe": Method(requests.Subscribe, results.Nothing, Scope.MANAGE, subscribe),
    "unsubscribe": Method(requests.Unsubscribe, results.Nothing, Scope.MANAGE, unsubscribe),
    "disconnect": Method(requests.Disconnect, results.Nothing, Scope.MANAGE, disconnect),
    "refresh": Method(requests.Refresh, results.Nothing, Scope.MANAGE, refresh),
    "presence": Method(requests.Presence, results.PresenceResult, Scope.READ, presence),
    "presence_stats": Method(requests.PresenceStats, results.PresenceStatsResult, Scope.READ, presence_stats),
    "history": Method(requests.History, results.HistoryResult, Scope.READ, history),
    "history_remove": Method(requests.HistoryRemove, results.Nothing, Scope.MANAGE, history_remove),
    "channels": Method(requests.Channels, results.ChannelsResult, Scope.READ, channels),
    "info": Method(requests.Info, results.InfoResult, Scope.READ, info),
    "batch": Method(requests.Batch, results.BatchResult, Scope.ANY, batch),
}


def encode_error(refused: RefusedError) -> bytes:
    """Return an answer that is an error."""
    return b'{"error":%s}' % msgspec.json.encode(refused.error)


# -- parts of requests


def _room(name: str) -> str:
    try:
        return check_room_name(name)
    except RoomNameError as error:
        raise RefusedError(BAD_REQUEST.because(str(error))) from error


def _check_count(errand: Errand, name: str, count: int) -> None:
    most = errand.means.settings.message_commands_max
    if count > most:
        raise RefusedError(BAD_REQUEST.because(f"{name}: got {count}, allowed: message_commands_max = {most}"))


def _publication(errand: Errand, request: requests.Publication) -> Callable[[str], Question]:
    """Return what makes the publication for a room."""
    key, tags, keep = request.idempotency_key or "", request.tags or None, not request.skip_history
    if len(key) > KEY_CHARACTERS_MAX:
        raise RefusedError(BAD_REQUEST.because(f"idempotency_key is over {KEY_CHARACTERS_MAX} characters"))
    if request.b64data is None:
        if not request.data:
            raise RefusedError(BAD_REQUEST.because("data is missing; allowed: data, or b64data"))
        data, kind = _json(errand, "data", request.data), Kind.JSON
    else:
        if bytes(request.data) not in (b"", b"null"):
            raise RefusedError(BAD_REQUEST.because("got data and b64data, allowed: one of them"))
        data, kind = _from_base64(request.b64data), Kind.BINARY
    size = len(data) + sum(len(name.encode()) + len(value.encode()) for name, value in (tags or {}).items())
    _check_size(errand, "data, with its tags,", size)
    return lambda room: lambda reply: Publish(room, data, kind, None, key, None, reply, tags=tags, keep=keep)


def _json(errand: Errand, name: str, value: msgspec.Raw) -> bytes:
    """Return JSON on one line, b"" for none; `api` has checked that it is JSON."""
    if not value:
        return b""
    data = msgspec.json.format(bytes(value), indent=-1)
    _check_size(errand, name, len(data))
    if fault := fault_of(data, errand.means.settings.message_depth_max):
        raise RefusedError(BAD_REQUEST.because(fault))
    return data


def _check_size(errand: Errand, name: str, size: int) -> None:
    most = errand.means.settings.message_bytes_max
    if size > most:
        raise RefusedError(BAD_REQUEST.because(f"{name} is over message_bytes_max = {most} bytes"))


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(BAD_REQUEST.because("b64data: allowed: Base64")) from error


def _position(given: requests.StreamPosition) -> Position:
    return Position(given.epoch or "", int(given.offset or 0))


def _connections(
    errand: Errand, request: requests.Subscribe | requests.Unsubscribe | requests.Disconnect | requests.Refresh
) -> list[Connection]:
    if not request.user and not request.client:
        raise RefusedError(BAD_REQUEST.because('user is empty; allowed for one stranger, with "client"'))
    return errand.connections_of(request.user, request.client or None)


def _farewell(given: requests.Farewell | None) -> Disconnect:
    code = int(given.code) if given is not None and given.code else FORCE_DISCONNECT.code
    reason = (given.reason if given is not None else "") or ""
    if not 3000 <= code <= 4999:
        raise RefusedError(BAD_REQUEST.because(f"disconnect.code: got {code}, allowed: 3000 to 4999"))
    if len(reason.encode()) > REASON_BYTES_MAX:
        raise RefusedError(BAD_REQUEST.because(f"disconnect.reason is over {REASON_BYTES_MAX} bytes"))
    return Disconnect(code, reason or (FORCE_DISCONNECT.reason if code == FORCE_DISCONNECT.code else ""))
