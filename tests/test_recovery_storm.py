"""A thousand clients of one room drop at one moment, come back at one moment, and recover what they have missed.

They are plain sockets, read by one loop, so that what is measured is the daemon's time more than theirs. Each says all
it has to say, handshake, connect and subscribe, in one piece.
"""

import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence

import pytest

from hubbub.core.frames import TEXT
from peers import client_frame, handshake
from servers import Daemon, open_daemon
from test_bounded_memory import open_sockets

pytestmark = pytest.mark.alone  # it measures time, with a thousand sockets

CLIENTS = 1000
MISSED = 100
LAST_SECONDS_MAX = 10.0
SLOW = 'hubbub_connections_ended_total{reason="slow_consumer"}'


def said(*commands: dict[str, object]) -> bytes:
    """Commands in one frame."""
    return client_frame(TEXT, b"\n".join(json.dumps(command).encode() for command in commands), mask=bytes(4))


def come(
    connections: Sequence[socket.socket], subscribe: dict[str, object], room: str = "storm"
) -> list[dict[str, object]]:
    """Let them all connect and subscribe at one moment; return the replies to subscribe, as they come in."""
    request = handshake("/connection/websocket") + said(
        {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": room, **subscribe}}
    )
    heard = {connection: bytearray() for connection in connections}
    replies: list[dict[str, object]] = []
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.sendall(request)
            selector.register(connection, selectors.EVENT_READ, connection)
        while len(replies) < len(connections):
            ready = selector.select(timeout=20)
            assert ready, f"{len(replies)} of {len(connections)} have been answered"
            for key, _ in ready:
                connection = key.data
                data = connection.recv(1 << 18)
                assert data, f"ended by the server: {bytes(heard[connection][-200:])!r}"
                heard[connection] += data
                if reply := reply_in(bytes(heard[connection])):
                    replies.append(reply)
                    selector.unregister(connection)
    return replies


def reply_in(data: bytes, number: int = 2) -> dict[str, object] | None:
    """Return the reply to the subscribe of that number, once it is complete: it is the last thing that comes."""
    found = re.search(rb'\{"id":%d,.*\}\}$' % number, data)
    if found is None:
        assert b'"error"' not in data, data
        return None
    reply: dict[str, object] = json.loads(found[0])["subscribe"]
    return reply


def publish(daemon: Daemon, count: int) -> list[str]:
    """Publish so many from a plain client; return what."""
    texts = [f"number {number} " + 80 * "x" for number in range(count)]
    with open_sockets(daemon.port, 1) as (connection,):
        connection.sendall(handshake("/chat/storm") + b"".join(client_frame(TEXT, text.encode()) for text in texts))
        heard = b""
        while texts[-1].encode() not in heard:
            heard += connection.recv(1 << 16)
    return texts


def test_a_thousand_return_at_one_moment() -> None:
    with open_daemon(log_level="warning") as daemon:
        with open_sockets(daemon.port, CLIENTS) as connections:
            (first, *_) = replies = come(connections, {})
            assert all(reply == first for reply in replies)
        while daemon.metrics()["hubbub_connections"]:
            time.sleep(0.05)
        texts = publish(daemon, MISSED)
        with open_sockets(daemon.port, CLIENTS) as connections:
            begin = time.monotonic()
            replies = come(connections, {"recover": True, "epoch": first["epoch"], "offset": first["offset"]})
            seconds = time.monotonic() - begin
            metrics = daemon.metrics()
        while daemon.metrics()["hubbub_connections"]:  # a drain would take a second for those that it still sees
            time.sleep(0.05)
    expected = [(number, text) for number, text in enumerate(texts, 1)]
    for reply in replies:
        assert reply["recovered"] is True
        assert reply["was_recovering"] is True
        publications = reply["publications"]
        assert isinstance(publications, list)
        assert [(publication["offset"], publication["data"]) for publication in publications] == expected
    assert metrics[SLOW] == 0
    assert metrics["hubbub_connections"] == CLIENTS
    sys.stdout.write(f"the last of {CLIENTS} had recovered {MISSED} publications after {seconds:.2f} s\n")
    assert seconds <= LAST_SECONDS_MAX
