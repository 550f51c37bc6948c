"""What a connection is given: its upgrade, and what it shares with all others."""

import random
from collections.abc import Callable

import msgspec

from hubbub.config import Settings
from hubbub.connection.outbox import OutboxTotal
from hubbub.connection.registry import Connections
from hubbub.connection.turnstile import Turnstile
from hubbub.dialects.base import Conversation, Dialect
from hubbub.hub.inbox import Inbox
from hubbub.model.end import End
from hubbub.model.notice import Notices
from hubbub.model.publication import Member
from hubbub.model.question import Asker
from hubbub.model.subscriber import Subscriber


class Upgrade(msgspec.Struct, frozen=True):
    """What the front door has checked and hands over.

    Attributes:
        head: the request head for trio-websocket, written by the front door.
        leftover: what the client sent behind its own head.
        subprotocol: to be named in the 101; the head offers it.
        dialect: what it will speak.
        converse: makes its side of that.
        peer: its address, for the log.
    """

    head: bytes
    leftover: bytes
    subprotocol: str | None
    dialect: Dialect
    converse: Callable[[Subscriber, Member], Conversation]
    peer: str


class Services(msgspec.Struct, frozen=True):
    """What connections share.

    Attributes:
        settings: every limit.
        inbox: the hub's.
        occupancy: how many are in a room.
        connections: those that are open; each adds and removes itself.
        outboxes: counts what waits in all of them.
        entrance: where those who come at one moment take turns.
        exits: likewise for those who go.
        ask: has the back end answer a question.
        notices: told when one ends that had been let in.
        count_open: called for each connection once its 101 is out.
        count_pause: called each time that one's rates make it pause.
        count_end: called once for each connection, opened or not; with whether it was cut off at a stop.
        rng: for the heartbeat's jitter, and clients' names.
    """

    settings: Settings
    inbox: Inbox
    occupancy: Callable[[str], int]
    connections: Connections
    outboxes: OutboxTotal
    entrance: Turnstile
    exits: Turnstile
    ask: Asker
    notices: Notices
    count_open: Callable[[], None]
    count_pause: Callable[[], None]
    count_end: Callable[[End, bool], None]
    rng: random.Random
