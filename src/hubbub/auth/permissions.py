"""Who may do what in a room: one table, for every dialect and every command.

| setting | a stranger | a user | in the room | in it by a token for it |
|---|---|---|---|---|
| nobody | | | | |
| tokens | | | | ✓ |
| subscribers | | | ✓ | ✓ |
| users | | ✓ | if a user | ✓ |
| anonymous | ✓ | ✓ | ✓ | ✓ |

Two kinds of rooms have rules of their own for joining: `$…` only by a token for it, and `#NAME` only that user.
"""

from typing import Literal

import msgspec

Who = Literal["nobody", "tokens", "subscribers", "users", "anonymous"]

PRIVATE = "$"
PERSONAL = "#"


class Standing(msgspec.Struct, frozen=True):
    """How a client stands to a room.

    Attributes:
        user: whom its token names; "" for a stranger.
        subscribed: whether it is in the room.
        by_token: whether it shows, or has come in by, a token for that room.
    """

    user: str
    subscribed: bool = False
    by_token: bool = False


def may(who: Who, standing: Standing) -> bool:
    """Return whether a setting allows it to a client that stands like this."""
    match who:
        case "nobody":
            return False
        case "tokens":
            return standing.by_token
        case "subscribers":
            return standing.subscribed or standing.by_token
        case "users":
            return standing.user != "" or standing.by_token
    return True


def may_subscribe(who: Who, room: str, standing: Standing) -> bool:
    """Return whether a client may join a room of that name."""
    if room.startswith(PRIVATE):
        return standing.by_token and who != "nobody"
    if room.startswith(PERSONAL):
        return standing.user != "" and room == PERSONAL + standing.user
    return may(who, standing)
