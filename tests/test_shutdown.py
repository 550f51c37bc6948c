"""A stop under load (P10), what systemd and operators see of the daemon, what is left of hostile crowds (P7)."""

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

import hubbub.node
from hubbub.core.frames import CLOSE, TEXT
from peers import (
    SECONDS_MAX,
    Closed,
    HandshakeRefused,
    Peer,
    client_frame,
    close_payload,
    connect,
    handshake,
    open_peer,
    shake_hands,
)
from servers import Daemon, elsewhere, exit_of, open_daemon
from tools import lack
from worlds import open_world

Entry = dict[str, object]

LIVE, SILENT, STALLED, PUBLISHERS = 460, 30, 10, 10
DRAIN_SECONDS = 3.0
MARGIN_SECONDS = 5.0
"""How much later than promised something may be on a machine that does other things too."""
PATIENT: dict[str, object] = {
    "drain_seconds_max": 60,
    "close_seconds_max": 60,
    "write_stall_seconds_max": 60,
    "outbox_bytes_max": 2**24,
}
"""With these nothing but what a test does ends a drain."""
RECEIVE_BUFFER = 4096


@contextlib.contextmanager
def start(*command: str, **settings: object) -> Iterator["subprocess.Popen[str]"]:
    """Start the daemon by a command; killed on leaving. For those that `open_daemon` is too good for."""
    process = subprocess.Popen(
        [*command, sys.executable, "-m", "hubbub", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **{f"HUBBUB_{name.upper()}": str(value) for name, value in settings.items()}},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def open_doomed_daemon(*command: str, **settings: object) -> Iterator[Daemon]:
    """A daemon whose end is the test's own affair."""
    with start(*command, **settings) as process:
        assert process.stdout is not None
        yield Daemon(process, process.stdout.readline().removeprefix("listening on ").strip())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(is_so: Callable[[], bool], seconds_max: float = SECONDS_MAX) -> None:
    """Wait for something in the daemon."""
    with trio.fail_after(seconds_max):
        while not await elsewhere(is_so):
            await trio.sleep(0.02)


async def open_stalled(stack: contextlib.AsyncExitStack, daemon: Daemon, count: int, room: str = "stalled") -> None:
    """Bring in clients that never read; return once something waits for each of them."""
    for _ in range(count):
        await stack.enter_async_context(open_peer(daemon.port, f"/chat/{room}", receive_buffer=RECEIVE_BUFFER))
    async with open_peer(daemon.port, f"/chat/{room}") as publisher:
        while (await elsewhere(daemon.metrics))["hubbub_outboxes_queued"] < count:
            for _ in range(10):
                await publisher.send(60_000 * "x")
                await publisher.receive()


# -- a crowd


class Member:
    """One of a crowd: reads as little of the protocol as can be, so that 500 of them leave time for the daemon."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.texts: list[str] = []
        self.code: int | None = None
        self.told_at = 0.0
        self.sent = 0
        self._sending = trio.Lock()

    async def read(self) -> None:
        """Take everything up to the Close, answer it, and wait for the end."""
        while True:
            try:
                first, payload = await self.peer.receive_frame()
            except Closed:
                return
            if first & 0x0F == TEXT:
                self.texts.append(payload.decode())
            elif first & 0x0F == CLOSE:
                self.code, self.told_at = int.from_bytes(payload[:2], "big"), trio.current_time()
                async with self._sending:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await self.peer.send_frame(CLOSE, payload[:2])

    async def publish(self, name: str) -> None:
        """Publish until told to leave."""
        rng = random.Random(name)
        while self.code is None:
            async with self._sending:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.peer.send(f"{name} {self.sent}")
            self.sent += 1
            await trio.sleep(rng.uniform(0.1, 0.4))


async def test_stop_under_load() -> None:
    """Who lives gets all up to its own notice, then 1001; who doesn't can't hold the others, nor the exit."""
    settings = {**PATIENT, "drain_seconds_max": DRAIN_SECONDS}
    with open_daemon(**settings) as daemon:
        async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
            await open_stalled(stack, daemon, STALLED)
            for _ in range(SILENT):
                await stack.enter_async_context(open_peer(daemon.port))
            members = [Member(await stack.enter_async_context(open_peer(daemon.port))) for _ in range(LIVE)]
            for member in members:
                nursery.start_soon(member.read)
            for number, member in enumerate(members[:PUBLISHERS]):
                nursery.start_soon(member.publish, f"publisher-{number}")
            await trio.sleep(1)
            with trio.fail_after(SECONDS_MAX):
                while not members[0].texts:  # a busy machine
                    await trio.sleep(0.01)
            accepted = len(members[0].texts)
            asked = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            status, log = await exit_of(daemon)
            took = time.monotonic() - asked
            with trio.fail_after(SECONDS_MAX):
                while nursery.child_tasks:
                    await trio.sleep(0.01)
    assert status == 0
    assert DRAIN_SECONDS * 0.9 < took < DRAIN_SECONDS + MARGIN_SECONDS
    assert {member.code for member in members} == {1001}
    # The room's order, as the one who was told last knows it. All came before the first message.
    order = max((member.texts for member in members), key=len)
    assert len(set(order)) == len(order) >= accepted > 0
    for member in members:
        assert member.texts == order[: len(member.texts)]
        assert len(member.texts) >= accepted
    assert len({len(member.texts) for member in members}) > 1, "one is told while others are still served"
    for number, publisher in enumerate(members[:PUBLISHERS]):
        own = [text for text in order if text.startswith(f"publisher-{number} ")]
        assert own == [f"publisher-{number} {count}" for count in range(len(own))]
        assert len(own) <= publisher.sent
    told = sorted(member.told_at for member in members)
    window = min((LIVE + SILENT + STALLED) / 1000, DRAIN_SECONDS / 2)
    assert window * 0.6 < told[-1] - told[0] < window + MARGIN_SECONDS
    assert told[LIVE // 2] - told[0] > window * 0.15, "not all at once"
    assert [entry["event"] for entry in (log[0], log[-1])] == ["draining", "stopped"]
    assert {entry["level"] for entry in log} == {"info"}


@pytest.mark.parametrize(("drain_seconds_max", "window"), [(60.0, 0.04), (0.04, 0.02)])
async def test_notices_are_spread(
    drain_seconds_max: float, window: float, autojump_clock: trio.testing.MockClock
) -> None:
    """A thousand a second, or faster if that would take more than half of the drain."""
    async with open_world("pipe", drain_seconds_max=drain_seconds_max) as world:
        peers = [await world.open_peer() for _ in range(40)]
        told: list[float] = []

        async def read(peer: Peer) -> None:
            first, payload = await peer.receive_frame()
            assert (first & 0x0F, payload[:2]) == (CLOSE, close_payload(1001))
            told.append(trio.current_time() - began)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(read, peer)
            await world.node.drain()
    assert told == pytest.approx([window * count / 40 for count in range(40)], abs=1e-6)


async def test_nobody_waits_for_the_turn_of_who_has_gone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Browsers leave by themselves when their page's server goes: then the drain is over at once."""
    monkeypatch.setattr(hubbub.node, "NOTICES_PER_SECOND", 1)
    async with open_world("pipe", drain_seconds_max=100.0) as world:
        peers = [await world.open_peer() for _ in range(20)]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.node.drain)
            for peer in peers:
                nursery.start_soon(peer.close)
        assert trio.current_time() - began < 2


@pytest.mark.parametrize("signals", [1, 2])
async def test_who_was_cut_off_is_counted(signals: int) -> None:
    """What stalled clients didn't take is lost to them; the operator is told how many they were."""
    settings = {**PATIENT, "drain_seconds_max": 0.5 if signals == 1 else 60}
    with open_doomed_daemon(**settings) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            await open_stalled(stack, daemon, 3)
            for _ in range(signals):
                daemon.process.send_signal(signal.SIGTERM)
                await trio.sleep(0.3)
            _, log = await exit_of(daemon)
    assert log[-1]["event"] == "stopped"
    assert log[-1]["cut_off"] == 3


async def test_second_signal_under_load() -> None:
    """It ends at once, whoever is still being told, and the status says so."""
    with open_doomed_daemon(**{**PATIENT, "drain_seconds_max": 600}) as daemon:
        async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
            await open_stalled(stack, daemon, STALLED)
            members = [Member(await stack.enter_async_context(open_peer(daemon.port))) for _ in range(200)]
            for member in members:
                nursery.start_soon(member.read)
            for number, member in enumerate(members[:PUBLISHERS]):
                nursery.start_soon(member.publish, f"publisher-{number}")
            daemon.process.send_signal(signal.SIGTERM)
            with trio.fail_after(SECONDS_MAX):
                while all(member.code is None for member in members):
                    await trio.sleep(0.01)
            asked = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            status, log = await exit_of(daemon)
            assert status == 1
            assert time.monotonic() - asked < MARGIN_SECONDS
            assert [entry["event"] for entry in log if entry["level"] == "warning"] == ["cutting off"]
            nursery.cancel_scope.cancel()


PROXIED: dict[str, object] = {"proxy_protocol": "true", "trusted_proxies": "127.0.0.1"}


async def test_a_silent_proxy_delays_nothing() -> None:
    """A proxy's spare connections, or its health checks, say nothing: they are let go at once."""
    with open_daemon(**PATIENT, **PROXIED, head_seconds_max=4) as daemon:
        async with await connect(daemon.port):
            await trio.sleep(0.2)
            asked = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            assert (await exit_of(daemon))[0] == 0
            assert time.monotonic() - asked < 2


# -- systemd


class Systemd:
    """What systemd hears: a datagram socket."""

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver

    async def hear(self) -> str:
        """The next message."""
        with trio.fail_after(SECONDS_MAX):
            await trio.lowlevel.wait_readable(self._receiver)
        return self._receiver.recv(1000).decode()

    async def hear_until(self, message: str) -> list[str]:
        """All messages up to that one."""
        heard = [await self.hear()]
        while heard[-1] != message:
            heard.append(await self.hear())
        return heard

    def is_quiet(self) -> bool:
        """Whether nothing has been said."""
        with contextlib.suppress(BlockingIOError):
            return not self._receiver.recv(1000)
        return True


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """The daemons of this test are its services."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        receiver.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield Systemd(receiver)


async def test_systemd_hears_of_start_and_stop(systemd: Systemd) -> None:
    """READY when who comes is served, STOPPING when the drain begins and not when it has ended."""
    with open_daemon(**PATIENT) as daemon:
        assert await systemd.hear() == "READY=1"
        async with open_peer(daemon.port) as peer:
            assert systemd.is_quiet()
            daemon.process.send_signal(signal.SIGTERM)
            assert await systemd.hear() == "STOPPING=1"
            assert daemon.process.poll() is None
            with pytest.raises(Closed) as closed:
                await peer.receive()
            assert closed.value.code == 1001
        assert (await exit_of(daemon))[0] == 0
    assert systemd.is_quiet()


@pytest.mark.alone  # it measures time
async def test_systemd_hears_the_watchdog(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as often as it must, also while a drain takes its time."""
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with open_daemon(**PATIENT) as daemon:
        await systemd.hear_until("READY=1")
        async with open_peer(daemon.port) as peer:
            assert await systemd.hear() == "WATCHDOG=1"
            start = trio.current_time()
            for _ in range(5):
                heard = trio.current_time()
                assert await systemd.hear() == "WATCHDOG=1"
                assert trio.current_time() - heard < 0.4
            assert 0.7 < trio.current_time() - start < 2
            daemon.process.send_signal(signal.SIGTERM)
            await systemd.hear_until("STOPPING=1")
            for _ in range(2):
                assert await systemd.hear() == "WATCHDOG=1"
            with pytest.raises(Closed):
                await peer.receive()
        assert (await exit_of(daemon))[0] == 0


@pytest.mark.parametrize("port", [None, 99999])
async def test_systemd_hears_nothing_of_a_failed_start(systemd: Systemd, port: int | None) -> None:
    """It isn't ready if it can't listen, also if only the operators' address is the trouble: taken, or no port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{port or taken.getsockname()[1]}"
        with start(metrics_address=address) as process:
            output, errors = await elsewhere(process.communicate)
    assert (process.returncode, output) == (2, "")
    assert systemd.is_quiet()
    assert errors.startswith("hubbub: ")
    assert errors.count("\n") == 1


# -- the operators' own address


def answer(port: int, path: str, host: str = "localhost") -> tuple[int, str]:
    """Status and body of a GET."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_metrics_address() -> None:
    """There and only there are the metrics; nothing else is there but /health."""
    operators = free_port()
    with open_daemon(metrics_address=f"127.0.0.1:{operators}") as daemon:
        assert daemon.port != operators
        status, body = answer(operators, "/metrics")
        assert status == 200
        assert "\nhubbub_connections 0.0\n" in body
        assert answer(operators, "/health") == answer(daemon.port, "/health") == (200, "ok\n")
        for path in ("/", "/static/hubbub.js", "/chat", "/chat/room", "/nothing"):
            status, body = answer(operators, path)
            assert (status, body) == (404, "404 Not Found: there is nothing here; there are /health, /metrics\n")
        with pytest.raises(HandshakeRefused) as refused:
            async with open_peer(operators):
                pytest.fail("nobody chats here")
        assert refused.value.status == 404
        status, body = answer(daemon.port, "/metrics")
        assert (status, "/metrics" in body) == (404, False)
        assert answer(daemon.port, "/")[0] == 200
        assert answer(operators, "/metrics", "evil.example")[0] == 421
        assert answer(operators, "/metrics", f"127.0.0.1:{operators}")[0] == 200


async def test_metrics_address_over_ipv6_and_with_tls(tmp_path: Path) -> None:
    """It speaks plain HTTP, whatever the clients' port does."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            lack("this machine has no IPv6")
        port = probe.getsockname()[1]
    write_certificate(tmp_path)
    flags = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with open_daemon(*flags, metrics_address=f"[::1]:{port}") as daemon:
        assert "hubbub_connections" in await elsewhere(Daemon(daemon.process, f"http://[::1]:{port}").metrics)


async def test_operators_are_heard_in_a_full_house() -> None:
    """With connections_max served, whoever they are."""
    operators = free_port()
    limits = {"connections_max": 3, "connections_spare": 4}
    with open_daemon(metrics_address=f"127.0.0.1:{operators}", **limits) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(open_peer(daemon.port))
            with pytest.raises(HandshakeRefused) as refused:
                async with open_peer(daemon.port):
                    pytest.fail("it is full")
            assert refused.value.status == 503
            for path in ("/health", "/metrics"):
                assert (await elsewhere(lambda path=path: answer(operators, path)))[0] == 200  # type: ignore[misc]


async def test_operators_are_heard_in_a_crowd_of_idlers() -> None:
    """What waits at the clients' port, even unserved, is no business of the operators' port."""
    operators = free_port()
    limits = {"connections_max": 3, "connections_spare": 4, "head_seconds_max": 600}
    with open_daemon(metrics_address=f"127.0.0.1:{operators}", **limits) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                await stack.enter_async_context(await connect(daemon.port))
            await trio.sleep(0.5)  # so that all slots are taken
            stream = await stack.enter_async_context(await connect(operators))
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with trio.move_on_after(2) as waited:
                assert (await stream.receive_some()).endswith(b"ok\n")
        assert not waited.cancelled_caught


# -- the file limit


@pytest.mark.parametrize(
    ("limit", "settings", "needed"),
    [
        (100, {}, 64 + 64 + 64),
        (191, {}, 64 + 64 + 64),
        (191, {"api_address": "127.0.0.1:0"}, 64 + 64 + 64 + 64),
        (137, {"connections_max": 10}, 64 + 64 + 10),
    ],
)
def test_a_file_limit_that_is_no_use(limit: int, settings: dict[str, object], needed: int) -> None:
    """The server says what it needs, instead of serving hardly anyone; and starts with that."""
    for number, starts in ((limit, False), (needed - 1, False), (needed, True)):
        with start("sh", "-c", f'ulimit -n {number} && exec "$0" "$@"', **settings) as process:
            if starts:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("listening on ")
            else:
                _, errors = process.communicate(timeout=30)
                allowed = f"allowed: from {needed} (ulimit -n, LimitNOFILE) with these settings"
                assert errors == f"hubbub: file limit: got {number}, {allowed}\n"
                assert process.returncode == 2


async def test_small_file_limit() -> None:
    """connections_max is lowered to what fits, with one warning; beyond it there is 503, and nothing breaks."""
    limited = ("sh", "-c", 'ulimit -n 200 && exec "$0" "$@"')
    fitting = 200 - 64 - 64
    with open_doomed_daemon(*limited) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(open_peer(daemon.port)) for _ in range(fitting)]
            with pytest.raises(HandshakeRefused) as refused:
                async with open_peer(daemon.port):
                    pytest.fail("it doesn't fit")
            assert refused.value.status == 503
            assert f"connections_max = {fitting} already".encode() in refused.value.response
            idlers = [await connect(daemon.port) for _ in range(200)]
            await trio.sleep(0.5)
            await peers[0].send("hello")
            for peer in peers:
                assert await peer.receive() == "hello"
            for idler in idlers:
                await trio.aclose_forcefully(idler)
            metrics = await elsewhere(daemon.metrics)
            assert metrics["process_max_fds"] == 200
            assert metrics["hubbub_connections"] == fitting
            daemon.process.send_signal(signal.SIGTERM)
            for peer in peers:
                with pytest.raises(Closed):
                    await peer.receive()
        status, log = await exit_of(daemon)
    assert status == 0
    (warning,) = [entry for entry in log if entry["level"] in ("warning", "error")]
    assert warning["event"] == "connections_max lowered"
    assert (warning["wanted"], warning["now"], warning["file_limit"]) == (10_000, fitting, 200)


# -- what is left of hostile crowds (P7)

GONE_SECONDS_MAX = 5.0
GAUGES = (
    "hubbub_tasks",
    "process_open_fds",
    "hubbub_connections",
    "hubbub_rooms",
    "hubbub_subscriptions",
    "hubbub_outboxes_queued",
    "hubbub_outboxes_queued_bytes",
    "hubbub_inbox_commands",
    "hubbub_inbox_bytes",
    "hubbub_inbox_readers_waiting",
)


class Clinic:
    """A daemon whose figures are compared, before and after."""

    def __init__(self, daemon: Daemon, operators: int) -> None:
        self.daemon = daemon
        self._url = f"http://127.0.0.1:{operators}"

    def figures(self) -> dict[str, float]:
        """What /metrics says at the operators' address."""
        return Daemon(self.daemon.process, self._url).metrics()

    def base_line(self) -> dict[str, float]:
        """What must be as it was."""
        figures = self.figures()
        return {name: figures[name] for name in GAUGES}

    async def until_ended(self, reason: str, count: int) -> None:
        """Wait for so many ends of one kind."""
        await until(lambda: self.figures()[f'hubbub_connections_ended_total{{reason="{reason}"}}'] >= count)


@contextlib.contextmanager
def open_clinic(*flags: str, **settings: object) -> Iterator[Clinic]:
    """Run the daemon; on leaving, everything must be back at its base line within seconds."""
    operators = free_port()
    with open_daemon(*flags, metrics_address=f"127.0.0.1:{operators}", **settings) as daemon:
        clinic = Clinic(daemon, operators)
        before = clinic.base_line()
        yield clinic
        deadline = time.monotonic() + GONE_SECONDS_MAX
        while (after := clinic.base_line()) != before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert after == before
        assert clinic.figures()["hubbub_internal_errors_total"] == 0


async def crowd(count: int, visit: Callable[[int], Awaitable[None]]) -> None:
    """Let so many come, some at a time."""
    limit = trio.CapacityLimiter(50)

    async def come(number: int) -> None:
        async with limit:
            await visit(number)

    with trio.fail_after(2 * SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(come, number)


def write_certificate(folder: Path) -> trustme.CA:
    """Put a certificate into files; who has issued it."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    (folder / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    return authority


async def end_of(stream: trio.SocketStream) -> None:
    """Wait for the end of a connection, whatever still comes."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


@pytest.mark.parametrize("stays", [True, False])
async def test_nothing_is_left_of_failed_tls_handshakes(stays: bool, tmp_path: Path) -> None:
    """Clients that distrust us, speak something else, say nothing, or go in the middle of it."""
    write_certificate(tmp_path)
    flags = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    distrustful = ssl.create_default_context()
    rng = random.Random(7)

    async def visit(number: int) -> None:
        stream = await connect(clinic.daemon.port)
        try:
            if number % 4 == 0:
                tls = trio.SSLStream(stream, distrustful, server_hostname="localhost")
                with pytest.raises(trio.BrokenResourceError):
                    await tls.do_handshake()
            elif number % 4 == 1:
                await stream.send_all(handshake())
            elif number % 4 == 2:
                await stream.send_all(
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(rng.randrange(600))
                )
            if stays:
                await end_of(stream)
        finally:
            await trio.aclose_forcefully(stream)

    with open_clinic(*flags, head_seconds_max=0.5) as clinic:
        await crowd(200, visit)


@pytest.mark.parametrize("stays", [True, False])
async def test_nothing_is_left_of_wrong_proxy_headers(stays: bool) -> None:
    """Noise, a header of another kind, half a header, and none at all."""
    rng = random.Random(8)
    start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"

    async def visit(number: int) -> None:
        stream = await connect(clinic.daemon.port)
        try:
            await stream.send_all(
                [rng.randbytes(rng.randrange(1, 500)), handshake(), start + rng.randbytes(5), b""][number % 4]
            )
            if stays:
                await end_of(stream)
        finally:
            await trio.aclose_forcefully(stream)

    with open_clinic(**PROXIED, head_seconds_max=0.5) as clinic:
        await crowd(200, visit)


async def test_nothing_is_left_of_write_stalls() -> None:
    """Given up without the peers' help: they keep their sockets open and do nothing at all."""
    limits = {"write_stall_seconds_max": 0.5, "outbox_bytes_max": 2**24, "history_size": 0}
    async with contextlib.AsyncExitStack() as stack:
        with open_clinic(**limits) as clinic:
            for _ in range(100):
                await stack.enter_async_context(open_peer(clinic.daemon.port, receive_buffer=RECEIVE_BUFFER))
            ended = 'hubbub_connections_ended_total{reason="write_stall"}'
            async with open_peer(clinic.daemon.port) as publisher:
                with trio.fail_after(2 * SECONDS_MAX):
                    while (figures := await elsewhere(clinic.figures))["hubbub_outboxes_queued"] + figures[ended] < 100:
                        await publisher.send(60_000 * "x")
                        await publisher.receive()
                await publisher.close()
            await clinic.until_ended("write_stall", 100)


async def test_nothing_is_left_of_those_who_were_too_fast() -> None:
    """Paced at first, then told 1008."""
    limits = {"publications_per_second_max": 20, "publications_burst_max": 5, "rate_seconds_max": 0.3}

    async def visit(number: int) -> None:
        async with open_peer(clinic.daemon.port, f"/chat/{number}") as peer:
            with contextlib.suppress(trio.BrokenResourceError):
                await peer.send_raw(client_frame(TEXT, b"quick", mask=bytes(4)) * 1000)
            messages, closed = await peer.receive_until_closed()
            assert (closed.code, closed.reason) == (1008, "too many messages")
            assert 5 <= len(messages) <= 1000

    with open_clinic(**limits) as clinic:
        await crowd(50, visit)
        await clinic.until_ended("too_fast", 50)


async def test_nothing_is_left_of_clients_that_die_in_a_drain() -> None:
    """What ends in a drain ends for good: the exit has nothing to wait for."""
    with open_daemon(**PATIENT) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            streams = [await connect(daemon.port) for _ in range(50)]
            for stream in streams:
                stack.push_async_callback(trio.aclose_forcefully, stream)
            peers = [await shake_hands(stream, handshake()) for stream in streams]
            asked = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            for peer in peers:
                first, payload = await peer.receive_frame()
                assert (first & 0x0F, payload[:2]) == (CLOSE, close_payload(1001))
                await trio.aclose_forcefully(streams[peers.index(peer)])
            assert (await exit_of(daemon))[0] == 0
            assert time.monotonic() - asked < MARGIN_SECONDS
