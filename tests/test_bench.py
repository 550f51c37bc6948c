"""The benchmarks run, and their checks fail when they should."""

import json
import re
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

from hubbub.core.frames import TEXT, encode_frame

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

    path = "/chat/bench"

    def __init__(self, fault: Callable[[list[bytes]], bytes | None], port: int = 0) -> None:
        self._fault = fault
        self._frames: list[bytes] = []
        self._upgraded: list[socket.socket] = []
        self._members: list[socket.socket] = []
        self._unread: dict[socket.socket, bytes] = {}
        self._stopping, self._stop = socket.socketpair()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=200)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}{self.path}"

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
            for group in (self._upgraded, self._members):
                if member in group:
                    group.remove(member)
            return
        self._unread[member] += data
        if member not in self._upgraded and self._unread[member].endswith(b"\r\n\r\n"):
            key = self._unread[member].partition(b"Sec-WebSocket-Key: ")[2].splitlines()[0]
            accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            member.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            self._upgraded.append(member)
            self._unread[member] = b""
            self._welcome(member)
        while (size := self._unread[member][1:2]) and len(self._unread[member]) >= 6 + (size[0] & 127):
            end = 6 + (size[0] & 127)
            frame, self._unread[member] = self._unread[member][:end], self._unread[member][end:]
            if frame[0] == 0x81:
                self._take(member, self._unmasked(frame))

    def _unmasked(self, frame: bytes) -> bytes:
        return bytes(byte ^ frame[2 + i % 4] for i, byte in enumerate(frame[6:]))

    def _welcome(self, member: socket.socket) -> None:
        self._members.append(member)

    def _take(self, member: socket.socket, text: bytes) -> None:
        self._relay(encode_frame(TEXT, text))

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


class StructuredRelay(Relay):
    """The same in the structured dialect; the publisher of the tenth publication is answered by `tenth`, of its id."""

    path = "/connection/websocket"

    def __init__(
        self, fault: Callable[[list[bytes]], bytes | None], before: int = 0, tenth: Callable[[int], bytes] | None = None
    ) -> None:
        super().__init__(fault)
        self._before, self._tenth = before, tenth

    def _welcome(self, member: socket.socket) -> None: ...

    def _take(self, member: socket.socket, text: bytes) -> None:
        client = b"00000000-0000-4000-8000-%012d" % member.fileno()
        replies = []
        for line in text.splitlines():
            number = json.loads(line)["id"]
            if b'"connect":' in line:
                replies.append(b'{"id":%d,"connect":{"client":"%b"}}' % (number, client))
            elif b'"subscribe":' in line:
                offset = self._before + len(self._frames)
                replies.append(b'{"id":%d,"subscribe":{"positioned":true,"offset":%d}}' % (number, offset))
                self._members.append(member)
            else:
                replies.append(b'{"id":%d,"publish":{}}' % number)
                if len(self._frames) == 9 and self._tenth:
                    replies[-1] = self._tenth(number)
                self._push(client, line.partition(b'"data":')[2].removesuffix(b"}}"))
        member.sendall(encode_frame(TEXT, b"\n".join(replies)))

    def _push(self, client: bytes, data: bytes) -> None:
        offset = self._before + len(self._frames) + 1
        push = b'{"push":{"channel":"bench","pub":{"data":%b,"info":{"user":"","client":"%b"},"offset":%d}}}'
        self._relay(encode_frame(TEXT, push % (data, client, offset)))


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


def rename(frames: list[bytes]) -> bytes:
    return re.sub(rb'"client":"0', b'"client":"1', frames[-1]) if len(frames) == 10 else frames[-1]


@pytest.mark.parametrize("dialect", ["plain", "centrifugo"])
@pytest.mark.parametrize("mode", ["rate", "closed", "burst"])
def test_measures_the_daemon(mode: str, dialect: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = fanout(
        *("--dialect", dialect, "--connections", "20", "--mode", mode, "--seconds", "0.5", "--json", str(file))
    )

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


def test_measures_a_structured_server_that_already_runs(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with StructuredRelay(honest, before=70) as relay:  # so there are deliveries with two, and with three digits
        done = fanout(
            *("--dialect", "centrifugo", "--url", relay.url, "--connections", "20", "--rate", "4000"),
            *("--seconds", "0.3", "--warmup", "0", "--repeat", "2", "--json", str(file)),
        )

    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert [result["publications"] for result in outcome["repeats"]] == [60, 60]


def test_a_delivery_has_the_size_asked_for() -> None:
    sizes: list[int] = []

    def measure(frames: list[bytes]) -> bytes:
        sizes.append(len(frames[-1]))
        return frames[-1]

    with StructuredRelay(measure, before=99) as relay:
        done = fanout("--dialect", "centrifugo", "--url", relay.url, "--seconds", "0.1", "--size", "163")

    assert done.returncode == 0, done.stderr
    assert set(sizes) == {4 + 163}


def test_two_dialects_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = fanout(
        *("--dialect", "centrifugo", "--against", "plain", "--connections", "20", "--mode", "closed"),
        *("--repeat", "2", "--seconds", "0.2", "--json", str(file)),
    )

    assert done.returncode == 0, done.stderr
    names = [line.replace("!", "").strip().partition("  ")[0] for line in done.stdout.splitlines()[1:8]]
    assert names == ["plain 1", "centrifugo 1", "plain 2", "centrifugo 2", "plain median", "centrifugo median", "ratio"]
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert [len(outcome["repeats"]), len(outcome["against"]["repeats"])] == [2, 2]
    cost, other = (outcome[who]["cpu_us_per_delivery"] for who in ("median", "ratio"))
    assert cost / outcome["against"]["median"]["cpu_us_per_delivery"] == pytest.approx(other)


@pytest.mark.parametrize(
    ("fault", "connections", "reason"),
    [
        # On a busy machine publishers may come in another order: it is the relay's that counts.
        (swap, 20, r"connection 3 saw another order, from position 9: \d+, but connection 0 \d+"),
        (lose, 20, r"connection 3 lacks 102 of 6120 bytes \(102 a delivery\)"),
        (lose, 40, r"connection 3 lacks 102 of 3060 bytes \(102 a delivery\)"),  # one that isn't sampled
        (duplicate, 20, r"connection 3 has 102 too many of 6120 bytes \(102 a delivery\)"),
        (alter, 20, "connection 3 saw another order, from position 9: a frame never published"),
        (close, 20, r"connection 3 was closed by the server \(no close code seen\) with 9 of "),
    ],
)
def test_a_result_that_fails_its_check_is_no_result(
    fault: Callable[[list[bytes]], bytes | None], connections: int, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    deadline = "2" if fault is lose else "60"  # only that one has to wait for it
    with Relay(fault) as relay:
        done = fanout(
            *("--url", relay.url, "--connections", str(connections), "--rate", "4000", "--seconds", "0.3"),
            *("--warmup", "0", "--deadline", deadline, "--json", str(file)),
        )

    assert done.returncode == 1
    assert re.search(reason, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert json.loads(file.read_text())["ok"] is False


@pytest.mark.parametrize(
    ("fault", "tenth", "reason"),
    [
        (swap, None, r"3 saw another order, from position 9: offset 81 where 80 is due, but connection 0 \d+"),
        (lose, None, r"connection 3 lacks 204 of 12271 bytes \(204 to 205 a delivery\)"),
        (duplicate, None, r"connection 3 has 204 too many of 12271 bytes \(204 to 205 a delivery\)"),
        (alter, None, r"connection 3 saw another order, from position 9: not a push as expected \(b'{"),
        (rename, None, r"position 9: publisher \d+'s message in the name of another client, but connection 0 \d+"),
        (close, None, r"connection 3 was closed by the server \(no close code seen\) with 9 of "),
        (honest, lambda number: b'{"id":%d,"error":{"code":111,"message":"too many"}}' % number, "was refused: b'"),
        (
            honest,
            lambda number: b'{"id":%d,"publish":{}}' % (number + 1),
            r"publisher \d+ was answered (\d+), not (?!\1)\d+",
        ),
    ],
)
def test_a_structured_result_that_fails_its_check_is_no_result(
    fault: Callable[[list[bytes]], bytes | None], tenth: Callable[[int], bytes] | None, reason: str
) -> None:
    deadline = "2" if fault is lose else "60"
    with StructuredRelay(fault, before=70, tenth=tenth) as relay:
        done = fanout(
            *("--dialect", "centrifugo", "--url", relay.url, "--connections", "20", "--rate", "4000"),
            *("--seconds", "0.3", "--warmup", "0", "--deadline", deadline),
        )

    assert done.returncode == 1
    assert re.search(reason, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_everyone_must_see_the_offsets_without_a_gap() -> None:
    class Skipping(StructuredRelay):
        def _push(self, client: bytes, data: bytes) -> None:
            self._before += len(self._frames) == 9
            super()._push(client, data)

    with Skipping(honest, before=10) as relay:
        done = fanout("--dialect", "centrifugo", "--url", relay.url, "--warmup", "0", "--seconds", "0.1")

    assert done.returncode == 1
    assert "connection 0, position 9: offset 21 where 20 is due" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mode", "sideways"], "argument --mode: invalid choice: 'sideways'"),
        (["--connections", "0"], "argument --connections: a whole number from 1 expected, not '0'"),
        (["--size", "30"], "argument --size: a whole number from 31 expected, not '30'"),
        (["--dialect", "sockjs"], "argument --dialect: invalid choice: 'sockjs'"),
        (["--dialect", "centrifugo", "--size", "162"], "argument --size: a whole number from 163 expected, not '162'"),
        (["--dialect", "centrifugo", "--against", "centrifugo"], "argument --against: the same as --dialect"),
        (["--against", "centrifugo", "--url", "ws://localhost:1/"], "argument --against: not with --url"),
        (["--url", "http://localhost/chat"], "argument --url: ws://HOST:PORT/PATH expected"),
        (["--url", "ws://localhost:1"], "argument --url: ws://HOST:PORT/PATH expected, not 'ws://localhost:1'"),
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
