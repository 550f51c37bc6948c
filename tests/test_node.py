"""The daemon as a process: how it starts, how it ends, and what it does when descriptors run out."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import trio

from hubbub.core.frames import CLOSE, FIN
from hubbub.listen import open_listeners
from peers import SECONDS_MAX, Closed, Peer, connect, handshake, open_peer
from servers import UNHURRIED, Daemon, elsewhere, exit_of, open_daemon
from tools import lack

PATIENT: dict[str, object] = {
    "drain_seconds_max": 60,
    "close_seconds_max": 60,
    "write_stall_seconds_max": 60,
    "outbox_bytes_max": 2**30,
    **UNHURRIED,
}
"""With these nothing but what a test does ends a drain."""


async def logged(daemon: Daemon, event: str) -> None:
    """Wait until the daemon has logged an event."""

    def read() -> None:
        assert daemon.process.stderr is not None
        for line in daemon.process.stderr:
            if json.loads(line)["event"] == event:
                return
        pytest.fail(f"the daemon has ended without {event!r}")

    await elsewhere(read)


@contextlib.contextmanager
def open_doomed_daemon(**settings: object) -> Iterator[Daemon]:
    """A daemon that a test will end badly; `open_daemon` is for all others."""
    environ = {f"HUBBUB_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        assert process.stdout is not None
        yield Daemon(process, process.stdout.readline().removeprefix("listening on ").strip())
    finally:
        process.kill()
        process.communicate()


async def publish_until_it_queues(daemon: Daemon, bytes_min: int) -> list[str]:
    """Publish large messages until so much waits for clients that don't read; what was published."""
    texts: list[str] = []
    async with open_peer(daemon.port) as publisher:
        while (await elsewhere(daemon.metrics))["hubbub_outboxes_queued_bytes"] < bytes_min:
            for _ in range(20):
                texts.append(f"{len(texts)} " + 60_000 * "x")
                await publisher.send(texts[-1])
                assert await publisher.receive() == texts[-1]
    return texts


# -- how it ends


async def test_sigterm_with_open_clients() -> None:
    """Each client gets all that was published before, and Close 1001; the status is 0."""
    with open_daemon(**PATIENT) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(open_peer(daemon.port)) for _ in range(10)]
            texts = [f"message {number}" for number in range(500)]
            for text in texts:
                await peers[0].send(text)
            assert await peers[0].receive_texts(500) == texts
            daemon.process.send_signal(signal.SIGTERM)
            for peer, expected in zip(peers, [[], *(9 * [texts])], strict=True):
                messages, closed = await peer.receive_until_closed()
                assert (messages, closed.code, closed.reason) == (expected, 1001, "server is shutting down")
        assert (await exit_of(daemon))[0] == 0


async def test_sigterm_with_a_client_that_is_behind() -> None:
    """What waits for a client that begins to read only now is sent before the Close."""
    with open_daemon(**PATIENT) as daemon:
        async with open_peer(daemon.port, receive_buffer=4096) as slow:
            texts = await publish_until_it_queues(daemon, 1_000_000)
            daemon.process.send_signal(signal.SIGTERM)
            await logged(daemon, "draining")
            messages, closed = await slow.receive_until_closed()
            assert messages == texts
            assert closed.code == 1001
            assert (await exit_of(daemon))[0] == 0


async def test_nobody_comes_in_during_a_drain() -> None:
    """While one client takes its time with its Close, others are refused by the kernel already."""
    with open_daemon(**PATIENT) as daemon:
        async with open_peer(daemon.port) as peer:
            daemon.process.send_signal(signal.SIGTERM)
            await logged(daemon, "draining")
            first, payload = await peer.receive_frame()
            assert (first, payload[2:]) == (FIN | CLOSE, b"server is shutting down")
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream("127.0.0.1", daemon.port)
            assert daemon.process.poll() is None
            await peer.send("too late")
            await peer.send_frame(CLOSE, payload[:2])
            with pytest.raises(Closed):
                await peer.receive()
        assert (await exit_of(daemon))[0] == 0


async def test_idle_connections_delay_nothing() -> None:
    """Who waits for a request, or hasn't finished one, is let go at once."""
    with open_daemon(**PATIENT, head_seconds_max=600, keepalive_seconds_max=600) as daemon:
        async with contextlib.AsyncExitStack() as stack:
            streams = [await connect(daemon.port) for _ in range(3)]
            for stream, request in zip(
                streams, [b"", b"GET / HTTP", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], strict=True
            ):
                await stack.enter_async_context(stream)
                await stream.send_all(request)
            assert (await streams[2].receive_some()).endswith(b"ok\n")
            daemon.process.send_signal(signal.SIGTERM)
            for stream in streams:
                with trio.fail_after(SECONDS_MAX):
                    assert await stream.receive_some() == b""
            assert (await exit_of(daemon))[0] == 0


async def test_stalled_client_holds_the_exit_no_longer_than_allowed() -> None:
    """After drain_seconds_max whoever is left is cut off, and that is a good end."""
    with open_daemon(**{**PATIENT, "drain_seconds_max": 0.5}) as daemon:
        async with open_peer(daemon.port, receive_buffer=4096):
            await publish_until_it_queues(daemon, 1_000_000)
            start = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            status, log = await exit_of(daemon)
            assert time.monotonic() - start < 15
            assert status == 0
            assert [entry["reason"] for entry in log if entry["event"] == "connection ended"] == ["shutdown"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_cuts_off(number: signal.Signals) -> None:
    """Who insists doesn't wait for stalled clients, and sees in the status that it wasn't a good end."""
    with open_doomed_daemon(**PATIENT) as daemon:
        async with open_peer(daemon.port, receive_buffer=4096):
            await publish_until_it_queues(daemon, 1_000_000)
            start = time.monotonic()
            daemon.process.send_signal(number)
            await logged(daemon, "draining")
            assert daemon.process.poll() is None
            daemon.process.send_signal(signal.SIGTERM)
            status, log = await exit_of(daemon)
            assert time.monotonic() - start < 15
            assert status == 1
            assert log[0]["event"] == "cutting off"


# -- how it starts


async def test_all_addresses_of_a_name() -> None:
    """Port 0 is one free port for all addresses of the host name, and each is announced."""
    expected = []
    for listener in open_listeners("localhost", 0):
        expected.append(listener.getsockname()[0])
        listener.close()
    with open_daemon("--host", "localhost") as daemon:
        assert daemon.process.stdout is not None
        more = [daemon.process.stdout.readline() for _ in expected[1:]]
        urls = [daemon.url, *(line.removeprefix("listening on ").strip() for line in more)]
        names = [f"[{address}]" if ":" in address else address for address in expected]
        assert urls == [f"http://{name}:{daemon.port}" for name in names]
        assert daemon.port > 0
        for address in expected:
            async with await trio.open_tcp_stream(address, daemon.port) as stream:
                await said_health(stream)


async def said_health(stream: trio.SocketStream) -> None:
    """See that /health is answered."""
    await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with trio.fail_after(SECONDS_MAX):
        assert (await stream.receive_some()).endswith(b"ok\n")


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_address_families(host: str, shown: str) -> None:
    """Both families work, and the one of the bound address is answered to as Host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            lack("this machine doesn't have that address")
    with open_daemon("--host", host) as daemon:
        assert daemon.url == f"http://{shown}:{daemon.port}"
        assert (await elsewhere(daemon.metrics))["hubbub_connections"] == 0


async def test_raises_its_file_limit() -> None:
    """A low soft limit is no limit: the daemon takes the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with open_daemon() as daemon:
            assert (await elsewhere(daemon.metrics))["process_max_fds"] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def leave_descriptors(pid: int, count: int) -> None:
    """Lower a process's file limit so that it can open `count` more."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in range(2**20) if number not in used)
    last = [next(free) for _ in range(count)][-1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (last + 1, last + 1))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
async def test_out_of_descriptors() -> None:
    """It says so once, serves whom it has, and lets the others in as soon as descriptors are free again."""
    with open_daemon() as daemon:
        async with contextlib.AsyncExitStack() as stack:
            operator, leaving, *outside = [trio.SocketStream(trio.socket.socket()) for _ in range(5)]
            for stream in (operator, leaving, *outside):
                await stack.enter_async_context(stream)
            await operator.socket.connect(("127.0.0.1", daemon.port))
            await said_health(operator)
            leave_descriptors(daemon.process.pid, 3)
            inside = [await stack.enter_async_context(open_peer(daemon.port)) for _ in range(2)]
            for stream in (leaving, *outside):
                await stream.socket.connect(("127.0.0.1", daemon.port))
                await stream.send_all(handshake())
            inside.append(await accepted(leaving))
            await logged(daemon, "can't accept")
            with trio.move_on_after(0.7) as waited:  # several more attempts of the daemon's
                await outside[0].receive_some()
            assert waited.cancelled_caught
            await inside[0].send("hello")
            for peer in inside:
                assert await peer.receive() == "hello"
            await said_health(operator)
            await leaving.aclose()
            inside[2] = await accepted(outside[0])  # the kernel keeps them in their order
            await inside[0].send("welcome")
            for peer in inside:
                assert await peer.receive() == "welcome"
        daemon.process.send_signal(signal.SIGTERM)
        _, log = await exit_of(daemon)
        assert "can't accept" not in [entry["event"] for entry in log]


async def accepted(stream: trio.SocketStream) -> Peer:
    """The client whose handshake on that stream is answered now."""
    with trio.fail_after(SECONDS_MAX):
        answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101 ")
    return Peer(stream, answer.partition(b"\r\n\r\n")[2])
