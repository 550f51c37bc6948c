"""What a back end's answer to a question means: JSON, in the form of Centrifugo's HTTP proxy.

    {"result": {…}}                              it may; {} says the same
    {"error": {"code": 403, "message": "…"}}     it may not
    {"disconnect": {"code": 4001, "reason": "…"}}  it may not, and goes

Rules:
1. Members that aren't known here are overlooked; those that are known have their types. null is the same as nothing.
2. JSON for clients is held to what a client's own would be: message_bytes_max, message_depth_max. It is kept on one
   line, as where it goes a newline ends a message.
3. An answer that breaks a rule isn't one.
"""

import msgspec

from hubbub.config import Settings
from hubbub.dialects.centrifugo.requests import fault_of
from hubbub.hooks.back_end import HookError
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name
from hubbub.model.question import Allowed, Asked, Denied, Dismissed

REASON_BYTES_MAX = 123
"""What a Close has room for."""
MESSAGE_CHARACTERS_MAX = 200
USER_CHARACTERS_MAX = 255
"""Longer ones are somebody's mistake, and would be in every line of the log."""

PROTOCOL_ERRORS = range(100, 113)
OWN_ERRORS = range(400, 2000)
DISCONNECTS = range(3000, 5000)


class _Error(msgspec.Struct):
    code: int
    message: str | None = None
    temporary: bool | None = None


class _Disconnect(msgspec.Struct):
    code: int
    reason: str | None = None


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None
    disconnect: _Disconnect | None = None


class _Grant(msgspec.Struct):
    info: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


class _Subscribe(_Grant):
    expire_at: float | None = None


class _Connect(_Subscribe):
    user: str | None = None
    channels: list[str] | None = None
    subs: dict[str, _Grant | None] | None = None


class _Publish(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()
    skip_history: bool | None = None


def read_answer(what: Asked, content: bytes, settings: Settings, clocks: float) -> Allowed | Denied | Dismissed:
    """Return what the answer to that question says.

    Args:
        settings: message_bytes_max, message_depth_max.
        clocks: what the node's clock shows at the beginning of 1970.

    Raises:
        HookError: it makes no sense.
    """
    try:
        content.decode()  # msgspec passes over strings that nobody reads
        answer = msgspec.json.decode(content, type=_Answer)
        if answer.disconnect is not None:
            return _dismissed(answer.disconnect)
        if answer.error is not None:
            return _denied(answer.error)
        return _allowed(what, _compact(answer.result) or b"{}", settings, clocks)
    except msgspec.DecodeError as error:
        raise HookError(f"its answer: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise HookError("its answer isn't JSON") from error
    except RoomNameError as error:
        raise HookError(f"its answer: {error}") from error


def _dismissed(disconnect: _Disconnect) -> Dismissed:
    if disconnect.code not in DISCONNECTS:
        raise HookError("its answer: a disconnect's code; allowed: 3000 to 4999")
    reason = (disconnect.reason or "").encode()[:REASON_BYTES_MAX]
    return Dismissed(disconnect.code, reason.decode(errors="ignore"))  # a character that was cut is left out


def _denied(error: _Error) -> Denied:
    if error.code not in PROTOCOL_ERRORS and error.code not in OWN_ERRORS:
        raise HookError("its answer: an error's code; allowed: 100 to 112, 400 to 1999")
    return Denied(error.code, (error.message or "")[:MESSAGE_CHARACTERS_MAX], error.temporary or False)


def _allowed(what: Asked, result: bytes, settings: Settings, clocks: float) -> Allowed:
    if what == "publish":
        published = msgspec.json.decode(result, type=_Publish)
        return Allowed(data=_for_clients(published.data, settings), keep=not published.skip_history)
    who = msgspec.json.decode(result, type=_Connect if what == "connect" else _Subscribe)
    allowed = Allowed(
        info=_for_clients(who.info, settings),
        data=_for_clients(who.data, settings),
        ends_at=who.expire_at + clocks if who.expire_at else None,
    )
    if isinstance(who, _Connect):
        if len(who.user or "") > USER_CHARACTERS_MAX:
            raise HookError(f"its answer: a user of over {USER_CHARACTERS_MAX} characters")
        allowed = msgspec.structs.replace(allowed, user=who.user or "", rooms=_rooms(who, settings))
    return allowed


def _rooms(who: _Connect, settings: Settings) -> dict[str, msgspec.Raw]:
    rooms: dict[str, msgspec.Raw] = {}
    for room, grant in {**dict.fromkeys(who.channels or ()), **(who.subs or {})}.items():
        said = {}
        if grant is not None:
            said = {"info": _for_clients(grant.info, settings), "data": _for_clients(grant.data, settings)}
        known = {name: msgspec.Raw(value) for name, value in said.items() if value}
        rooms[check_room_name(room)] = msgspec.Raw(msgspec.json.encode(known))
    return rooms


def _compact(value: msgspec.Raw) -> bytes:
    """Return a JSON value on one line; b"" for nothing."""
    data = bytes(value)
    return b"" if data in (b"", b"null") else msgspec.json.format(data, indent=-1)


def _for_clients(value: msgspec.Raw, settings: Settings) -> bytes:
    data = _compact(value)
    if len(data) > settings.message_bytes_max:
        raise HookError(f"its answer: data or info over message_bytes_max = {settings.message_bytes_max} bytes")
    if fault := fault_of(data, settings.message_depth_max):
        raise HookError(f"its answer: {fault}")
    return data
