"""Clients that ask for a lot: what they are answered neither fills memory, nor keeps the others waiting, nor ends them.

Each of these took seconds and gigabytes once. The daemon runs with its default rates and limits.
"""

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from hubbub.core.frames import TEXT
from peers import client_frame, handshake, open_peer
from servers import Daemon, open_daemon
from structured import PATH, open_structured
from test_bounded_memory import MIB, Memory, open_sockets
from test_hostile import DEFAULTS, Bystanders, p99
from test_recovery_storm import said

pytestmark = pytest.mark.alone  # they measure time and memory

P99_SECONDS_MAX = 0.05
GREEDY_SECONDS = 1.5


async def bystanders_beside(daemon: Daemon, frames: Sequence[bytes]) -> float:
    """Send these frames on a connection of their own, reading all that comes; return the bystanders' p99 meanwhile."""
    async with open_peer(daemon.port, "/chat/quiet") as talker, open_peer(daemon.port, "/chat/quiet") as listener:
        bystanders = Bystanders(talker, listener)
        async with open_structured(daemon.port) as greedy, trio.open_nursery() as nursery:

            async def read() -> None:
                while True:
                    await greedy.peer.stream.receive_some(1 << 18)

            async def ask() -> None:
                for frame in frames:
                    await greedy.peer.stream.send_all(frame)

            nursery.start_soon(read)
            nursery.start_soon(ask)
            round_trips = await bystanders.talk(GREEDY_SECONDS)
            nursery.cancel_scope.cancel()
    return p99(round_trips)


def fill(daemon: Daemon, room: str, count: int, size: int) -> None:
    """Give a room a history."""
    with open_sockets(daemon.port, 1) as (connection,):
        text = b"x" * size
        connection.sendall(handshake(f"/chat/{room}") + count * client_frame(TEXT, text, mask=bytes(4)))
        left = count * size
        while left > 0:
            data = connection.recv(1 << 16)
            assert data
            left -= len(data)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Read, in small pieces, until that has come, and what comes with it is complete."""
    heard = bytearray()
    while mark not in heard[-300_000:] or not heard.endswith(b"}}"):
        data = connection.recv(1 << 14)
        assert data, bytes(heard[-100:])
        heard += data
    return bytes(heard)


def join(connections: Sequence[socket.socket], room: str) -> None:
    """Let them subscribe; they read no more than the reply."""
    request = said({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": room}})
    for connection in connections:
        connection.sendall(handshake(PATH) + request)
    for connection in connections:
        heard = b""
        while b'{"id":2,"subscribe":{' not in heard:
            data = connection.recv(4096)
            assert data, heard
            heard += data


async def test_nine_hundred_histories_in_one_frame() -> None:
    with open_daemon(log_level="warning", allow_history="anonymous", **DEFAULTS) as daemon:
        await trio.to_thread.run_sync(fill, daemon, "big", 100, 10_000)
        ask = said(*({"id": n, "history": {"channel": "big", "limit": -1}} for n in range(2, 902)))
        with Memory(daemon) as memory:
            late = await bystanders_beside(daemon, [ask])
    sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB; bystanders' p99: {late:.4f} s\n")
    assert memory.growth <= 32 * MIB
    assert late <= P99_SECONDS_MAX


async def test_joining_and_leaving_again_and_again_where_that_is_told(tmp_path: Path) -> None:
    """Four hundred are told of each join and each leave: so each counts as much as a publication there."""
    settings = tmp_path / "hubbub.toml"
    settings.write_text("[namespaces.told]\njoin_leave = true\nforce_join_leave = true\n")
    churn = said(
        *(
            command
            for n in range(2, 802, 2)
            for command in (
                {"id": n, "subscribe": {"channel": "told:x"}},
                {"id": n + 1, "unsubscribe": {"channel": "told:x"}},
            )
        )
    )
    with (
        open_daemon("--config", str(settings), log_level="warning", **DEFAULTS) as daemon,
        open_sockets(daemon.port, 400) as watchers,
    ):
        await trio.to_thread.run_sync(join, watchers, "told:x")
        late = await bystanders_beside(daemon, [churn])
    sys.stdout.write(f"bystanders' p99: {late:.4f} s\n")
    assert late <= P99_SECONDS_MAX


async def test_frames_of_newlines_cost_what_they_weigh() -> None:
    with open_daemon(log_level="warning", **DEFAULTS) as daemon:
        frames = [client_frame(TEXT, b'{"id":4,"ping":{}}' + b"\n" * 1_000 + b" " * 60_000, mask=bytes(4))] * 400
        late = await bystanders_beside(daemon, frames)
        taken = (await trio.to_thread.run_sync(daemon.metrics))["hubbub_rate_pauses_total"]
    assert taken > 0  # 25 MB were sent, 4 MB and 1 MB a second may be
    assert late <= P99_SECONDS_MAX


async def test_a_hundred_rooms_recovered_by_a_slow_reader() -> None:
    """It has asked for 11 MB itself, in one frame as SDKs do: that is no reason to call it slow."""
    rooms = [f"room-{number}" for number in range(100)]
    with open_daemon(log_level="warning", allow_history="anonymous") as daemon:
        for room in rooms:
            await trio.to_thread.run_sync(fill, daemon, room, 100, 1_100)
        async with open_structured(daemon.port) as client:
            epochs = {room: (await client.ask("history", channel=room))["epoch"] for room in rooms}
        with open_sockets(daemon.port, 1) as (connection,):
            subscribes = (
                {"id": 2 + n, "subscribe": {"channel": room, "recover": True, "epoch": epochs[room], "offset": 0}}
                for n, room in enumerate(rooms)
            )
            connection.sendall(handshake(PATH) + said({"id": 1, "connect": {}}, *subscribes))
            await trio.sleep(0.5)  # nothing is read, and everything could have been answered
            heard = await trio.to_thread.run_sync(read_until, connection, b'{"id":101,"subscribe":')
    assert heard.count(b'"recovered":true') == 100
    assert heard.count(json.dumps("x" * 1_100).encode()) == 100 * 100
