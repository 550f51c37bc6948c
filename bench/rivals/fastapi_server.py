"""FastAPI on uvicorn[standard], so on uvloop. The shape is that of FastAPI's documentation, the `ConnectionManager`.

(fastapi.tiangolo.com/advanced/websockets, "Handling disconnections and multiple clients".)
Compression is off, and so are pings, which would be frames nobody counts.

    python fastapi_server.py PORT
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator"
from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    """Those who are there, and a loop of sends to them."""

    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        for connection in self.active_connections:
            await connection.send_text(message)


manager = ConnectionManager()


@app.websocket("/")
async def websocket_endpoint(websocket: WebSocket) -> None:
    """One connection: what it says goes to all."""
    await manager.connect(websocket)
    try:
        while True:
            await manager.broadcast(await websocket.receive_text())
    except WebSocketDisconnect:
        manager.disconnect(websocket)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
    )
