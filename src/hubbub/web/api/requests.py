"""What a back end may ask for: a type for each method's body. Its docstring is the method's description.

Rules:
1. A member that isn't here is a mistake: a misspelt option is no option. null is as good as absent.
2. Types are checked here; what depends on settings or on what goes on in the server, in `methods`.
3. What Centrifugo's libraries may send and hubbub doesn't have is named by `unsupported`: refused if it says anything.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

Whole = Annotated[float, Meta(ge=1 - 2**53, le=2**53 - 1, multiple_of=1)]
"""A whole number, as far as JavaScript can count. In JSON 5.0 is as whole as 5, and some languages write no other."""
Offset = Annotated[float, Meta(ge=0, le=2**53 - 1, multiple_of=1)]
Room = Annotated[str, Meta(description="The room: 1 to 255 printable characters.")]
User = Annotated[str, Meta(description='The user, as its token names it; "" with `client` only: a stranger.')]
Client = Annotated[str, Meta(description="This connection of the user's only, by the name it got at its connect.")]
Json = Annotated[msgspec.Raw, Meta(description="Any JSON value.")]
Switch = bool | None
Session = Annotated[str, Meta(description="Not available.")] | None
UnixTime = Annotated[float, Meta(ge=0, le=2**53 - 1, description="In seconds since 1970; absent: never.")]


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What all have in common."""

    unsupported: ClassVar[tuple[str, ...]] = ()


class StreamPosition(msgspec.Struct, forbid_unknown_fields=True):
    """A place in a room's history."""

    offset: Offset | None = None
    epoch: Annotated[str, Meta(max_length=64)] | None = None


class Publication(Request):
    """What is published; either data or b64data."""

    unsupported = ("delta", "version", "version_epoch")

    data: Json = msgspec.field(default_factory=msgspec.Raw)
    b64data: Annotated[str, Meta(description="Binary data, in Base64.")] | None = None
    tags: Annotated[dict[str, str], Meta(description="For structured clients.")] | None = None
    idempotency_key: (
        Annotated[str, Meta(description="Up to 64 characters: a repeat with it isn't a second publication.")] | None
    ) = None
    skip_history: Annotated[bool, Meta(description="Keep it out of the history; it has no offset then.")] | None = None
    delta: Annotated[bool, Meta(description="Not available.")] | None = None
    version: Annotated[Whole, Meta(description="Not available.")] | None = None
    version_epoch: Annotated[str, Meta(description="Not available.")] | None = None


class Publish(Publication, kw_only=True):
    """Say something in a room."""

    channel: Room


class Broadcast(Publication, kw_only=True):
    """Say the same in several rooms."""

    channels: Annotated[list[str], Meta(description="The rooms, up to message_commands_max.")]


class Subscribe(Request):
    """Put a user's structured connections into a room, whatever they may do themselves."""

    unsupported = ("session", "override", "b64info", "b64data")

    user: User
    channel: Room
    client: Client | None = None
    info: Annotated[msgspec.Raw, Meta(description="JSON for others in the room to see.")] = msgspec.field(
        default_factory=msgspec.Raw
    )
    data: Annotated[msgspec.Raw, Meta(description="JSON for the clients themselves.")] = msgspec.field(
        default_factory=msgspec.Raw
    )
    recover_since: StreamPosition | None = None
    expire_at: UnixTime | None = None
    session: Session = None
    override: Annotated[dict[str, msgspec.Raw], Meta(description="Not available.")] | None = None
    b64info: Annotated[str, Meta(description="Not available.")] | None = None
    b64data: Annotated[str, Meta(description="Not available.")] | None = None


class Unsubscribe(Request):
    """Take a user's connections out of a room; a plain one has no other, and ends."""

    unsupported = ("session",)

    user: User
    channel: Room
    client: Client | None = None
    session: Session = None


class Farewell(msgspec.Struct, forbid_unknown_fields=True):
    """What the client is told in the Close."""

    code: Annotated[Whole, Meta(description="3000 to 4999; 0 is 3503: it isn't to come back.")] | None = None
    reason: Annotated[str, Meta(description="For people; up to 123 bytes of UTF-8.")] | None = None


class Disconnect(Request):
    """End a user's connections."""

    unsupported = ("session",)

    user: User
    client: Client | None = None
    whitelist: Annotated[list[str], Meta(description="Not these connections.")] | None = None
    disconnect: Farewell | None = None
    session: Session = None


class Refresh(Request):
    """Say how long a user's connections last, as a new token of theirs would."""

    unsupported = ("session",)

    user: User
    client: Client | None = None
    expired: Annotated[bool, Meta(description="They end now.")] | None = None
    expire_at: UnixTime | None = None
    info: Annotated[msgspec.Raw, Meta(description="JSON for others to see, from now on.")] = msgspec.field(
        default_factory=msgspec.Raw
    )
    session: Session = None


class Presence(Request):
    """Ask who is in a room."""

    channel: Room


class PresenceStats(Request):
    """Ask how many are in a room."""

    channel: Room


class History(Request):
    """Read what is kept of a room, from its beginning or from a position on."""

    channel: Room
    limit: Annotated[Whole, Meta(description="At most so many; 0: the position only; -1: all that may be.")] | None = (
        None
    )
    since: StreamPosition | None = None
    reverse: Annotated[bool, Meta(description="The newest first; with `since`, those before it.")] | None = None


class HistoryRemove(Request):
    """Let go of what is kept of a room; its epoch and offsets go on."""

    channel: Room


class Channels(Request):
    """List the rooms that anyone is in."""

    pattern: (
        Annotated[str, Meta(max_length=255, description="Which: * is anything, ? one character, [a-z] one of these.")]
        | None
    ) = None


class Info(Request):
    """Ask how the server is."""


class Command(msgspec.Struct, forbid_unknown_fields=True):
    """One command of a batch: exactly one of these."""

    publish: Publish | UnsetType = UNSET
    broadcast: Broadcast | UnsetType = UNSET
    subscribe: Subscribe | UnsetType = UNSET
    unsubscribe: Unsubscribe | UnsetType = UNSET
    disconnect: Disconnect | UnsetType = UNSET
    refresh: Refresh | UnsetType = UNSET
    presence: Presence | UnsetType = UNSET
    presence_stats: PresenceStats | UnsetType = UNSET
    history: History | UnsetType = UNSET
    history_remove: HistoryRemove | UnsetType = UNSET
    channels: Channels | UnsetType = UNSET
    info: Info | UnsetType = UNSET

    def __post_init__(self) -> None:
        """See that it is one; msgspec makes a sentence of the error."""
        if len(self._given()) != 1:
            raise ValueError("a command has exactly one method")

    def only(self) -> tuple[str, Request]:
        """Return the method and its body."""
        return self._given()[0]

    def _given(self) -> list[tuple[str, Request]]:
        members = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [(name, body) for name, body in members if body is not UNSET]


class Batch(Request):
    """Carry out several commands, one after the other."""

    commands: Annotated[list[Command], Meta(description="Up to message_commands_max.")]
    parallel: Annotated[bool, Meta(description="Accepted; the order is kept all the same.")] | None = None
