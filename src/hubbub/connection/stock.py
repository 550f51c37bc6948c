"""What trio-websocket keeps for longer than it needs it, by way of wsproto: let go of here.

Looks into others' private parts, for some 3.4 KB less per idle connection, and for nothing left to the garbage
collector after its end. Where they aren't as they were (wsproto 1.2, 1.3), nothing is done, and `tests/test_memory.py`
fails.
"""

import contextlib
from collections import OrderedDict, deque

import trio
from trio_websocket import WebSocketConnection
from wsproto.connection import ConnectionType
from wsproto.events import Event
from wsproto.handshake import H11Handshake

_SPENT = H11Handshake(ConnectionType.SERVER)
"""Has nothing more to say: shared by all whose own is over."""
_OPENED = trio.Event()
_OPENED.set()
_NO_PINGS: OrderedDict[bytes, trio.Event] = OrderedDict()
"""Nobody has trio-websocket send any: the heartbeat sends its own."""
_NO_EVENTS: deque[Event] = deque(maxlen=0)
"""Holds nothing, so that all can share it: wsproto puts nothing there but the end of a broken stream, unread."""


def forget_handshake(websocket: WebSocketConnection) -> None:
    """Let go of what only the handshake needed (with h11's, 2 KB) and what nobody uses; to be called after it."""
    with contextlib.suppress(AttributeError):
        if websocket._wsproto.connection is not None:
            websocket._wsproto.handshake = _SPENT
            if not websocket._wsproto.connection._events:
                websocket._wsproto.connection._events = _NO_EVENTS
        if websocket._open_handshake.is_set():
            websocket._open_handshake = _OPENED
        if not websocket._for_testing_peer_closed_connection.is_set():  # which is all that its name says
            websocket._for_testing_peer_closed_connection = _OPENED
        if not websocket._pings:
            websocket._pings = _NO_PINGS


def break_cycle(websocket: WebSocketConnection) -> None:
    """Close the parser, a generator that refers to itself; to be called when nobody uses the connection any more."""
    with contextlib.suppress(AttributeError):
        websocket._wsproto.connection._proto._parse_more.close()  # type: ignore[union-attr]
