"""Promise P9: what clients can make the daemon hold is what the settings say, and 32 MiB.

Measured on the daemon's process: how much more of it is resident at the worst moment than before. Everything here
is sent by blocking sockets, so that a test can have thousands of them at little cost.
"""

import contextlib
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hubbub.config import Settings
from hubbub.core.frames import BINARY, FIN, MASKED
from hubbub.hub.waiting import PIECE_BYTES_MAX
from peers import client_frame, handshake
from servers import Daemon, open_daemon
from tools import lack

pytestmark = pytest.mark.alone  # a daemon on a busy machine falls behind and holds more; ten thousand sockets

MIB = 2**20
SLACK_BYTES = 32 * MIB
CONNECTION_BYTES_MAX = 20_000
"""What an idle connection may cost: 14,900 bytes were measured with ten thousand."""
LOOK_SECONDS = 0.02
READERS = 100
SLOW = 'hubbub_connections_ended_total{reason="slow_consumer"}'


class Memory:
    """The resident memory of a daemon, looked at again and again while used as a context manager."""

    def __init__(self, daemon: Daemon) -> None:
        self._status = Path(f"/proc/{daemon.process.pid}/status")
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look)
        self._before = self.now()
        self._peak = self._before

    def now(self) -> int:
        """Return what is resident now."""
        (line,) = (line for line in self._status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    @property
    def growth(self) -> int:
        """How much more it has been than in the beginning."""
        return self._peak - self._before

    def __enter__(self) -> "Memory":
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._peak = max(self._peak, self.now())


@contextlib.contextmanager
def open_sockets(port: int, count: int, *, tight: bool = False) -> Iterator[list[socket.socket]]:
    """Connect so many; `tight`: such that the kernels keep little for them (see `test_cleanup.connect_tightly`)."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            if tight:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            connection.settimeout(20)
            connection.connect(("127.0.0.1", port))
            sockets.append(connection)
        yield sockets


def shake_hands(sockets: Sequence[socket.socket], path: Callable[[int], str]) -> None:
    """Open WebSockets on them, 100 at a time; `path` gets the number of each."""
    for start in range(0, len(sockets), 100):
        some = sockets[start : start + 100]
        for number, connection in enumerate(some, start):
            connection.sendall(handshake(path(number)))
        for connection in some:
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = connection.recv(1024)
                assert data, answer
                answer += data
            assert answer.startswith(b"HTTP/1.1 101 "), answer


def send_for(seconds: float, sockets: Sequence[socket.socket], data: bytes) -> int:
    """Send `data` on all of them again and again, as fast as they take it; return how many bytes they took."""
    sent = 0
    at = dict.fromkeys(sockets, 0)
    view = memoryview(data)
    poll = select.epoll()
    by_file = {connection.fileno(): connection for connection in sockets}
    for connection in sockets:
        connection.setblocking(False)
        poll.register(connection, select.EPOLLOUT)
    until = time.monotonic() + seconds
    with poll:
        while by_file and (left := until - time.monotonic()) > 0:
            for file, _ in poll.poll(left):
                connection = by_file[file]
                try:
                    taken = connection.send(view[at[connection] :])
                except BlockingIOError:
                    continue
                except OSError:
                    poll.unregister(file)
                    del by_file[file]
                    continue
                sent += taken
                at[connection] = (at[connection] + taken) % len(data)
    return sent


def frame(payload: bytes) -> bytes:
    """Return a binary message."""
    return client_frame(BINARY, payload, mask=bytes(4))


@pytest.mark.parametrize(
    ("rooms", "total"),
    [(1, 16 * MIB), (READERS, 16 * MIB), (READERS, 256 * MIB)],
    ids=["one room", "a room each", "a room each, by the bounds of each outbox"],
)
def test_stalled_readers(rooms: int, total: int) -> None:
    """They hold outboxes_bytes_max together, and each outbox_bytes_max: the fullest are evicted.

    In one room all outboxes hold the same pieces; in rooms of their own nothing is shared. (What they say to
    themselves there they don't read, either.)
    """
    settings = {"outboxes_bytes_max": total, "history_size": 0, "write_stall_seconds_max": 60.0, "log_level": "warning"}
    with open_daemon(**settings) as daemon:
        with open_sockets(daemon.port, READERS, tight=True) as readers:
            shake_hands(readers, lambda number: f"/chat/{number % rooms}")
            with Memory(daemon) as memory:
                send_for(1.5, readers[: max(2, rooms)], frame(bytes(30_000)))
                queued = daemon.metrics()["hubbub_outboxes_queued_bytes"]
        evicted = all_ended(daemon, READERS)[SLOW]
    limits = Settings()
    allowed = min(total, READERS * (limits.outbox_bytes_max + PIECE_BYTES_MAX + limits.message_bytes_max))
    sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
    assert evicted >= READERS / 2
    assert queued <= allowed
    # What waits for the hub, what it has taken and not handed out yet included.
    assert memory.growth <= allowed + limits.inbox_bytes_max + SLACK_BYTES


def test_stalled_newcomers_with_history() -> None:
    """What newcomers ask for counts in the total: whoever doesn't read it is evicted, and gives it back."""
    total = 16 * MIB
    settings = {"outboxes_bytes_max": total, "write_stall_seconds_max": 60.0, "log_level": "warning"}
    with open_daemon(**settings) as daemon, open_sockets(daemon.port, 1) as (talker,):
        shake_hands([talker], lambda _: "/chat/busy")
        for _ in range(40):
            talker.sendall(frame(bytes(30_000)))
        with Memory(daemon) as memory, open_sockets(daemon.port, READERS, tight=True) as readers:
            for reader in readers:
                reader.sendall(handshake("/chat/busy?history=100"))
            time.sleep(1)
            queued = daemon.metrics()["hubbub_outboxes_queued_bytes"]
    sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
    assert queued <= total + MIB
    # The limits that this fills: the outboxes', the inbox's, the one room's history.
    limits = Settings()
    assert memory.growth <= total + limits.inbox_bytes_max + limits.history_bytes_max + SLACK_BYTES


def all_ended(daemon: Daemon, count: int) -> dict[str, float]:
    """Return the metrics once so many connections have ended."""
    deadline = time.monotonic() + 10
    while True:
        metrics = daemon.metrics()
        if sum(value for name, value in metrics.items() if name.startswith("hubbub_connections_ended_total")) >= count:
            return metrics
        assert time.monotonic() < deadline, metrics
        time.sleep(0.05)


def test_floods_before_the_upgrade() -> None:
    """500 heads that never end are cut off at head_bytes_max each; so are those that go on behind the answer."""
    with open_daemon(log_level="warning") as daemon, open_sockets(daemon.port, 500) as floods:
        for flood in floods:
            flood.sendall(b"GET / HTTP/1.1\r\n")
        with Memory(daemon) as memory:
            sent = send_for(2.0, floods, b"X-Endless: yes\r\n" * 4096)
        sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
        assert sent > 500 * Settings().head_bytes_max
        assert memory.growth <= 500 * (Settings().head_bytes_max + CONNECTION_BYTES_MAX) + SLACK_BYTES


def test_frames_that_declare_an_eternity() -> None:
    """A frame of 2^62 bytes is refused when it is declared, and what comes of it isn't kept."""
    with open_daemon(log_level="warning", close_seconds_max=2.0) as daemon, open_sockets(daemon.port, 20) as peers:
        shake_hands(peers, lambda _: "/chat/hostile")
        for peer in peers:
            peer.sendall(struct.pack("!BBQ", FIN | BINARY, MASKED | 127, 2**62) + bytes(4))
        with Memory(daemon) as memory:
            sent = send_for(1.5, peers, bytes(65_536))
        sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
        # After the refusal each is read up to linger_bytes_max, then no more: 20 MiB in all, none of which is kept;
        # the kernels hold the rest, 3 to 4 MiB each. Who is read on and on gets rid of 2 GiB and more.
        assert 20 * Settings().linger_bytes_max < sent < 20 * (Settings().linger_bytes_max + 16 * MIB)
        assert memory.growth <= 8 * MIB


@pytest.mark.parametrize("part", [0.25, 0.999], ids=["a quarter", "all but a byte"])
def test_messages_that_are_never_finished(part: float) -> None:
    """Who has sent a part of a message makes the daemon keep that, and no more than message_bytes_max."""
    size = Settings().message_bytes_max
    with open_daemon(log_level="warning") as daemon, open_sockets(daemon.port, 300) as peers:
        shake_hands(peers, lambda _: "/chat/hostile")
        whole = frame(bytes(size))
        with Memory(daemon) as memory:
            for peer in peers:
                peer.sendall(whole[: int(len(whole) * part)])
            time.sleep(0.5)
        sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
        assert memory.growth <= 300 * size * part + SLACK_BYTES


def test_nothing_is_kept_of_what_has_been_said() -> None:
    """Once a message has been dealt with, an idle connection doesn't hold what it was received in."""
    with open_daemon(history_size=0, log_level="warning") as daemon, open_sockets(daemon.port, 500) as peers:
        shake_hands(peers, lambda number: f"/chat/{number}")
        memory = Memory(daemon)
        before = memory.now()
        for peer in peers:
            peer.sendall(frame(bytes(60_000)))
            received = 0
            while received < 60_000:
                received += len(peer.recv(65_536))
        time.sleep(0.2)
        each = (memory.now() - before) / 500
        sys.stdout.write(f"kept: {each:.0f} bytes a connection\n")
        assert each <= 10_000


NAMES = 3_000
ROOMS_MAX = 500


def test_names_tried_by_one_client() -> None:
    """One client says something in one room after the other: only rooms_max are kept, in histories_bytes_max."""
    total = 8 * MIB
    limits = {"rooms_max": ROOMS_MAX, "histories_bytes_max": total, "log_level": "warning"}
    message = frame(bytes(50_000))
    with open_daemon(**limits) as daemon, Memory(daemon) as memory:
        for start in range(0, NAMES, 50):
            with open_sockets(daemon.port, 50) as some:
                shake_hands(some, lambda number, start=start: f"/chat/{start + number}")  # type: ignore[misc]
                for connection in some:
                    connection.sendall(message)
                for connection in some:
                    assert connection.recv(1)
        metrics = daemon.metrics()
        sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
        assert metrics["hubbub_histories"] <= ROOMS_MAX
        assert 0 < metrics["hubbub_history_bytes"] <= total
        assert memory.growth <= total + SLACK_BYTES


CONNECTIONS = 10_000


def test_ten_thousand_idle_connections() -> None:
    """With history in a thousand rooms: what each connection costs, and histories_bytes_max."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = CONNECTIONS if hard >= CONNECTIONS + 500 else 0
    if not count:
        lack(f"{CONNECTIONS + 500} open files are needed; the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    total = 16 * MIB
    settings = {"histories_bytes_max": total, "log_level": "warning", "ping_seconds": 600.0}
    try:
        with open_daemon(**settings) as daemon, Memory(daemon) as memory:
            with open_sockets(daemon.port, count) as connections:
                shake_hands(connections, lambda number: f"/chat/{number % 1000}")
                each = memory.growth / count
                for connection in connections[:1000]:
                    connection.sendall(frame(bytes(20_000)))
                for connection in connections[:1000]:
                    assert connection.recv(1)
                metrics = daemon.metrics()
            all_ended(daemon, count)  # a drain would take its time for those that it still sees: 10 s
            sys.stdout.write(f"growth: {memory.growth / MIB:.1f} MiB\n")  # shown by pytest -rP
            sys.stdout.write(f"each connection: {each:.0f} bytes\n")
            assert metrics["hubbub_connections"] == count
            assert metrics["hubbub_history_bytes"] <= total
            assert memory.growth <= count * CONNECTION_BYTES_MAX + total + SLACK_BYTES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
