"""The heartbeat: one task for all connections, which finds the silent ones.

Rules:
1. Each connection is pinged every `ping_seconds`; the first time at a random moment in the second half of
   that, so that connections that came together aren't pinged together.
2. Any byte from the peer is life, and so is any byte that its machine acknowledges: over a slow line the pong to
   a ping behind a full socket buffer takes its time. What only fills our own kernel's buffer is no life.
3. The pong's deadline starts when the ping has *left* the outbox, and stands still while the connection's reader
   waits for us: a peer isn't blamed for our backlog.
4. Who is overdue in its dialect (hasn't introduced itself, hasn't brought a new token) is cut off as well.
5. The clock is looked at some times an interval: a silent peer is cut off a look late, never early.
"""

import random
from typing import TYPE_CHECKING

import trio

from hubbub.config import Settings
from hubbub.connection.registry import Connections
from hubbub.model.end import End

if TYPE_CHECKING:
    from hubbub.connection.connection import Connection

LOOKS_PER_INTERVAL = 10
LOOK_SECONDS_MAX = 1.0
CONNECTIONS_PER_CHECKPOINT = 256


class Pulse:
    """What the heartbeat knows of one connection.

    Attributes:
        due: when to ping next.
        leaves_at: how many bytes the outbox will have sent when the ping has left; None if no ping is out.
        alive: the last look at which there was life, or none could be expected.
        bytes_taken: what the peer's machine had acknowledged at the last look.
    """

    __slots__ = ("alive", "bytes_taken", "due", "leaves_at")

    def __init__(self, due: float) -> None:
        self.due = due
        self.leaves_at: int | None = None
        self.alive = 0.0
        self.bytes_taken = 0


def first_pulse(now: float, settings: Settings, rng: random.Random) -> Pulse:
    """Return the pulse of a connection that opens now (rule 1)."""
    return Pulse(now + settings.ping_seconds * rng.uniform(0.5, 1.0))


async def run_heartbeat(connections: Connections, settings: Settings) -> None:
    """Look at all connections, again and again, until cancelled."""
    while True:
        interval = min(settings.ping_seconds, settings.pong_seconds_max)
        await trio.sleep(min(interval / LOOKS_PER_INTERVAL, LOOK_SECONDS_MAX))
        now = trio.current_time()
        for count, connection in enumerate(list(connections), 1):
            if connection.ended is None:  # since the list was made, others have run
                _look(connection, now, settings)
            if count % CONNECTIONS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()


def _look(connection: "Connection", now: float, settings: Settings) -> None:
    pulse, outbox, wire = connection.pulse, connection.outbox, connection.wire
    if wire.heard:
        wire.heard = False
        pulse.leaves_at = None  # as good as the pong
    if pulse.leaves_at is None:
        if now >= pulse.due:
            outbox.offer(connection.conversation.ping())
            pulse.leaves_at = outbox.bytes_sent + outbox.bytes_queued
            pulse.bytes_taken = connection.bytes_taken
            pulse.due, pulse.alive = now + settings.ping_seconds, now
    elif outbox.bytes_sent < pulse.leaves_at or connection.session.handing_over:
        pulse.alive = now  # a ping that hasn't left: `write_stall_seconds_max` is the outbox's to keep
    elif (taken := connection.bytes_taken) > pulse.bytes_taken:
        pulse.bytes_taken, pulse.alive = taken, now
    elif now - pulse.alive >= settings.pong_seconds_max:
        connection.end(End.NO_PONG)
    if overdue := connection.conversation.overdue(now):
        connection.end(overdue)
