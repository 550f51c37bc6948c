"""The node: everything that runs behind the listening sockets, in one tree.

    open_node
    ├─ hub task               the only task that changes rooms
    ├─ poller                 reads for all connections what comes (not over TLS)
    ├─ heartbeat              one for all connections
    ├─ expiry                 one for all histories
    ├─ keys                   reads the key set at a URL, again and again
    ├─ turnstiles             those who come, or go, at one moment take turns
    ├─ hooks                  what a back end is asked and told
    └─ connections nursery    drained before the above end
       └─ FrontDoor.serve     one a connection, with a nursery of its own

`hubbub.daemon` puts sockets and signals around it; the simulation in the tests puts pipes there instead.

What is used is opened outside of what uses it, so the order in which things end is the order in which they are
nested: no list of shutdown steps, no flags to set. The drain is the time between leaving `open_node` and the end of
the connections nursery.
"""

import contextlib
import heapq
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator

import trio

from hubbub.auth.access import Access
from hubbub.auth.keys import KeyRing
from hubbub.auth.tokens import Verifier
from hubbub.config import Settings
from hubbub.connection.heartbeat import run_heartbeat
from hubbub.connection.outbox import OutboxTotal
from hubbub.connection.poller import Poller
from hubbub.connection.registry import Connections
from hubbub.connection.services import Services
from hubbub.connection.turnstile import Turnstile
from hubbub.core.rooms import Rooms
from hubbub.engines.memory import MemoryEngine
from hubbub.hooks.hooks import Hooks
from hubbub.hub.inbox import Inbox
from hubbub.hub.state import Hub
from hubbub.hub.task import let_others_run, run_hub
from hubbub.model.end import End
from hubbub.web.admission import Admission
from hubbub.web.api.api import Api
from hubbub.web.api.errand import Means
from hubbub.web.front_door import FrontDoor
from hubbub.web.hook_metrics import HookSnapshot
from hubbub.web.metrics import Metrics

EPOCH_BITS = 64
NOTICES_PER_SECOND = 1000
"""How fast clients are told to come back elsewhere: as fast as a neighbour can shake their hands."""
GOING_SECONDS = 0.01
"""How often it is looked whether everyone has gone."""
SPARE = 1 / 32
"""Of what may wait for all clients: what is free when the fullest have been evicted; 8 full outboxes by default."""
EXPIRY_SECONDS_MAX = 1.0
"""How often old histories are looked for, at least."""


class Node:
    """The parts of a running node. Opened by `open_node`, which runs their tasks.

    Args:
        settings: every limit.
        rng: for epochs and jitter; tests seed it.
        poller: of its connections' sockets; None where tasks wait for them by themselves.
    """

    def __init__(self, settings: Settings, rng: random.Random, poller: Poller | None) -> None:
        self.settings = settings
        self.poller = poller
        self.hooks = Hooks(settings, rng)
        self.rooms = Rooms(self.hooks.notices)
        self.engine = MemoryEngine(settings, lambda: f"{rng.getrandbits(EPOCH_BITS):016x}", self.rooms.__contains__)
        self.hub = Hub(self.engine, self.rooms, settings)
        self.inbox = Inbox(settings.inbox_commands_max, settings.inbox_bytes_max)
        self.connections = Connections()
        self.metrics = Metrics(self.hub, self.inbox, self.engine, self.connections)
        self.metrics.add(HookSnapshot(self.hooks))
        self.outboxes = OutboxTotal(settings, self.make_room)
        self.entrance, self.exits = Turnstile(), Turnstile()
        services = Services(
            settings,
            self.inbox,
            self.rooms.occupancy,
            self.connections,
            self.outboxes,
            self.entrance,
            self.exits,
            self.hooks.ask,
            self.hooks.notices,
            self.metrics.count_open,
            self.metrics.count_pause,
            self.metrics.count_end,
            rng,
        )
        self.keys = KeyRing(settings)
        self.keys.load(settings)
        verifier = Verifier(settings, self.keys, time.time)
        access = Access(settings, verifier, trio.current_time, time.time)
        admission = Admission(settings, access, self.hooks.asks, trio.current_time)
        name = socket.gethostname()
        means = Means(
            settings, self.inbox, self.rooms, self.connections, access, str(uuid.uuid4()), name, trio.current_time()
        )
        self.front_door = FrontDoor(services, self.metrics, admission, Api(settings, means))

    def make_room(self) -> None:
        """Evict those for whom most waits, until less waits than outboxes_bytes_max by a SPARE. Never waits.

        Whoever is ending already and still holds the most is cut off, so nobody is evicted for what such a one has
        in hand. Looking at all connections takes milliseconds if they are many: the spare makes it seldom.
        """
        enough = self.settings.outboxes_bytes_max * (1 - SPARE)
        holders = [one for one in self.connections if one.outbox.bytes_queued]
        fullest = [(-one.outbox.bytes_queued, number, one) for number, one in enumerate(holders)]
        heapq.heapify(fullest)
        while self.outboxes.bytes > enough and fullest:
            _, number, one = heapq.heappop(fullest)
            if one.ended is None:
                one.outbox.evict()
                one.end(End.SLOW_CONSUMER)  # also if its Close waits already, which no eviction changes
                heapq.heappush(fullest, (-one.outbox.bytes_queued, number, one))
            else:
                one.cut()

    async def drain(self) -> None:
        """Tell everyone that it is over, spread over some time; until its notice a client is served in full.

        Nobody waits for the turn of one who has gone meanwhile.
        Whoever has a back end to tell stays until that has been told, too.
        """
        self.front_door.drain()
        connections = list(self.connections)
        window = min(len(connections) / NOTICES_PER_SECOND, self.settings.drain_seconds_max / 2)
        start = trio.current_time()
        for count, connection in enumerate(connections):
            if connection.ended is None:
                await trio.sleep_until(start + window * count / len(connections))
                connection.end(End.SHUTDOWN)
        if self.settings.hook_notices_url:
            while self.front_door.serving or len(self.rooms):  # the hub makes the last leave
                await trio.sleep(GOING_SECONDS)
            await self.hooks.flush()


@contextlib.asynccontextmanager
async def open_node(
    settings: Settings, rng: random.Random, poller: Poller | None = None
) -> AsyncIterator[tuple[Node, trio.Nursery]]:
    """Run a node's tasks; give the node and the nursery in which its transports are to be served.

    On leaving, the node drains: at most `drain_seconds_max`, then whoever is left is cut off.
    """
    node = Node(settings, rng, poller)
    async with trio.open_nursery() as housekeeping:
        housekeeping.start_soon(run_hub, node.hub, node.inbox, settings, poller.look if poller else let_others_run)
        if poller is not None:
            housekeeping.start_soon(poller.run)
        housekeeping.start_soon(run_heartbeat, node.connections, settings)
        housekeeping.start_soon(run_expiry, node.hub, settings)
        housekeeping.start_soon(node.keys.run)
        housekeeping.start_soon(node.entrance.keep)
        housekeeping.start_soon(node.exits.keep)
        housekeeping.start_soon(node.hooks.run)
        async with trio.open_nursery() as connections:
            yield node, connections
            connections.cancel_scope.deadline = trio.current_time() + settings.drain_seconds_max
            with trio.move_on_after(settings.drain_seconds_max):
                await node.drain()
        housekeeping.cancel_scope.cancel()


async def run_expiry(hub: Hub, settings: Settings) -> None:
    """Drop old histories, again and again, until cancelled. No checkpoint within a step: as atomic as the hub's."""
    while True:
        await trio.sleep(min(EXPIRY_SECONDS_MAX, settings.history_seconds_max / 2))
        while hub.expire(trio.current_time()):
            await trio.lowlevel.checkpoint()
