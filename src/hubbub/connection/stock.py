"""What trio-websocket keeps for longer than it needs it, by way of wsproto: let go of here.

Two looks into others' private parts, for a tenth of an idle connection's memory, and for nothing left to the garbage
collector after its end. Where they aren't as they were (wsproto 1.2, 1.3), nothing is done, and `tests/test_memory.py`
fails.
"""

import contextlib

from trio_websocket import WebSocketConnection
from wsproto.connection import ConnectionType
from wsproto.handshake import H11Handshake

_SPENT = H11Handshake(ConnectionType.SERVER)
"""Has nothing more to say: shared by all whose own is over."""


def forget_handshake(websocket: WebSocketConnection) -> None:
    """Let go of what only the handshake needed (with h11's, 2 KB); to be called once it has been accepted."""
    with contextlib.suppress(AttributeError):
        if websocket._wsproto.connection is not None:
            websocket._wsproto.handshake = _SPENT


def break_cycle(websocket: WebSocketConnection) -> None:
    """Close the parser, a generator that refers to itself; to be called when nobody uses the connection any more."""
    with contextlib.suppress(AttributeError):
        websocket._wsproto.connection._proto._parse_more.close()  # type: ignore[union-attr]
