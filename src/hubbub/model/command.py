"""What is asked of the hub, and what it answers.

Every command (of `PublishRuns` each run) names its `asker`, or None: then the server itself asks, for its back end, and
may everything. A reply is
given in the very step that carries the command out, and must not wait or raise. Replies leave in the order of the
commands, which is why even what needs no hub goes through it (`Tell`).
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from hubbub.model.publication import Kind, Member, Position, Publication

if TYPE_CHECKING:
    from hubbub.model.subscriber import Subscriber

COMMAND_OVERHEAD_BYTES = 256
"""What a waiting command weighs besides its data, roughly: so that empty messages aren't free."""


class Refusal(enum.Enum):
    """Why a command wasn't carried out. Dialects have codes for these."""

    UNKNOWN_NAMESPACE = "the room's namespace isn't configured"
    NOT_LET_IN = "not permitted to connect"
    DENIED = "not permitted in this room"
    HISTORY_DENIED = "not permitted to read this room's history"
    ALREADY_SUBSCRIBED = "already subscribed"
    TOO_MANY_SUBSCRIPTIONS = "this client has rooms_per_connection_max rooms already"
    TOO_MANY_ROOMS = "there are rooms_max rooms already"
    ROOM_FULL = "the room has subscribers_max subscribers already"
    TOO_MANY_OF_USER = "this user has connections_per_user_max connections already"
    UNRECOVERABLE = "what was missed isn't there any more"
    SWITCHED_OFF = "that is switched off for this room"
    TOO_MANY_KEYS = "too many idempotency keys are remembered; try again later"
    BUSY = "the hub didn't answer in time"
    UNANSWERED = "the back end gave no usable answer"
    STOPPING = "the server is shutting down"
    INTERNAL_ERROR = "internal error"


class Refused(msgspec.Struct, frozen=True):
    """The command wasn't carried out."""

    why: Refusal


class Subscribed(msgspec.Struct, frozen=True):
    """The subscription stands: everything after `position` will be offered, nothing at or before it.

    Attributes:
        position: the room's top at the moment of joining.
        publications: those asked for from history, or missed, oldest first, the last one at `position`.
        positioned, recoverable: whether its position is checked, and whether it can be recovered.
        recovered: whether `publications` are exactly what was missed.
    """

    position: Position
    publications: Sequence[Publication]
    positioned: bool = False
    recoverable: bool = False
    recovered: bool = False


class Published(msgspec.Struct, frozen=True):
    """The publication has been accepted, there; or was, when its idempotency key came first. No history: None."""

    position: Position | None


class Past(msgspec.Struct, frozen=True):
    """A piece of a room's history, and the room's top at the same moment."""

    position: Position
    publications: Sequence[Publication]


class Present(msgspec.Struct, frozen=True):
    """Who is in a room."""

    members: Sequence[Member]


class Done(msgspec.Struct, frozen=True):
    """It has been carried out, and there is nothing to say about it."""


Answer: TypeAlias = Subscribed | Published | Past | Present | Done | Refused
Reply: TypeAlias = Callable[[Answer], None]


class Publish(msgspec.Struct, frozen=True):
    """Put `data` into `room`.

    Attributes:
        publisher: who says it.
        idempotency_key: with it, a repeat of the same user in the same room isn't a second publication; "": none.
        asker: whose permission counts; None: the server itself.
        reply: None where nobody waits for the answer; an asker that is refused is then disconnected.
        tags: for the structured dialect's clients.
        keep: whether it goes into the history; if not, it has no place there.
    """

    room: str
    data: bytes
    kind: Kind
    publisher: Member | None = None
    idempotency_key: str = ""
    asker: "Subscriber | None" = None
    reply: Reply | None = None
    tags: Mapping[str, str] | None = None
    keep: bool = True

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return len(self.data) + COMMAND_OVERHEAD_BYTES


class PublishRun(msgspec.Struct, frozen=True):
    """Put short messages of one client into `room`, one after the other; nobody waits for an answer.

    Attributes:
        length: of all messages together, in bytes.
        publisher: who says it.
        asker: whose permission counts.
    """

    room: str
    messages: Sequence[bytes]
    length: int
    kind: Kind
    publisher: Member
    asker: "Subscriber"

    def part(self, start: int, stop: int) -> "PublishRun":
        """Return some of it."""
        messages = self.messages[start:stop]
        return PublishRun(self.room, messages, sum(map(len, messages)), self.kind, self.publisher, self.asker)

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return self.length + len(self.messages) * COMMAND_OVERHEAD_BYTES


class PublishRuns(msgspec.Struct):
    """What some clients say in one room, all of one kind, in that order. Grows while it waits in the inbox.

    Attributes:
        runs: at least one.
        count: of all messages.
        size_bytes: what it weighs in the hub's inbox.
    """

    room: str
    kind: Kind
    runs: list[PublishRun]
    count: int
    size_bytes: int

    @classmethod
    def begin(cls, run: PublishRun) -> "PublishRuns":
        """Return it with one run."""
        return cls(run.room, run.kind, [run], len(run.messages), run.size_bytes)


class _Move(msgspec.Struct, frozen=True):
    asker: "Subscriber"
    room: str
    reply: Reply

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return COMMAND_OVERHEAD_BYTES


class _Question(msgspec.Struct, frozen=True):
    asker: "Subscriber | None"
    room: str
    reply: Reply

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return COMMAND_OVERHEAD_BYTES


class Subscribe(_Move, frozen=True):
    """Add `asker` to `room`.

    Attributes:
        history: how many of the last publications to give along.
        since: where the asker was, to recover what it has missed.
        insist: whether to refuse where that can't be recovered.
        positioned, recoverable: what it would like to have.
        joins: whether it would like to be told of joins and leaves; None: it has no words for them.
        by_token: whether it has shown a token for this room.
        by_server: whether it is the server that wants it there.
        info: JSON for others in the room to see; b"" for none.
    """

    history: int = 0
    since: Position | None = None
    insist: bool = False
    positioned: bool = False
    recoverable: bool = False
    joins: bool | None = None
    by_token: bool = False
    by_server: bool = False
    info: bytes = b""


class Enter(msgspec.Struct, frozen=True):
    """Subscribe to several rooms in one step; `reply` gets all the answers before anything of the rooms' comes."""

    asker: "Subscriber"
    subscriptions: Sequence[Subscribe]
    reply: Callable[[Sequence[Answer]], None]

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return COMMAND_OVERHEAD_BYTES * (1 + len(self.subscriptions))


class Unsubscribe(_Move, frozen=True):
    """Take `asker` out of `room`; done also if it isn't there.

    `by_server`: it is the server that wants it out, so it is told (`Subscriber.lose`).
    """

    by_server: bool = False


class ReadHistory(_Question, frozen=True):
    """Read the room's history.

    Attributes:
        limit: at most so many publications; 0: none, only the position; -1: as many as may be given at once.
        since: those after it (with `reverse`: before it); None: from the beginning (with `reverse`: the end).
        reverse: the newest first.
    """

    limit: int = 0
    since: Position | None = None
    reverse: bool = False


class ReadPresence(_Question, frozen=True):
    """Ask who is in the room."""


class RemoveHistory(_Question, frozen=True):
    """Let go of what is kept of the room; its epoch and offsets go on. For the server only."""


class Tell(msgspec.Struct, frozen=True):
    """Call `act` when it is this command's turn: what a connection is to be told after its earlier replies.

    `ends`: that is the end of it, so what it still has to hear comes before.
    """

    asker: "Subscriber"
    act: Callable[[], None]
    ends: bool = False

    @property
    def size_bytes(self) -> int:
        """What it weighs in the hub's inbox."""
        return COMMAND_OVERHEAD_BYTES


Command: TypeAlias = Publish | Subscribe | Enter | Unsubscribe | ReadHistory | ReadPresence | RemoveHistory | Tell

Queued: TypeAlias = Command | PublishRuns
"""What waits in the hub's inbox."""
