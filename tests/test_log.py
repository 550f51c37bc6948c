"""The log: what repeats is left out and counted, and nothing that clients do is worth a traceback."""

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, MASKED, PING, TEXT
from hubbub.log import (
    LAST_LINES_SECONDS_MAX,
    LOG_BYTES_MAX,
    SAME_PER_SECOND_MAX,
    LogWriter,
    configure_logging,
    tell_suppressed,
)
from peers import (
    SECONDS_MAX,
    HandshakeRefused,
    client_frame,
    close_payload,
    connect,
    handshake,
    open_peer,
    reset,
    shake_hands,
)
from servers import UNHURRIED, Daemon, elsewhere, open_daemon, until_quiet
from test_heartbeat import open_house

Entry = dict[str, object]

FULL_DISK = -1
"""A file that there isn't."""


class Clock:
    """The throttle's clock; stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of the real one."""
    clock = Clock()
    monkeypatch.setattr("hubbub.log.time", clock)
    return clock


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the log goes; afterwards logging is as it was."""
    structlog_before = structlog.get_config()
    root, hubbub = logging.getLogger(), logging.getLogger("hubbub")
    before = root.handlers[:], root.level, hubbub.level
    root.handlers[:] = []  # or pytest's own would be closed
    try:
        yield io.StringIO()
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        hubbub.setLevel(before[2])
        structlog.configure(**structlog_before)


def entries(stream: io.StringIO) -> list[Entry]:
    """What has been logged as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# -- what repeats


@pytest.fixture
def log(stream: io.StringIO) -> structlog.stdlib.BoundLogger:
    """Writes JSON to the stream."""
    configure_logging("json", "info", stream)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


def test_as_many_as_may_be(clock: Clock, log: structlog.stdlib.BoundLogger, stream: io.StringIO) -> None:
    """The first twenty of a second, unchanged; again in each second, with nothing left out."""
    for _ in range(3):
        for number in range(SAME_PER_SECOND_MAX):
            log.info("x", number=number)
        clock.now += 1
        tell_suppressed()
    assert [entry["number"] for entry in entries(stream)] == 3 * list(range(20))


@pytest.mark.parametrize("count", [21, 22, 1000])
@pytest.mark.parametrize("moment", ["after a second", "at the next entry", "at the end"])
def test_what_is_left_out_is_counted(
    count: int, moment: str, clock: Clock, log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    """Once, in an entry of its own, when the second is over, and not before."""
    for _ in range(count):
        log.warning("x", reason="y", peer="::1")
    clock.now += 0.999
    tell_suppressed()
    assert len(entries(stream)) == 20
    if moment == "at the end":
        tell_suppressed(at_once=True)
    clock.now += 0.001
    if moment == "after a second":
        tell_suppressed()
    log.info("another")
    *_, told, another = entries(stream)
    told.pop("timestamp")
    assert told == {"event": "x", "reason": "y", "level": "warning", "suppressed": count - 20}
    assert another["event"] == "another"
    log.warning("x", reason="y")
    clock.now += 10
    tell_suppressed(at_once=True)
    assert len(entries(stream)) == 23


def test_nothing_is_lost_count_of(clock: Clock, log: structlog.stdlib.BoundLogger, stream: io.StringIO) -> None:
    """Over a long attack: what is written and what is counted is all that was."""
    for number in range(10_000):
        log.info("x")
        clock.now += 0.001 * (number % 7)
    tell_suppressed(at_once=True)
    counts = [entry.get("suppressed") for entry in entries(stream)]
    assert counts.count(None) + sum(count for count in counts if isinstance(count, int)) == 10_000
    assert counts.count(None) <= 20 * (sum(0.001 * (number % 7) for number in range(10_000)) + 1)


@pytest.mark.parametrize(
    ("flood", "rare"),
    [
        ({"event": "flood"}, {"event": "rare"}),
        ({"event": "ended", "reason": "protocol_error"}, {"event": "ended", "reason": "no_pong"}),
        ({"event": "refused", "status": 503}, {"event": "refused", "status": 403}),
        ({"event": "refused", "limit": "proxy_protocol"}, {"event": "refused", "status": 429}),
        ({"event": "hook failed", "hook": "connect"}, {"event": "hook failed", "hook": "publish"}),
    ],
)
def test_other_kinds_are_others(
    flood: dict[str, Any], rare: dict[str, Any], clock: Clock, log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    """A flood of one doesn't hide the other, nor is it counted there."""
    for number in range(1000):
        log.info(**flood, number=number)
    log.info(**rare)
    clock.now += 1
    log.info(**rare)
    first, told, last = entries(stream)[20:]
    assert {**rare, "suppressed": 980} not in (first, last)
    assert all(first[name] == last[name] == rare[name] for name in rare)
    assert {name: told[name] for name in (*flood, "suppressed")} == {**flood, "suppressed": 980}


def test_what_clients_say_makes_no_kind(clock: Clock, log: structlog.stdlib.BoundLogger, stream: io.StringIO) -> None:
    """Or an attacker would write as much as it likes."""
    for number in range(1000):
        log.info("refused", status=403, peer=f"10.0.0.{number}", why=f"Origin: got {number}", room=f"{number}")
    assert len(entries(stream)) == 20


def test_suppressed_in_text(clock: Clock, stream: io.StringIO) -> None:
    """In the form for people."""
    configure_logging("text", "info", stream)
    for _ in range(25):
        structlog.get_logger().info("flood")
    clock.now += 1
    tell_suppressed()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21
    assert re.search(r"flood +suppressed=5$", lines[-1])


def test_a_flood_of_tracebacks_is_a_flood(clock: Clock, stream: io.StringIO) -> None:
    """Twenty tell as much as a million."""
    configure_logging("json", "info", stream)
    for _ in range(50):
        try:
            raise ValueError("a bug")
        except ValueError:
            structlog.get_logger().exception("connection ended by an internal error")
    assert len(entries(stream)) == 20
    assert all("ValueError: a bug" in str(entry["exception"]) for entry in entries(stream))


def test_level(stream: io.StringIO) -> None:
    """What is below it isn't written; a new configuration takes the place of the old one."""
    log = structlog.get_logger()
    for level, expected in (("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
        stream.truncate(0)
        stream.seek(0)
        configure_logging("json", level, stream)  # type: ignore[arg-type]
        for write in (log.debug, log.info, log.warning, log.error):
            write("event")
        assert len(entries(stream)) == expected


# -- nobody waits for it


@pytest.mark.parametrize("blocking", [True, False])
def test_a_log_that_is_read_late(blocking: bool, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the bound everything is there, in order; and it is said how much isn't."""
    monkeypatch.setattr("hubbub.log.LAST_LINES_SECONDS_MAX", SECONDS_MAX)
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    count = 3000
    received: list[str] = []

    def read() -> None:
        with open(reader) as lines:
            received.extend(lines)

    reading = threading.Thread(target=read)
    with open(writer, "w"), LogWriter(writer) as out:
        configure_logging("json", "info", out)
        for number in range(count):
            structlog.get_logger().info(f"{number}", padding=1000 * "x")
        reading.start()
    reading.join(SECONDS_MAX)
    *written, note = [json.loads(line) for line in received]
    assert [entry["event"] for entry in written] == [str(number) for number in range(len(written))]
    assert len(written) > LOG_BYTES_MAX // 1200
    assert (note["event"], note["level"], note["since_start"]) == ("log lines lost", "warning", count - len(written))


def test_a_log_that_is_never_read(stream: io.StringIO) -> None:
    """Nor does the end wait for ever."""
    reader, writer = os.pipe()
    start = time.monotonic()
    with open(writer, "w"), open(reader):
        with LogWriter(writer) as out:
            for _ in range(100):
                out.write(10_000 * "x" + "\n")
        assert LAST_LINES_SECONDS_MAX <= time.monotonic() - start < LAST_LINES_SECONDS_MAX + SECONDS_MAX


def test_a_disk_that_was_full(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is counted, and said once something can; a line may need more than one write."""
    written = b""
    calls = 0
    write_in_truth = os.write

    def write(file: int, data: bytes) -> int:
        nonlocal written, calls
        if file != FULL_DISK:
            return write_in_truth(file, data)  # of some other test's thread
        calls += 1
        if calls <= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += data[:50]
        return len(data[:50])

    monkeypatch.setattr("hubbub.log.os.write", write)
    with LogWriter(FULL_DISK) as out:
        configure_logging("json", "info", out)
        for event in (*5 * ["lost"], "written"):
            structlog.get_logger().info(event)
    log = [json.loads(line) for line in written.splitlines()]
    assert [(entry["event"], entry.get("since_start")) for entry in log] == [("written", None), ("log lines lost", 5)]


async def test_a_daemon_whose_log_nobody_reads() -> None:
    """It costs lines. The server goes on, and stops when it is told to."""
    with open_daemon(log_level="debug") as daemon:
        assert daemon.process.stderr is not None
        fcntl.fcntl(daemon.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for number in range(50):
            async with open_peer(daemon.port, f"/chat/{number}") as peer:
                await peer.send("hello")
                assert await peer.receive() == "hello"
        daemon.process.send_signal(signal.SIGTERM)
        assert await elsewhere(daemon.process.wait) == 0


# -- what clients do

ENDS: dict[str, tuple[bytes, str, int]] = {
    "reserved-opcode": (client_frame(3, b"x"), "protocol_error", 1002),
    "unmasked": (b"\x81\x01x", "protocol_error", 1002),
    "reserved-bit": (client_frame(TEXT, b"x", rsv=0x40), "protocol_error", 1002),
    "long-ping": (client_frame(PING, 126 * b"x"), "protocol_error", 1002),
    "continuation-of-nothing": (client_frame(CONTINUATION, b"x"), "protocol_error", 1002),
    "not-utf-8": (client_frame(TEXT, b"\xff\xff"), "protocol_error", 1007),
    "too-large": (client_frame(BINARY, bytes(2000)), "message_too_large", 1009),
    "declared-too-large": (
        bytes((FIN | TEXT, MASKED | 127)) + (2**62).to_bytes(8, "big") + bytes(4),
        "message_too_large",
        1009,
    ),
    "too-many-fragments": (
        client_frame(TEXT, b"x", fin=False) + 100 * client_frame(CONTINUATION, b"x", fin=False),
        "too_many_fragments",
        1008,
    ),
    "too-many-pings": (100 * client_frame(PING, b""), "too_many_control_frames", 1008),
}
LIMITS: dict[str, object] = {"message_bytes_max": 1000, "control_frames_per_second_max": 10, "close_seconds_max": 1}
KEYS = {"event", "level", "timestamp", "reason", "code", "peer", "room", "seconds", "bytes_sent", "bytes_received"}


async def log_of(daemon: Daemon) -> list[Entry]:
    """End the daemon, and return everything it has logged."""
    daemon.process.send_signal(signal.SIGTERM)

    def read() -> str:
        assert daemon.process.stderr is not None
        return daemon.process.stderr.read()

    with trio.fail_after(SECONDS_MAX):
        text = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    assert "Traceback" not in text
    return [json.loads(line) for line in text.splitlines()]


async def test_each_wrong_end_is_one_entry() -> None:
    """Why, who, where, how long and how much; and no ordinary end is worth one."""
    with open_daemon(**LIMITS) as daemon:
        for name, (data, _, code) in ENDS.items():
            async with open_peer(daemon.port, f"/chat/{name}") as peer:
                await peer.send("hello")
                assert await peer.receive() == "hello"
                await peer.send_raw(data)
                _, closed = await peer.receive_until_closed()
                assert closed.code == code, name
        for number in range(3):
            async with open_peer(daemon.port, "/chat/ordinary") as peer:
                if number == 0:
                    await peer.close()
                elif number == 1:
                    assert isinstance(peer.stream, trio.SocketStream)
                    await peer.stream.send_eof()
                    await peer.receive_until_closed()
                else:
                    assert isinstance(peer.stream, trio.SocketStream)
                    await reset(peer.stream)
        ended = {"hubbub_connections": 1.0}
        with trio.fail_after(SECONDS_MAX):
            while ended["hubbub_connections"]:
                ended = await trio.to_thread.run_sync(daemon.metrics)
        assert ended["hubbub_internal_errors_total"] == 0
        log = await log_of(daemon)
    ends = [entry for entry in log if entry["event"] == "connection ended"]
    assert {entry["room"]: entry["reason"] for entry in ends} == {name: reason for name, (_, reason, _) in ENDS.items()}
    assert len(ends) == len(ENDS)
    for entry in ends:
        assert set(entry) == KEYS
        assert (entry["level"], entry["peer"]) == ("info", "127.0.0.1")
        assert entry["code"] == ENDS[str(entry["room"])][2]
        assert isinstance(entry["seconds"], float)
        assert 0 <= entry["seconds"] < SECONDS_MAX
        assert isinstance(entry["bytes_sent"], int)
        assert entry["bytes_sent"] > len(b"HTTP/1.1 101 ") + len("hello")
        assert isinstance(entry["bytes_received"], int)
        assert entry["bytes_received"] >= len(client_frame(TEXT, b"hello"))
    assert [entry["event"] for entry in log if entry not in ends] == ["draining", "stopped"]


async def test_every_byte_that_is_received_counts(autojump_clock: MockClock) -> None:
    """Whether it is taken where the poller reads it, or by the connection's reader: ordinary messages, and others."""
    frames = [
        client_frame(TEXT, b"short"),
        client_frame(TEXT, b"long" * 5_000),
        client_frame(TEXT, b"in frag", fin=False) + client_frame(CONTINUATION, b"ments"),
        client_frame(PING, b"!"),
        client_frame(TEXT, b"one") + client_frame(TEXT, b"two"),
        client_frame(CLOSE, close_payload(1000)),
    ]
    with capture_logs() as log:
        async with open_house() as house:
            peer, _ = await house.connect()
            for frame in frames:
                await peer.send_raw(frame)
                await trio.sleep(0.1)
            await peer.receive_until_closed()
            await until_quiet(house.node)
    (end,) = (entry for entry in log if entry["event"] == "connection ended")
    assert end["bytes_received"] == sum(map(len, frames))


async def test_what_a_list_does_not_allow_is_an_entry() -> None:
    """The list may be wrong: whoever runs the server sees which name was refused."""
    with open_daemon() as daemon:
        for host, origin in (("chat.example", "http://localhost"), ("localhost", "http://localhost:3000")):
            async with await connect(daemon.port) as stream:
                with pytest.raises(HandshakeRefused):
                    await shake_hands(stream, handshake(host=host, headers=(("Origin", origin),)))
        refused = [entry for entry in await log_of(daemon) if entry["event"] == "refused"]
    assert [(entry["level"], entry["status"], entry["why"]) for entry in refused] == [
        ("info", 421, "Host: got 'chat.example', allowed: loopback names and the bound address; see allowed_hosts"),
        ("info", 403, "Origin: got 'http://localhost:3000', allowed: the same host and port; see allowed_origins"),
    ]


async def test_wrong_requests_are_no_entries() -> None:
    """They are counted in the metrics; an attacker doesn't write our log."""
    with open_daemon(**LIMITS, head_seconds_max=0.3) as daemon:
        for request in (
            b"\0" * 500,
            b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"x",
            b"",
        ):
            stream = await connect(daemon.port)
            await stream.send_all(request)
            await stream.send_eof()
            await read_to_end(stream)
        assert [entry["event"] for entry in await log_of(daemon)] == ["draining", "stopped"]


async def test_the_story_of_a_connection() -> None:
    """At the level of debug: it came, became a WebSocket, ended; or was refused, and why. A limit is worth an info."""
    with open_daemon(log_level="debug", connections_max=2) as daemon:
        async with open_peer(daemon.port, "/chat/story") as peer:
            stream = await connect(daemon.port)
            await stream.send_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 404 " in await stream.receive_some()
            with pytest.raises(HandshakeRefused):
                async with open_peer(daemon.port):
                    pass
            await trio.aclose_forcefully(stream)
            await peer.close()
        log = await log_of(daemon)
    assert Counter((entry["event"], entry["level"]) for entry in log) == {
        ("opened", "debug"): 3,
        ("upgraded", "debug"): 1,
        ("connection ended", "debug"): 1,
        ("refused", "info"): 1,
        ("refused", "debug"): 1,
        ("draining", "info"): 1,
        ("stopped", "info"): 1,
    }
    refused = [entry for entry in log if entry["event"] == "refused"]
    assert [entry["status"] for entry in refused] == [404, 503]
    assert "connections_max = 2" in str(refused[1]["why"])
    (upgrade,) = (entry for entry in log if entry["event"] == "upgraded")
    assert (upgrade["room"], upgrade["dialect"], upgrade["peer"]) == ("story", "plain", "127.0.0.1")


async def test_an_eviction_says_how_much_waited() -> None:
    """And the end that follows gives the reason and the code."""
    with open_daemon(outbox_bytes_max=100_000, history_size=0, close_seconds_max=1) as daemon:
        async with open_peer(daemon.port) as slow, open_peer(daemon.port) as talker:
            for number in range(1000):
                await talker.send(f"{number} " + 60_000 * "x")
                await talker.receive()
                if (await trio.to_thread.run_sync(daemon.metrics))["hubbub_connections"] < 2:
                    break
            assert isinstance(slow.stream, trio.SocketStream)
            await trio.aclose_forcefully(slow.stream)
        log = await log_of(daemon)
    (evicted,) = (entry for entry in log if entry["event"] == "evicted")
    assert evicted["level"] == "info"
    assert int(str(evicted["bytes_queued"])) >= 100_000
    (ended,) = (entry for entry in log if entry["event"] == "connection ended")
    assert (ended["reason"], ended["code"]) == ("slow_consumer", 1013)


async def read_to_end(stream: trio.SocketStream) -> None:
    """Read until the server is done, and be done too."""
    with trio.fail_after(SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("waits", [True, False])
async def test_a_flood_of_wrong_ends(waits: bool) -> None:
    """The disk is safe, and the figures are right: what is written and what is counted is all that was.

    It is said a second later, also if nothing else happens; and before the end.
    """

    async def go_wrong(port: int) -> None:
        async with open_peer(port) as peer:
            await peer.send_raw(client_frame(3, b"x"))
            await peer.receive_until_closed()

    count = 200
    with open_daemon() as daemon:
        start = trio.current_time()
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(go_wrong, daemon.port)
        took = trio.current_time() - start
        if waits:
            await elsewhere(lambda: next(line for line in daemon.process.stderr or () if "suppressed" in line))
        log = [entry for entry in await log_of(daemon) if entry["event"] == "connection ended"]
    if not waits:
        written = [entry for entry in log if "suppressed" not in entry]
        suppressed = [entry["suppressed"] for entry in log if "suppressed" in entry]
        assert len(written) + sum(number for number in suppressed if isinstance(number, int)) == count
        assert len(written) <= 20 * (took + 2)
        assert log[-1]["reason"] == "protocol_error"


async def test_text_is_one_line_an_entry() -> None:
    """Also where a client has had its say in it: a room's name can't begin a line of its own."""
    with open_daemon("--log-format", "text") as daemon:
        async with open_peer(daemon.port, "/chat/a%20b%E2%80%A6'%22") as peer:
            await peer.send_raw(client_frame(3, b"x"))
            await peer.receive_until_closed()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.stderr is not None
        lines = daemon.process.stderr.read().splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] ", line) for line in lines)


async def test_a_log_that_nobody_reads_any_more() -> None:
    """A closed pipe costs entries, not the server, nor its exit status."""
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "hubbub", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **{f"HUBBUB_{name.upper()}": str(value) for name, value in UNHURRIED.items()}},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        daemon = Daemon(process, process.stdout.readline().removeprefix("listening on ").strip())
        process.stderr.close()
        for _ in range(3):
            async with open_peer(daemon.port) as peer:
                await peer.send_raw(client_frame(3, close_payload(1000)))
                _, closed = await peer.receive_until_closed()
                assert closed.code == 1002
        process.send_signal(signal.SIGHUP)
        async with open_peer(daemon.port) as peer:
            await peer.send("hello")
            assert await peer.receive() == "hello"
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(SECONDS_MAX):
            assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
