"""The node: everything that runs, in one tree.

    run_node
    ├─ signal watcher            the first signal drains, the second cuts off
    └─ open_node
       ├─ hub task               the only task that changes rooms
       ├─ heartbeat              one for all connections
       ├─ expiry                 one for all histories
       └─ connections nursery    drained before the above end
          ├─ FrontDoor.serve     one a connection, with a nursery of its own
          └─ listening nursery   cancelled first
             └─ accept loop      one a listening socket

What is used is opened outside of what uses it, so the order in which things end is the order in which they are
nested: no list of shutdown steps, no flags to set. The drain is the time between the end of the listening nursery
and the end of the connections nursery.
"""

import contextlib
import random
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable

import structlog
import trio

from hubbub.config import Settings
from hubbub.connection.connection import Connection, Services
from hubbub.connection.heartbeat import run_heartbeat
from hubbub.connection.outbox import OutboxTotal
from hubbub.connection.transport import TcpTransport, TlsTransport, Transport
from hubbub.core.rooms import Rooms
from hubbub.engines.memory import MemoryEngine
from hubbub.hub.inbox import Inbox
from hubbub.hub.state import Hub
from hubbub.hub.task import run_hub
from hubbub.listen import load_tls, open_listeners, run_accept_loop, url_of
from hubbub.model.end import End
from hubbub.web.front_door import FrontDoor
from hubbub.web.metrics import Metrics

EPOCH_BITS = 64
EXPIRY_SECONDS_MAX = 1.0
"""How often old histories are looked for, at least."""

log = structlog.get_logger()


class Node:
    """The parts of a running node. Opened by `open_node`, which runs their tasks.

    Args:
        settings: every limit.
        rng: for epochs and jitter; tests seed it.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.settings = settings
        self.rooms = Rooms()
        self.engine = MemoryEngine(settings, lambda: f"{rng.getrandbits(EPOCH_BITS):016x}", self.rooms.__contains__)
        self.hub = Hub(self.engine, self.rooms, settings)
        self.inbox = Inbox(settings.inbox_commands_max, settings.inbox_bytes_max)
        self.connections: set[Connection] = set()
        self.metrics = Metrics(self.hub, self.inbox, self.engine, self.connections)
        self.outboxes = OutboxTotal(settings, self.evict_fullest)
        services = Services(
            settings,
            self.inbox,
            self.rooms.occupancy,
            self.connections,
            self.outboxes,
            self.metrics.count_open,
            self.metrics.count_end,
            rng,
        )
        self.front_door = FrontDoor(services, self.metrics)

    def evict_fullest(self) -> None:
        """Evict the connection for which most waits. Never waits."""
        fullest = max(self.connections, key=lambda connection: connection.outbox.bytes_queued, default=None)
        if fullest is not None:
            fullest.outbox.evict()

    def drain(self) -> None:
        """Tell everyone that it is over; what is queued for them is still sent. Never waits."""
        self.front_door.drain()
        for connection in list(self.connections):
            connection.end(End.SHUTDOWN)


@contextlib.asynccontextmanager
async def open_node(settings: Settings, rng: random.Random) -> AsyncIterator[tuple[Node, trio.Nursery]]:
    """Run a node's tasks; give the node and the nursery in which its transports are to be served.

    On leaving, the node drains: at most `drain_seconds_max`, then whoever is left is cut off.
    """
    node = Node(settings, rng)
    async with trio.open_nursery() as housekeeping:
        housekeeping.start_soon(run_hub, node.hub, node.inbox, settings)
        housekeeping.start_soon(run_heartbeat, node.connections, settings)
        housekeeping.start_soon(run_expiry, node.hub, settings)
        async with trio.open_nursery() as connections:
            yield node, connections
            connections.cancel_scope.deadline = trio.current_time() + settings.drain_seconds_max
            node.drain()
        housekeeping.cancel_scope.cancel()


async def run_node(settings: Settings, announce: Callable[[str], None]) -> int:
    """Run a node until a signal ends it; return the exit status: 0 after a drain, 1 after a second signal.

    Args:
        announce: called with the address of each listening socket, once connections are accepted.

    Raises:
        StartError: it can't listen as configured.
    """
    tls = load_tls(settings)
    listeners = open_listeners(settings)
    raise_file_limit()
    slots = trio.Semaphore(settings.connections_max + settings.connections_spare)
    stopping = trio.Event()
    cut_off = trio.Event()
    with contextlib.ExitStack() as listening_sockets:
        for listener in listeners:
            listening_sockets.enter_context(listener)
        async with trio.open_nursery() as watching:
            async with open_node(settings, random.Random()) as (node, connections):

                def start(connected: socket.socket, peer: str) -> None:
                    transport = TlsTransport(connected, tls) if tls else TcpTransport(connected)
                    local_address = connected.getsockname()[0]
                    connections.start_soon(serve_in_slot, node, slots, transport, peer, local_address)

                await watching.start(watch_signals, stopping, cut_off, connections.cancel_scope)
                async with trio.open_nursery() as listening:
                    for listener in listeners:
                        listening.start_soon(run_accept_loop, listener, slots, start)
                        announce(url_of(listener, tls is not None))
                    await stopping.wait()
                    listening.cancel_scope.cancel()
                listening_sockets.close()
            watching.cancel_scope.cancel()
    return 1 if cut_off.is_set() else 0


async def serve_in_slot(node: Node, slots: trio.Semaphore, transport: Transport, peer: str, local_address: str) -> None:
    """Serve a transport and give back the slot that the accept loop has taken for it."""
    try:
        await node.front_door.serve(transport, peer, local_address)
    finally:
        slots.release()


async def watch_signals(
    stopping: trio.Event,
    cut_off: trio.Event,
    connections: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGINT or SIGTERM: the first sets `stopping`, the next sets `cut_off` and cancels `connections`."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if stopping.is_set():
                log.warning("cutting off", signal=name)
                cut_off.set()
                connections.cancel()
            else:
                log.info("draining", signal=name)
                stopping.set()


async def run_expiry(hub: Hub, settings: Settings) -> None:
    """Drop old histories, again and again, until cancelled. Between two checkpoints, so as atomic as a hub step."""
    while True:
        await trio.sleep(min(EXPIRY_SECONDS_MAX, settings.history_seconds_max / 2))
        hub.expire(trio.current_time())


def raise_file_limit() -> None:
    """Raise the limit of open files to the most that this process may have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
