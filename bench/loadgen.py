"""The load generator the benchmarks share: daemon, connections, readers of /proc, checks, table. Linux only.

Its loop never sleeps (asleep, it would make the daemon pay for waking it), and every result is checked:
a figure whose deliveries were not complete, verbatim and in one order is not a figure.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple, Self

from dialects import CLOSE, STAMP, TEXT, BenchError, Dialect, parse_frames

if sys.platform != "linux":
    sys.exit("the benchmarks need Linux (epoll, MSG_TRUNC, /proc)")

GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
clock = time.perf_counter_ns
_DISCARD_MAX, _KEEP_MAX = 1 << 20, 1 << 16
_discarded = bytearray(_DISCARD_MAX)  # MSG_TRUNC drops bytes without ever writing here


# The machine: open files, cores, CPU time, memory.


def raise_file_limit(needed: int) -> None:
    """Raise the limit of open files to the hard limit; a daemon started later inherits it."""
    import resource  # late, as it is missing where the line about Linux is to be read

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(f"{needed} open files are needed and the hard limit is {hard} (ulimit -Hn)")


def two_cores() -> tuple[int, int] | None:
    """A core for the daemon and one for the generator; None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else None


def pin(pid: int, core: int) -> None:
    """Keep a process on one core: its threads, and those they start later."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


class ThreadTime(NamedTuple):
    """Nanoseconds spent on a core (user and system), and ready to run but waiting for one."""

    used: int
    waited: int


@dataclass(frozen=True)
class CpuTime:
    """What the threads of a process have used and waited so far, by their ids; of an unknown process: nothing."""

    threads: Mapping[int, ThreadTime] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """By all threads, in nanoseconds."""
        return sum(thread.used for thread in self.threads.values())

    def disturbed_since(self, before: CpuTime) -> int:
        """For how many nanoseconds others kept the process from its core, at least.

        The threads share one core, so they wait for each other, too: what a thread has waited counts only where it is
        more than all its siblings have used meanwhile.
        """
        none = ThreadTime(0, 0)
        threads = [
            ThreadTime(*(now - then for now, then in zip(thread, before.threads.get(number, none), strict=True)))
            for number, thread in self.threads.items()
        ]
        used = sum(thread.used for thread in threads)
        return max((0, *(thread.waited + thread.used - used for thread in threads)))


def cpu_time(pid: int) -> CpuTime:
    """What the threads of a process have used so far: nanoseconds, where `stat` has clock ticks."""
    threads = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                used, waited, _ = map(int, file.read().split())
            threads[int(thread)] = ThreadTime(used, waited)
    return CpuTime(threads)


def resident_kb(pid: int) -> int:
    """The resident set, counted page by page: the cheap counter in `status` may be 256 KB off."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


# The daemon.


@dataclass(frozen=True)
class Target:
    """Where the room is and, if known, the process that serves it."""

    host: str
    port: int
    path: str
    pid: int | None = None


class Daemon:
    """The daemon under test: started on entry, a `Target` once it listens, stopped by SIGTERM on exit.

    *Error handling*: if it ended by itself, or not with status 0, there is no result, even if nothing else was wrong.
    """

    command = (sys.executable, "-m", "hubbub", "serve", "--port", "0", "--log-level", "warning")

    def __init__(
        self, path: str, deadline: int, environment: Mapping[str, str], core: int | None, arguments: Sequence[str] = ()
    ) -> None:
        self._path, self._deadline, self._core, self._arguments = path, deadline, core, arguments
        self._environment = {**environment, **os.environ}  # what the caller's shell says wins

    def __enter__(self) -> Target:
        self._output = tempfile.TemporaryFile()  # not a pipe: nobody would read it
        self._process = subprocess.Popen(
            (*self.command, *self._arguments),
            env=self._environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            process_group=0,  # whoever presses Ctrl-C stops the benchmark, which then stops the daemon
        )
        try:
            if self._core is not None:
                pin(self._process.pid, self._core)
            while not (said := re.search(rb"listening on http://([^:/\s]+):(\d+)", self._said())):
                if self._process.poll() is not None or clock() > self._deadline:
                    raise BenchError("the daemon never said where it listens, but " + self._quoted())
                time.sleep(0.02)
        except BaseException:
            self._stop()
            raise
        return Target(said[1].decode(), int(said[2]), self._path, self._process.pid)

    def __exit__(self, *exception: object) -> None:
        ended_itself = self._process.poll() is not None
        self._stop()
        with self._output:
            if ended_itself or self._process.returncode:
                own = " by itself" * ended_itself
                fault(f"the daemon ended{own} with {self._process.returncode}, and {self._quoted()}", exception)

    def _said(self) -> bytes:
        return os.pread(self._output.fileno(), 1 << 16, 0)

    def _quoted(self) -> str:
        return f"said: {self._said().decode(errors='replace').strip()[-1500:] or 'nothing'}"

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)  # on a busy core, closing 10,000 connections takes its time
        except subprocess.TimeoutExpired:
            notice("the daemon ignored SIGTERM for 60 s and was killed")
        finally:
            self._process.kill()  # unless it has ended
            self._process.wait()


# Connections.


def connect_all(
    target: Target,
    count: int,
    deadline: int,
    progress: Progress,
    join: Callable[[socket.socket], None],
    in_flight: int = 100,
) -> list[socket.socket]:
    """Open WebSocket connections, a batch at a time so that the accept queue is never overrun, and `join` with each."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            batch = range(len(sockets), min(count, len(sockets) + in_flight))
            keys = [base64.b64encode(os.urandom(16)).decode() for _ in batch]
            for key in keys:
                left = max(0.001, (deadline - clock()) / 1e9)
                sockets.append(connection := socket.create_connection((target.host, target.port), left))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(
                    f"GET {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
                    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
                )
            for index, key in zip(batch, keys, strict=True):
                _finish_handshake(sockets[index], key)
                join(sockets[index])
                sockets[index].setblocking(False)
            progress.show("connecting", len(sockets) / count)
    except (OSError, ValueError, LookupError, BenchError) as error:  # of these, two are of an answer that isn't one
        close_all(sockets)
        raise BenchError(f"connecting, with {len(sockets)} of {count} open: {error}") from error
    return sockets


def _finish_handshake(connection: socket.socket, key: str) -> None:
    answer = b""
    while b"\r\n\r\n" not in answer:
        if not (byte := connection.recv(1)):  # no further than the blank line: frames may follow it
            raise BenchError(f"closed in the handshake, after {answer!r}")
        answer += byte
    accepted = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    if not answer.startswith(b"HTTP/1.1 101 ") or base64.b64encode(accepted) not in answer:
        raise BenchError(f"the handshake was answered by {answer.splitlines()[0].decode(errors='replace')!r}")


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Say goodbye (close code 1000) on every connection, and close it."""
    for connection in sockets:
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(b"\x88\x82\0\0\0\0\x03\xe8")
        connection.close()


class Subscriber:
    """One connection in the room. It counts what it is handed; a sampled one keeps every byte of it."""

    __slots__ = ("index", "kept", "received", "sampled", "socket", "times", "totals", "unsent")

    def __init__(self, index: int, connection: socket.socket, sampled: bool) -> None:
        self.index, self.socket, self.sampled = index, connection, sampled
        self.unsent = bytearray()
        self.forget()

    def forget(self) -> None:
        """Begin a new run."""
        self.received, self.kept = 0, bytearray()
        self.times, self.totals = array("q"), array("q")  # of each read: when, and bytes received by then

    def receive(self) -> int:
        """Take in all that is there (epoll is edge-triggered); the number of bytes."""
        before, limit = self.received, _KEEP_MAX if self.sampled else _DISCARD_MAX
        while True:
            try:
                if self.sampled:
                    data = self.socket.recv(limit)
                    self.kept += data
                    count = len(data)
                else:
                    count = self.socket.recv_into(_discarded, limit, socket.MSG_TRUNC)
            except (BlockingIOError, ConnectionResetError):
                break
            self.received += count
            if count < limit:
                break
        self.times.append(clock())
        self.totals.append(self.received)
        return self.received - before

    def send(self, data: bytes = b"") -> None:
        """Send in one go, after what the kernel wouldn't take before."""
        self.unsent += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # epoll tells, too
            del self.unsent[: self.socket.send(self.unsent)]


class Publisher(Subscriber):
    """A connection that publishes and isn't in the room. What it is answered is kept, and is no delivery."""

    __slots__ = ()

    def __init__(self, index: int, connection: socket.socket) -> None:
        super().__init__(index, connection, sampled=True)

    @property
    def answers(self) -> int:
        """How many answers came."""
        return self.kept.count(b'{"id":')

    def receive(self) -> int:
        """Take in all that is there; a refusal is told at once, as nobody will get what was refused."""
        start = max(0, len(self.kept) - 8)
        super().receive()
        if b'"error":' in self.kept[start:]:
            raise BenchError(f"publisher {self.index} was refused: {bytes(self.kept[start:])[:200]!r}")
        return 0


# The loop, and the checks.


@dataclass(frozen=True)
class Run:
    """A run that passed its checks; a delivery is one publication handed to one subscriber."""

    publications: int
    deliveries: int
    seconds: float  # from the start to the last delivery
    latencies_ms: list[float]  # sorted, one per delivery unless the collector counts something else


class Collector:
    """All subscribers of a room, read in one busy-polled loop, and what was published to them.

    With up to 32 subscribers all are sampled, else `sampled` of them; of the rest only bytes are counted. Who publishes
    is in the room, unless there are `publishers` apart.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        publishers: Sequence[socket.socket],
        dialect: Dialect,
        deadline: int,
        progress: Progress,
        sampled: int = 8,
    ) -> None:
        last = len(sockets) - 1
        chosen = range(last + 1) if last < 32 else {i * last // (sampled - 1) for i in range(sampled)}
        self.subscribers = [Subscriber(i, connection, i in chosen) for i, connection in enumerate(sockets)]
        self._apart = [Publisher(i, connection) for i, connection in enumerate(publishers)]
        self._publishers: Sequence[Subscriber] = self._apart or self.subscribers
        self._by_fd = {one.socket.fileno(): one for one in (*self.subscribers, *self._apart)}
        self._epoll = select.epoll()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self._dialect, self._deadline, self._progress = dialect, deadline, progress
        self._published = 0
        self.begin("", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._epoll.close()

    def begin(self, label: str, seconds: float) -> None:
        """A new run: nothing published, nothing received."""
        self._label, self._planned_ns, self._next_tick = label, seconds * 1e9, 0
        self._dialect.begin(self._published)
        self._sent: list[bytes] = []
        self._behind: set[Subscriber] = set()
        self._published = self.received = 0
        for one in self._by_fd.values():
            one.forget()
        self.start()

    def start(self) -> None:
        """Time counts from here."""
        self._started = clock()

    def now(self) -> int:
        """Nanoseconds since the start."""
        return clock() - self._started

    def frame(self, publisher: int, at: int) -> bytes:
        """The next publication, to be published at a time after the start, as a frame."""
        message = (STAMP % (len(self._sent), publisher, at)).ljust(self._dialect.message_size, b"x")
        self._sent.append(message)
        return self._dialect.frame(message)

    def publish(self, publisher: int, frames: bytes, count: int = 1) -> None:
        """Send one or more frames, in one go."""
        self._published += count
        subscriber = self._publishers[publisher]
        subscriber.send(frames)
        if subscriber.unsent:
            self._behind.add(subscriber)

    def collect(self) -> None:
        """One pass of the loop."""
        for subscriber in list(self._behind):
            subscriber.send()
            if not subscriber.unsent:
                self._behind.remove(subscriber)
        for fd, event in self._epoll.poll(0, 1024):
            subscriber = self._by_fd[fd]
            self.received += subscriber.receive()
            if event & GONE:
                raise BenchError(self._farewell(subscriber))
        if (now := clock()) >= self._next_tick:
            self._next_tick = now + 200_000_000
            self._progress.show(self._label, (now - self._started) / self._planned_ns)
            if now > self._deadline:
                faults = self._count_faults() or ["everyone has what was published so far"]
                raise BenchError("\n".join(["the deadline has passed", *_first(faults)]))

    def drain(self) -> None:
        """Collect until everyone has everything published."""
        due = self._dialect.due(self._published) * len(self.subscribers)
        while self.received < due:
            self.collect()

    def settle(self) -> None:
        """Collect until nothing has come for 50 ms, and publishers apart have their answers."""
        received, until = -1, 0
        while received != self.received or clock() < until:
            if received != self.received:
                received, until = self.received, clock() + 50_000_000
            self.collect()
        while self._apart and sum(one.answers for one in self._apart) < self._published:
            self.collect()

    def finish(self) -> Run:
        """Check the run: complete, verbatim, in one order."""
        streams = {one.index: bytes(one.kept) for one in self.subscribers if one.sampled}
        order, faults = check_order(streams, self._sent, self._dialect)
        if faults := self._count_faults() + faults:
            raise BenchError("\n".join(_first(faults)))
        seconds = (max(s.times[-1] for s in self.subscribers) - self._started) / 1e9
        return Run(len(order), len(order) * len(self.subscribers), seconds, sorted(self._latencies_ms(order)))

    def _latencies_ms(self, order: Sequence[int]) -> list[float]:
        """Of all deliveries, which were in this order: from the intended time of publishing until read."""
        intended = [int(self._sent[number][15:30]) for number in order]
        ends = self._ends()
        latencies: list[float] = []
        for subscriber in self.subscribers:
            position = 0
            for at, total in zip(subscriber.times, subscriber.totals, strict=True):
                complete = bisect_right(ends, total, position)
                latencies += [(at - self._started - due) / 1e6 for due in intended[position:complete]]
                position = complete
        return latencies

    def _ends(self) -> list[int]:
        """Of each publication: how many bytes a subscriber has once it has that."""
        return [self._dialect.due(count + 1) for count in range(self._published)]

    def _count_faults(self) -> list[str]:
        due, faults = self._dialect.due(self._published), []
        sizes = {self._dialect.due(1), due - self._dialect.due(self._published - 1)} if due else {0}
        size = " to ".join(map(str, sorted(sizes)))
        for subscriber in self.subscribers:
            if lack := due - subscriber.received:
                what = f"lacks {lack}" if lack > 0 else f"has {-lack} too many"
                faults.append(f"connection {subscriber.index} {what} of {due} bytes ({size} a delivery)")
        return faults + self._answer_faults()

    def _answer_faults(self) -> list[str]:
        faults, count = [], 0
        for publisher in self._apart:
            name = b"%04d" % publisher.index
            mine = (number for number, message in enumerate(self._sent) if message[10:14] == name)
            answers = list(self._dialect.answers(bytes(publisher.kept)))
            count += len(answers)
            wrong = next((f"{a}, not {n}" for a, n in zip_longest(answers, mine) if a not in (n, None)), None)
            if wrong:
                faults.append(f"publisher {publisher.index} was answered {wrong}")
        if self._apart and count != self._published:
            faults.append(f"publishers have {count} answers to {self._published} publications")
        return faults

    def _farewell(self, subscriber: Subscriber) -> str:
        frames = parse_frames(bytes(subscriber.kept))
        code = next((int.from_bytes(payload[:2], "big") for first, payload in frames if first == CLOSE), None)
        delivered = bisect_right(self._ends(), subscriber.received)
        who, what = "connection", f"{delivered} of {self._published} publications delivered"
        if isinstance(subscriber, Publisher):
            who, what = "publisher", f"{subscriber.answers} answered"
        return f"{who} {subscriber.index} was closed by the server ({code or 'no'} close code seen) with {what}"


def check_order(streams: Mapping[int, bytes], sent: Sequence[bytes], dialect: Dialect) -> tuple[list[int], list[str]]:
    """The order in which the sampled subscribers saw the publications, and all that is wrong with it."""
    numbers = {payload: number for number, payload in enumerate(sent)}
    faults, order = [], []

    def parse(stream: bytes) -> Iterator[int | str]:
        for position, (first, payload) in enumerate(parse_frames(stream)):
            message = dialect.message(position, payload) if first == TEXT else b""
            if isinstance(message, str):
                yield message
            else:
                known = numbers.get(message)
                yield f"a frame never published ({first:#x} {payload[:40]!r})" if known is None else known

    common = Counter(streams.values()).most_common(1)[0][0]
    model = next(index for index, stream in streams.items() if stream == common)
    newest: dict[bytes, int] = {}  # of each publisher
    for position, number in enumerate(parse(common)):
        if isinstance(number, str):
            faults.append(f"connection {model}, position {position}: {number}")
            continue
        order.append(number)
        publisher = sent[number][10:14]
        if number <= newest.get(publisher, -1):
            faults.append(f"position {position}: {number} after {newest[publisher]} of the same publisher")
        newest[publisher] = number
    for index, stream in streams.items():
        if stream != common:
            pairs = enumerate(zip_longest(parse(stream), parse(common), fillvalue="nothing"))
            seen = next((f"{p}: {a}, but connection {model} {b}" for p, (a, b) in pairs if a != b), "the end")
            faults.append(f"connection {index} saw another order, from position {seen}")
    return order, faults


def _first(faults: Sequence[str], count: int = 10) -> list[str]:
    more = [f"and {len(faults) - count} more"] if len(faults) > count else []
    return [*faults[:count], *more]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values doesn't exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# What is printed.


def notice(text: str) -> None:
    """Tell what qualifies the figures but isn't one."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may be there
    print(f"{erase}notice: {text}", file=sys.stderr)


def fault(text: str, exception: Sequence[object]) -> None:
    """What went wrong, known at the end of a `with` block: raised, unless what ended the block is told instead."""
    if exception[0] is None:
        raise BenchError(text)
    notice(text)


class Progress:
    """A bar on standard error, if that is a terminal."""

    def __init__(self, prefix: str = "") -> None:
        self._shown, self._prefix = sys.stderr.isatty(), prefix

    def show(self, label: str, share: float) -> None:
        if self._shown:
            done = int(30 * min(1.0, share))
            print(f"\r\x1b[K{self._prefix}{label:<12}[{'#' * done:<30}]", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, right-aligned."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in (titles, *rows))
