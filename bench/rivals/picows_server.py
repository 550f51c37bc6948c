"""picows on uvloop. The shape is that of the echo server in its README (github.com/tarasko/picows), sending to all.

`send()` is called for each transport, as picows has no broadcast. It compresses and pings nothing by default.

    python picows_server.py PORT
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc"
from __future__ import annotations

import sys

import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

room: set[WSTransport] = set()


class Member(WSListener):
    """One connection: what it says goes to all."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        room.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        message = frame.get_payload_as_bytes()
        for one in room:
            one.send(frame.msg_type, message)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        room.discard(transport)


async def main(port: int) -> None:
    """Serve until killed."""

    def listener_factory(_request: WSUpgradeRequest) -> WSListener:
        return Member()

    server = await ws_create_server(listener_factory, "127.0.0.1", port)
    print(f"listening on port {port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
