"""What a dialect owes the rest of hubbub."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hubbub.model.command import Command, PublishRun, Reply, Subscribe
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Position, Presence, Publication
from hubbub.model.question import Ask
from hubbub.model.subscriber import Loss


class Dialect(Protocol):
    """One wire language. One instance serves all its connections: it is the `Encoder` they share."""

    name: str

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the complete WebSocket frame of one publication."""
        ...

    def encode_presence(self, presence: Presence) -> bytes:
        """Return the complete WebSocket frame of a join or a leave; only asked of dialects that ask for joins."""
        ...

    def disconnect(self, end: End) -> Disconnect:
        """Return what the peer is told of this end; only asked for ends in which it is ours to tell."""
        ...


class Conversation(Protocol):
    """One connection's side of a dialect: what the peer's messages ask for, in their order.

    Attributes:
        has_runs: whether `receive_run` may ever return one.
    """

    has_runs: bool

    @property
    def is_known(self) -> bool:
        """Whether it has introduced itself, if it must."""
        ...

    @property
    def about(self) -> Mapping[str, str]:
        """What the log says of it: its room, or its user."""
        ...

    def overdue(self, now: float) -> End | None:
        """Return why the connection must end by now, if it must; asked now and then."""
        ...

    def opening(self, reply: Reply) -> Iterable[Command | Ask]:
        """Give what must have been answered before the 101, if anything, one after the other's answer."""
        ...

    def receive(self, data: bytes, binary: bool) -> Iterable[Command | Ask]:
        """Give the commands of one message; each is understood once the one before has been handed over.

        An exception is a bug here, never the peer's doing.
        """
        ...

    def receive_run(self, messages: Sequence[bytes], binary: bool) -> PublishRun | None:
        """Return the one command of several messages that came at once; None if each must be received by itself."""
        ...

    def replies(self) -> bytes:
        """Return the complete frame of the replies that have been given since the last call; b"" if there are none."""
        ...

    def lose(self, room: str, loss: Loss) -> bytes | End:
        """Return the frame that tells the peer it isn't in the room any more; or the end, if it has no other."""
        ...

    def ping(self) -> bytes:
        """Return the frame of a ping, to be sent."""
        ...

    # What a back end does to it, by the server API.

    def admit(
        self,
        room: str,
        reply: Reply,
        *,
        info: bytes = b"",
        data: bytes = b"",
        since: Position | None = None,
        ends_at: float | None = None,
    ) -> Subscribe | None:
        """Return the command that adds it to a room, and tells the peer; None if the dialect has no words for that.

        Args:
            room: to join.
            reply: gets the hub's answer.
            info: JSON for others in the room to see.
            data: JSON for the peer.
            since: where it was, to recover what it has missed.
            ends_at: when it has to bring a token for the room, on the node's clock; None: never.
        """
        ...

    def extend(self, ends_at: float | None, info: bytes) -> None:
        """Let it be until then, on the node's clock (None: for ever); `info`: b"" leaves it as it is."""
        ...
