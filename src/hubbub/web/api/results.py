"""What the server API answers, as types: for its description, and where there are no bytes for it already."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hubbub.dialects.centrifugo.codes import Error

Count = Annotated[int, Meta(ge=0)]


class Nothing(msgspec.Struct):
    """There is nothing to say about it."""


class Published(msgspec.Struct):
    """Where the publication is in the room's history, if it is kept."""

    offset: Count | UnsetType = UNSET
    epoch: str | UnsetType = UNSET


class PublishedOne(msgspec.Struct):
    """What became of a broadcast in one room: one of these."""

    result: Published | UnsetType = UNSET
    error: Error | UnsetType = UNSET


class BroadcastResult(msgspec.Struct):
    """What became of it in each room, in their order."""

    responses: list[PublishedOne]


class ClientInfo(msgspec.Struct):
    """A connection as others see it."""

    user: str
    client: str
    conn_info: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    chan_info: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class PresenceResult(msgspec.Struct):
    """Who is there, by client."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(msgspec.Struct):
    """How many connections and how many users are there."""

    num_clients: Count
    num_users: Count


class Publication(msgspec.Struct):
    """One publication."""

    data: msgspec.Raw
    info: ClientInfo | UnsetType = UNSET
    offset: Count | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class HistoryResult(msgspec.Struct):
    """Publications, and the room's top at the same moment."""

    publications: list[Publication]
    epoch: str
    offset: Count


class Room(msgspec.Struct):
    """How many are in a room."""

    num_clients: Count


class ChannelsResult(msgspec.Struct):
    """The rooms, by name."""

    channels: dict[str, Room]


class Node(msgspec.Struct):
    """One server; `uptime` in seconds."""

    uid: str
    name: str
    version: str
    num_clients: Count
    num_users: Count
    num_channels: Count
    num_subs: Count
    uptime: Count


class InfoResult(msgspec.Struct):
    """All servers: there is one."""

    nodes: list[Node]


class Reply(msgspec.Struct):
    """What became of a command of a batch: one of these."""

    error: Error | UnsetType = UNSET
    publish: Published | UnsetType = UNSET
    broadcast: BroadcastResult | UnsetType = UNSET
    subscribe: Nothing | UnsetType = UNSET
    unsubscribe: Nothing | UnsetType = UNSET
    disconnect: Nothing | UnsetType = UNSET
    refresh: Nothing | UnsetType = UNSET
    presence: PresenceResult | UnsetType = UNSET
    presence_stats: PresenceStatsResult | UnsetType = UNSET
    history: HistoryResult | UnsetType = UNSET
    history_remove: Nothing | UnsetType = UNSET
    channels: ChannelsResult | UnsetType = UNSET
    info: InfoResult | UnsetType = UNSET


class BatchResult(msgspec.Struct):
    """What became of each command, in their order."""

    replies: list[Reply]
