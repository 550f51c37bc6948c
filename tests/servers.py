"""Servers for tests: a node in this process, or the daemon as its users start it."""

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import msgspec
import trio

from hubbub.config import Settings
from hubbub.connection.poller import open_poller
from hubbub.daemon import Running, serve_socket
from hubbub.listen import open_listeners, run_accept_loop
from hubbub.node import Node, open_node
from peers import SECONDS_MAX

T = TypeVar("T")

UNHURRIED = {
    "publications_per_second_max": 10_000_000,
    "publications_burst_max": 10_000_000,
    "publication_bytes_per_second_max": 2**30,
    "publication_bytes_burst_max": 2**30,
    "control_frames_per_second_max": 10_000_000,
}
"""Settings for tests of other things than rates: nobody is ever too fast."""

QUICK = {
    "close_seconds_max": 2.0,
    "drain_seconds_max": 2.0,
    "linger_seconds_max": 0.5,
    "insecure": True,  # permissions are another matter
    **UNHURRIED,
}
"""Settings for tests: the deadlines of an end are reached in seconds, not in minutes."""


class Server(msgspec.Struct):
    """A node that listens on a free port of loopback."""

    node: Node
    port: int


@contextlib.asynccontextmanager
async def open_server(*, tls: ssl.SSLContext | None = None, **overrides: object) -> AsyncIterator[Server]:
    """Run a node with real sockets in this process; everything is cut off on leaving."""
    settings = Settings(**{**QUICK, "port": 0, **overrides})  # type: ignore[arg-type]
    (listener,) = open_listeners("127.0.0.1", 0)
    running = Running(settings, tls, lambda: settings)
    slots = trio.Semaphore(settings.connections_max + settings.connections_spare)
    with listener, contextlib.nullcontext() if tls else open_poller() as poller:
        async with open_node(settings, random.Random(0), poller) as (node, connections):

            def start(connected: socket.socket, peer: str) -> None:
                connections.start_soon(serve_socket, node, running, slots, connected, peer)

            async with trio.open_nursery() as listening:
                listening.start_soon(run_accept_loop, listener, slots, start)
                yield Server(node, listener.getsockname()[1])
                listening.cancel_scope.cancel()
            connections.cancel_scope.cancel()


async def until_quiet(node: Node, seconds_max: float = 5.0) -> None:
    """Wait until nothing of any connection is left in the node.

    Raises:
        AssertionError: something is, after that time (promise P7).
    """
    with trio.move_on_after(seconds_max):
        while leftovers(node):
            await trio.sleep(0.01)
    assert not leftovers(node)


def leftovers(node: Node) -> dict[str, int]:
    """Return what isn't at its base line."""
    hub = node.hub.statistics()
    counts = {
        "serving": node.front_door.serving,
        "connections": len(node.connections),
        "rooms": hub.rooms,
        "subscriptions": hub.subscriptions,
        "inbox bytes": node.inbox.statistics().bytes,
        "leaves": node.inbox.statistics().leaves,
    }
    return {name: count for name, count in counts.items() if count}


class Daemon(msgspec.Struct):
    """`hubbub serve` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def metrics(self) -> dict[str, float]:
        """Return what /metrics says, by series."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@contextlib.contextmanager
def open_daemon(*flags: str, **settings: object) -> Iterator[Daemon]:
    """Start the daemon on a free port; end it with SIGTERM and see it end well, without a traceback."""
    environ = {f"HUBBUB_{name.upper()}": str(value) for name, value in {**UNHURRIED, **settings}.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), (line, process.stderr.read() if process.stderr else "")
        yield Daemon(process, line.removeprefix("listening on ").strip())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors, errors
    finally:
        process.kill()
        if process.stderr is not None and not process.stderr.closed:
            sys.stderr.write(process.communicate()[1])  # shown by pytest when the test fails


async def elsewhere(wait: Callable[[], T]) -> T:
    """Wait for the daemon in a thread, so that its clients go on."""
    with trio.fail_after(2 * SECONDS_MAX):
        return await trio.to_thread.run_sync(wait, abandon_on_cancel=True)


async def exit_of(daemon: Daemon) -> tuple[int, list[dict[str, object]]]:
    """Wait for the daemon's end; its status, and what it has logged since the log was last looked at."""

    def read() -> tuple[int, str]:
        assert daemon.process.stderr is not None
        errors = daemon.process.stderr.read()
        return daemon.process.wait(), errors

    status, errors = await elsewhere(read)
    assert "Traceback" not in errors
    return status, [json.loads(line) for line in errors.splitlines()]
