"""Which upgrade requests are WebSocket handshakes that we accept, and what trio-websocket is told of them.

RFC 6455 section 4.2.1, and the room's name and options in the request's target. Each check has its own answer,
so that who gets it wrong is told what. What passes is written anew: not a byte of the client's goes on but its
key, and that one has been checked.
"""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name
from hubbub.web.http import HttpError, Request

PLAIN_PATH = "/chat"
STRUCTURED_PATH = "/connection/websocket"
SUBPROTOCOL = "centrifuge-json"
DEFAULT_ROOM = "chat"
HISTORY_MAX = 1000
"""The most that can be asked for; how much there is, the room's history decides."""
_KEY_BYTES = 16
_HEX = frozenset("0123456789abcdefABCDEF")


def check_handshake(request: Request, subprotocol: str | None) -> bytes:
    """Return the head to give to trio-websocket, offering the subprotocol.

    Raises:
        HttpError: 426 if this isn't a WebSocket handshake of version 13, 400 if it is a malformed one.
    """
    if "websocket" not in request.tokens("upgrade") or "upgrade" not in request.tokens("connection"):
        upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
        raise HttpError(426, "this address speaks WebSocket; connect with a WebSocket client", upgrade)
    if request.version != "1.1":
        raise HttpError(400, f"a WebSocket handshake needs HTTP/1.1, not {request.version}", close=True)
    versions = request.fields("sec-websocket-version")
    if versions != ["13"]:
        got = ", ".join(versions)[:80]
        raise HttpError(426, f"Sec-WebSocket-Version: got {got!a}, allowed: 13", (("Sec-WebSocket-Version", "13"),))
    if request.fields("content-length") not in ([], ["0"]) or request.fields("transfer-encoding"):
        raise HttpError(400, "a WebSocket handshake has no body", close=True)
    keys = request.fields("sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise HttpError(400, f"Sec-WebSocket-Key: allowed: once, {_KEY_BYTES} bytes in Base64")
    offer = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    return (
        "GET / HTTP/1.1\r\nHost: hubbub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {keys[0]}\r\n{offer}\r\n"
    ).encode("ascii")


def choose_subprotocol(request: Request) -> str | None:
    """Return the structured dialect's subprotocol if it is offered, None if none is.

    Raises:
        HttpError: 400, there are offers, and only others.
    """
    offered = request.tokens("sec-websocket-protocol")
    if offered and SUBPROTOCOL not in offered:
        got = ", ".join(offered)[:80]
        raise HttpError(400, f"Sec-WebSocket-Protocol: got {got!a}, allowed: {SUBPROTOCOL}, or none")
    return SUBPROTOCOL if offered else None


def read_token(query: str) -> str:
    """Return the `token` option of a query; "" if it isn't there."""
    values = [value for key, _, value in (part.partition("=") for part in query.split("&")) if key == "token"]
    return values[0] if len(values) == 1 else ".".join(values)  # two are none: what doesn't fit is refused


def read_native_pings(query: str) -> bool:
    """Return whether a structured client asks for pings of RFC 6455 instead of its protocol's own."""
    return "cf_ws_frame_ping_pong=true" in query.split("&")


def is_plain(path: str) -> bool:
    """Return whether the path is one of the plain dialect."""
    return path == PLAIN_PATH or path.startswith(PLAIN_PATH + "/")


def read_room(path: str) -> str:
    """Return the room that a path under `/chat` names.

    Raises:
        HttpError: 400, the name isn't allowed.
    """
    if path == PLAIN_PATH:
        return DEFAULT_ROOM
    encoded = path.removeprefix(PLAIN_PATH + "/")
    if "/" in encoded:
        raise HttpError(400, "room name: write a slash in it as %2F")
    try:
        return check_room_name(_percent_decode(encoded))
    except (RoomNameError, ValueError) as error:
        detail = str(error) if isinstance(error, RoomNameError) else "room name isn't percent-encoded UTF-8"
        raise HttpError(400, detail) from error


def read_history(query: str) -> int:
    """Return the `history` option of a query, 0 if it isn't there; other options are nobody's.

    Raises:
        HttpError: 400, not a number from 0 to 1000, or given twice.
    """
    values = [value for key, _, value in (part.partition("=") for part in query.split("&")) if key == "history"]
    if not values:
        return 0
    if len(values) > 1 or not re.fullmatch("[0-9]{1,9}", values[0]) or int(values[0]) > HISTORY_MAX:
        raise HttpError(400, f"history: got {', '.join(values)[:80]!a}, allowed: one number from 0 to {HISTORY_MAX}")
    return int(values[0])


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def _percent_decode(text: str) -> str:
    """Decode strictly: a stray percent sign, a raw non-ASCII byte or a malformed sequence is an error."""
    for part in text.split("%")[1:]:
        if len(part) < 2 or not _HEX.issuperset(part[:2]):
            raise ValueError("stray percent sign")
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8")
