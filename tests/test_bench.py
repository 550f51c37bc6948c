"""The benchmarks run, and their checks fail when they should."""

import json
import selectors
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path
from typing import Any, Self

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")

FANOUT = Path(__file__).parent.parent / "bench" / "fanout.py"
FAULTY = 3  # the connection that a faulty relay treats badly, from its tenth publication on


def fanout(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FANOUT), "--warmup", "0.1", "--repeat", "1", "--no-pin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=80)


class Relay:
    """A room on plain sockets, in a thread: what one sends goes to all, except as `fault` has it.

    `fault` gets the frames so far and returns what the faulty connection is sent now; None closes it.
    """

    def __init__(self, fault: Callable[[list[bytes]], bytes | None]) -> None:
        self._fault = fault
        self._frames: list[bytes] = []
        self._members: list[socket.socket] = []
        self._unread: dict[socket.socket, bytes] = {}
        self._stopping, self._stop = socket.socketpair()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/chat/bench"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.close()
        self._thread.join(10)
        self._selector.close()
        for one in (self._stopping, self._listener, *self._unread):
            one.close()

    def _serve(self) -> None:
        for one in (self._stopping, self._listener):
            self._selector.register(one, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopping:
                    return
                if key.fileobj is self._listener:
                    member = self._listener.accept()[0]
                    self._unread[member] = b""
                    self._selector.register(member, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)

    def _read(self, member: socket.socket) -> None:
        try:
            data = member.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self._selector.unregister(member)
            if member in self._members:
                self._members.remove(member)
            return
        self._unread[member] += data
        if member not in self._members and self._unread[member].endswith(b"\r\n\r\n"):
            key = self._unread[member].partition(b"Sec-WebSocket-Key: ")[2].splitlines()[0]
            accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            member.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            self._members.append(member)
            self._unread[member] = b""
        while (size := self._unread[member][1:2]) and len(self._unread[member]) >= 6 + (size[0] & 127):
            end = 6 + (size[0] & 127)
            frame, self._unread[member] = self._unread[member][:end], self._unread[member][end:]
            if frame[0] == 0x81:
                self._relay(b"\x81" + bytes([size[0] & 127]) + self._unmasked(frame))

    def _unmasked(self, frame: bytes) -> bytes:
        return bytes(byte ^ frame[2 + i % 4] for i, byte in enumerate(frame[6:]))

    def _relay(self, frame: bytes) -> None:
        self._frames.append(frame)
        for index, member in enumerate(list(self._members)):
            data = self._fault(self._frames) if index == FAULTY else frame
            try:
                if data is None:
                    member.shutdown(socket.SHUT_RDWR)
                else:
                    member.sendall(data)
            except OSError:
                pass  # it has left


def honest(frames: list[bytes]) -> bytes:
    return frames[-1]


def swap(frames: list[bytes]) -> bytes:
    held_back = {10: b"", 11: frames[-1] + frames[-2] if len(frames) > 1 else b""}
    return held_back.get(len(frames), frames[-1])


def lose(frames: list[bytes]) -> bytes:
    return b"" if len(frames) == 10 else frames[-1]


def duplicate(frames: list[bytes]) -> bytes:
    return frames[-1] * 2 if len(frames) == 10 else frames[-1]


def alter(frames: list[bytes]) -> bytes:
    return frames[-1][:-1] + b"!" if len(frames) == 10 else frames[-1]


def close(frames: list[bytes]) -> bytes | None:
    return frames[-1] if len(frames) < 10 else None


@pytest.mark.parametrize("mode", ["rate", "closed", "burst"])
def test_measures_the_daemon(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = fanout("--connections", "20", "--mode", mode, "--seconds", "0.5", "--json", str(file))

    assert done.returncode == 0, done.stderr
    assert "median" in done.stdout
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert outcome["ok"] is True
    (result,) = outcome["repeats"]
    assert result == outcome["median"]
    assert result["deliveries"] == 20 * result["publications"]
    assert 0.1 < result["cpu_us_per_delivery"] < 10_000
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"] < 60_000
    assert 0 < result["deliveries_per_second"] < 10_000_000
    assert abs(result["memory_kb_per_connection"]) < 10_000
    if mode == "rate":
        assert result["publications"] == 500
        assert result["deliveries_per_second"] <= 20_000
    if mode == "burst":
        assert result["publications"] % 64 == 0


def test_measures_a_server_that_already_runs(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with Relay(honest) as relay:
        done = fanout(
            *("--url", relay.url, "--connections", "20", "--rate", "4000", "--seconds", "0.3"),
            *("--repeat", "2", "--json", str(file)),
        )

    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert [result["publications"] for result in outcome["repeats"]] == [60, 60]
    assert outcome["median"]["cpu_us_per_delivery"] is None  # nobody told whose


@pytest.mark.parametrize(
    ("fault", "connections", "reason"),
    [
        (swap, 20, "connection 3 saw another order, from position 9: 10, but connection 0 9"),
        (lose, 20, "connection 3 lacks 102 of 6120 bytes (102 a delivery)"),
        (lose, 40, "connection 3 lacks 102 of 3060 bytes (102 a delivery)"),  # one that isn't sampled
        (duplicate, 20, "connection 3 has 102 too many of 6120 bytes (102 a delivery)"),
        (alter, 20, "connection 3 saw another order, from position 9: a frame never published"),
        (close, 20, "connection 3 was closed by the server (no close code seen) with 9 of "),
    ],
)
def test_a_result_that_fails_its_check_is_no_result(
    fault: Callable[[list[bytes]], bytes | None], connections: int, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    deadline = "4" if fault is lose else "60"  # only that one has to wait for it
    with Relay(fault) as relay:
        done = fanout(
            *("--url", relay.url, "--connections", str(connections), "--rate", "4000", "--seconds", "0.3"),
            *("--warmup", "0", "--deadline", deadline, "--json", str(file)),
        )

    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert json.loads(file.read_text())["ok"] is False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mode", "sideways"], "argument --mode: invalid choice: 'sideways'"),
        (["--connections", "0"], "argument --connections: a whole number from 1 expected, not '0'"),
        (["--size", "30"], "argument --size: a whole number from 31 expected, not '30'"),
        (["--url", "http://localhost/chat"], "argument --url: ws://HOST:PORT/PATH expected"),
        (["--pid", "1"], "argument --pid: only with --url"),
        (["--connections", "5", "--publishers", "6"], "argument --publishers: more than --connections"),
        (["--json", "/nowhere/x"], "argument --json: [Errno 2]"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(arguments: list[str], reason: str) -> None:
    done = fanout(*arguments)

    assert done.returncode == 2
    assert done.stderr.startswith(f"fanout.py: {reason}")
    assert done.stderr.count("\n") == 1
