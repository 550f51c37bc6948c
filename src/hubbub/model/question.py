"""What a back end is asked before a client may do something, and what it answers (`hubbub.hooks`).

A dialect yields an `Ask` where it would yield a command; the session has the question answered, while only this
connection waits, and goes on with what `then` makes of the verdict.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, Protocol, TypeAlias

import msgspec

from hubbub.model.command import Command, Refused

Asked = Literal["connect", "subscribe", "publish"]


class Question(msgspec.Struct, frozen=True):
    """May this client do that?

    Attributes:
        what: it wants to do.
        client: its connection's own name.
        user: whom its token names; "" for a stranger.
        dialect: what it speaks: plain, centrifugo.
        room: that it would join, or publish to; "" for connect.
        data: JSON: what it would publish, or has sent along; b"" for nothing.
    """

    what: Asked
    client: str
    user: str
    dialect: str
    room: str = ""
    data: bytes = b""


class Allowed(msgspec.Struct, frozen=True):
    """It may.

    Attributes:
        user: who it is, if its token hasn't said so; connect only.
        info: JSON for others to see; b"" for none, or as it was.
        data: JSON: to be published instead; or for the client, with the reply; b"" for nothing.
        rooms: that it joins at once, each with what is said of it; connect only.
        ends_at: when it has to bring a new token, on the node's clock; None: never, or as its token says.
        keep: whether it goes into the history; publish only.
    """

    user: str = ""
    info: bytes = b""
    data: bytes = b""
    rooms: Mapping[str, msgspec.Raw] = {}
    ends_at: float | None = None
    keep: bool = True


class Denied(msgspec.Struct, frozen=True):
    """It may not: an error of the structured dialect. Codes 400 to 1999 are the back end's own."""

    code: int = 103
    message: str = "permission denied"
    temporary: bool = False


class Dismissed(msgspec.Struct, frozen=True):
    """It may not, and its connection ends with that code, 4000 to 4999, or 3000 to 3999 with the protocol's meaning."""

    code: int
    reason: str


class Unanswered(msgspec.Struct, frozen=True):
    """There was no answer in time, or none that makes sense; and that isn't a yes."""


Verdict: TypeAlias = Allowed | Denied | Dismissed | Unanswered


class Asker(Protocol):
    """Has a question answered, while its caller waits: never longer than its hook is given. Raises nothing."""

    def __call__(self, question: Question, address: str = "") -> Awaitable[Verdict]:
        """Return the verdict; `address` is the client's, so that none of them takes all the back end's time."""
        ...


Asks: TypeAlias = Callable[[Asked, str], bool]
"""Whether there is anybody to ask for that, in that room; for connect the room is "", or a plain client's."""


class Ask(msgspec.Struct, frozen=True):
    """Have `question` answered, and go on with what `then` makes of that; a refusal only before the 101, or nothing."""

    question: Question
    then: Callable[[Verdict], Command | Refused | None]
