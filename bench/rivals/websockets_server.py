"""websockets on uvloop. The shape is that of "Broadcasting" in its documentation, with `broadcast()`, which it advises.

(websockets.readthedocs.io/en/stable/topics/broadcast.html; uvloop as its own README says: `uvloop.run`.)
Compression is off, and so are pings, which would be frames nobody counts.

    python websockets_server.py PORT
"""

# mypy: disable-error-code="import-not-found,import-untyped,unused-ignore"
from __future__ import annotations

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

clients: set[ServerConnection] = set()


async def handler(connection: ServerConnection) -> None:
    """One connection: what it says goes to all."""
    clients.add(connection)
    try:
        async for message in connection:
            broadcast(clients, message)
    finally:
        clients.remove(connection)


async def main(port: int) -> None:
    """Serve until killed."""
    async with serve(handler, "127.0.0.1", port, compression=None, ping_interval=None):
        print(f"listening on port {port}", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
