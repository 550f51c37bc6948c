"""What clients may send: types, and one decoder. Members that aren't here are ignored; null is as good as absent."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

Text = str | None
Flag = bool | None
Unsigned32 = Annotated[int, Meta(ge=0, le=2**32 - 1)] | None
Epoch = Annotated[str, Meta(max_length=64)] | None
Unsigned64 = Annotated[int, Meta(ge=0)] | None
Signed32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None

NO_JSON = msgspec.Raw()


class Connect(msgspec.Struct):
    """Introduce oneself: the first command."""

    token: Text = None
    data: msgspec.Raw = NO_JSON
    name: Annotated[str, Meta(max_length=16)] | None = None
    version: Annotated[str, Meta(max_length=64)] | None = None
    subs: "dict[str, Subscribe] | None" = None


class Subscribe(msgspec.Struct):
    """Join a room; with `recover`, from (epoch, offset) on."""

    channel: Text = None
    token: Text = None
    data: msgspec.Raw = NO_JSON
    recover: Flag = None
    epoch: Epoch = None
    offset: Unsigned64 = None
    positioned: Flag = None
    recoverable: Flag = None
    join_leave: Flag = None
    flag: Unsigned64 = None


class Channel(msgspec.Struct):
    """What needs no more than a room: unsubscribe, presence, presence_stats."""

    channel: Text = None


class Publish(msgspec.Struct):
    """Say something in a room. The key is hubbub's addition: a retry with it isn't a second publication."""

    channel: Text = None
    data: msgspec.Raw = NO_JSON
    idempotency_key: Text = None


class StreamPosition(msgspec.Struct):
    """A place in a room's history."""

    offset: Unsigned64 = None
    epoch: Epoch = None


class History(msgspec.Struct):
    """Read a room's history."""

    channel: Text = None
    limit: Signed32 = None
    since: StreamPosition | None = None
    reverse: Flag = None


class Refresh(msgspec.Struct):
    """Bring a new token: the connection's, or, with a channel, a subscription's."""

    channel: Text = None
    token: Text = None


class Anything(msgspec.Struct):
    """What is answered without a look at its members."""


class Request(msgspec.Struct):
    """One command: the first member that isn't null is the one that counts. None of them, and no id: a pong."""

    id: Unsigned32 = None
    connect: Connect | None = None
    subscribe: Subscribe | None = None
    unsubscribe: Channel | None = None
    publish: Publish | None = None
    presence: Channel | None = None
    presence_stats: Channel | None = None
    history: History | None = None
    ping: Anything | None = None
    send: Anything | None = None
    rpc: Anything | None = None
    refresh: Refresh | None = None
    sub_refresh: Refresh | None = None


_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
DIGITS_MAX = 4_300
"""Readers in Python refuse longer integers (CVE-2020-10735), and their SDK then leaves for good."""

_DIGITS = re.compile(rb"[0-9]{%d}" % (DIGITS_MAX + 1))
_DIGIT = frozenset(b"0123456789")
_BRACKETS = re.compile(rb"[][{}]")

METHODS = Request.__struct_fields__[1:]


class MalformedRequestError(ValueError):
    """Not a command; the text says what is wrong."""


_decoder = msgspec.json.Decoder(Request)


def decode(line: bytes) -> Request:
    """Return the command that a line holds.

    Raises:
        MalformedRequestError: the line isn't a JSON object as described above.
    """
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequestError(str(error)) from error
    except RecursionError as error:
        raise MalformedRequestError("JSON is nested too deeply") from error


def lines_of(frame: bytes, lines_max: int) -> list[bytes]:
    """Return the lines of a frame that hold anything.

    Raises:
        MalformedRequestError: there are none, or too many.
    """
    is_long = frame.count(b"\n") > lines_max  # then it isn't even taken apart: it may be a megabyte of nothing
    lines = [] if is_long else [line for line in frame.split(b"\n") if line.strip()]
    if is_long or len(lines) > lines_max:
        raise MalformedRequestError(f"over message_commands_max = {lines_max} commands")
    if not lines:
        raise MalformedRequestError("a frame without a command")
    return lines


def fault_of(data: bytes, depth_max: int) -> str:
    """Return why JSON isn't fit to be published to readers of all kinds; "" if it is."""
    if is_deeper(data, depth_max):
        return f"data is nested deeper than message_depth_max = {depth_max}"
    if has_longer_number(data):
        return f"data has a number of over {DIGITS_MAX} digits"
    return ""


def is_deeper(data: bytes, depth_max: int) -> bool:
    """Return whether more arrays and objects than that are in each other; `data` is JSON."""
    if data.count(b"[") + data.count(b"{") <= depth_max:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > depth_max:
            return True
    return False


def has_longer_number(data: bytes) -> bool:
    """Return whether a number in `data`, which is JSON, has more than `DIGITS_MAX` digits in a row."""
    # Among so many in a row there is one at a multiple of that: a look at a few bytes suffices nearly always.
    if not any(digit in _DIGIT for digit in data[DIGITS_MAX::DIGITS_MAX]):
        return False
    return _DIGITS.search(_STRINGS.sub(b"", data)) is not None


def compact(value: msgspec.Raw) -> bytes:
    """Return a JSON value on one line, without insignificant white space; `decode` has checked that it is one.

    Raises:
        MalformedRequestError: it is nested so deeply that it can't even be written anew.
    """
    data = bytes(value)
    if data.startswith(b'"'):
        return data  # whatever is in a string is significant
    try:
        return msgspec.json.format(data, indent=-1) if b" " in data or b"\t" in data or b"\r" in data else data
    except RecursionError as error:
        raise MalformedRequestError("JSON is nested too deeply") from error
