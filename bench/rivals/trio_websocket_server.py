"""trio-websocket as it comes. The shape is that of its server example, with a loop of sends instead of an echo.

(trio-websocket.readthedocs.io, "Getting started", "Server example".) It neither compresses nor pings by itself.

Each send may let another task go on. That all see one order is owed to the lock that each connection has for its sends,
which is fair: loops that begin in turn go on in turn.

    python trio_websocket_server.py PORT
"""

from __future__ import annotations

import contextlib
import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

room: set[WebSocketConnection] = set()


async def handler(request: WebSocketRequest) -> None:
    """One connection: what it says goes to all."""
    connection = await request.accept()
    room.add(connection)
    try:
        while True:
            await broadcast(await connection.get_message())
    except ConnectionClosed:
        pass
    finally:
        room.remove(connection)


async def broadcast(message: str | bytes) -> None:
    """Send to all, one after the other."""
    for one in list(room):
        with contextlib.suppress(ConnectionClosed):
            await one.send_message(message)


async def main(port: int) -> None:
    """Serve until killed."""
    print(f"about to listen on port {port}", flush=True)
    await serve_websocket(handler, "127.0.0.1", port, ssl_context=None)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
