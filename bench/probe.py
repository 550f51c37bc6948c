"""A look at a running server, once in a while, without waiting for it: /metrics, memory, descriptors, CPU time."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Mapping

from dialects import BenchError
from loadgen import Target, cpu_time, resident_kb

SHOWN = ("hubbub_tasks", "hubbub_subscriptions", "hubbub_connections", "hubbub_outboxes_queued_bytes")


def parse(text: str) -> dict[str, float]:
    """Metrics by name and labels, as they are written there."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def metrics(target: Target) -> dict[str, float]:
    """The server's /metrics, by name and labels as they are written there."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        status, text = answer.status, answer.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise BenchError(f"/metrics was answered by {error!r}") from error
    finally:
        connection.close()
    if status != 200 or "\nhubbub_connections " not in text:
        where = f"http://{target.host}:{target.port}/metrics"
        raise BenchError(f"{where} (status {status}) shows no figures of hubbub: its metrics_address must be empty")
    return parse(text)


def endings(target: Target, before: Mapping[str, int] | None = None) -> dict[str, int]:
    """Connections that ended, by reason, beyond those that had ended before."""
    name = 'hubbub_connections_ended_total{reason="'
    now = metrics(target)
    counts = {key[len(name) : -2]: int(now[key]) for key in now if key.startswith(name)}
    since = {reason: count - (before or {}).get(reason, 0) for reason, count in counts.items()}
    return {reason: count for reason, count in since.items() if count}


def listen_drops() -> int:
    """How many connections the kernel has turned away since boot, as an accept queue was full: they try again after
    1 s, 3 s, 7 s …
    """
    with open("/proc/net/netstat") as file:
        names, values = [line.split() for line in file if line.startswith("TcpExt:")]
    return int(values[names.index("ListenDrops")])


class Probe:
    """Asks for /metrics on one connection; the answer is there when it is.

    *Resource handling*: a context manager, which closes the connection.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket = socket.create_connection((target.host, target.port), 10)
        self._socket.setblocking(False)
        self._answer, self._asked = b"", False
        self.metrics: dict[str, float] = {}  # the last answer
        self._cpu = cpu_time(target.pid).used if target.pid else 0

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Ask, unless an answer is still due."""
        if not self._asked:
            self._asked, self._answer = True, b""
            host = f"{self._target.host}:{self._target.port}"
            self._socket.send(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    def poll(self) -> None:
        """Take in what has come."""
        if not self._asked:
            return
        with contextlib.suppress(BlockingIOError):
            self._answer += self._socket.recv(1 << 16)
        head, blank, body = self._answer.partition(b"\r\n\r\n")
        if blank and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._asked, self.metrics = False, parse(body.decode())

    def sample(self) -> dict[str, float]:
        """The server now; what /metrics said is of the last answer. Without its process, only that."""
        told = {name.removeprefix("hubbub_"): self.metrics[name] for name in SHOWN if name in self.metrics}
        if not (pid := self._target.pid):
            return told
        used = cpu_time(pid).used
        spent, self._cpu = used - self._cpu, used
        memory, descriptors = resident_kb(pid) / 1024, len(os.listdir(f"/proc/{pid}/fd"))
        return {"memory_mb": memory, "descriptors": descriptors, "cpu_ms": spent / 1e6} | told


def growth(times: list[float], values: list[float]) -> float:
    """How much it grows over the time, as a share of its mean: the least-squares slope times the time."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - middle) ** 2 for time in times)
    if not spread or not mean:
        return 0.0
    slope = sum((time - middle) * (value - mean) for time, value in zip(times, values, strict=True)) / spread
    return slope * (times[-1] - times[0]) / mean
