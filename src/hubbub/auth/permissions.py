"""Who may do what in a room: one table, for every dialect and every command.

| setting | a stranger | a user | in the room | in it by a token for it |
|---|---|---|---|---|
| nobody | | | | |
| tokens | | | | ✓ |
| subscribers | | | ✓ | ✓ |
| users | | ✓ | if a user | ✓ |
| anonymous | ✓ | ✓ | ✓ | ✓ |

Two kinds of rooms have rules of their own. Only who has a token for `$…` may join it, and only that user `#NAME`; and
to do anything else there, one must be in it, whatever is allowed to more elsewhere. (What a client missed while it was
away is given to it when it may join again: that isn't reading history.)
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


def level(who: Who, room: str) -> Who:
    """Return what a setting means in a room of that name, for all but joining."""
    return "subscribers" if room.startswith((PRIVATE, PERSONAL)) and who in ("users", "anonymous") else who


def may_subscribe(who: Who, room: str, standing: Standing) -> bool:
    """Return whether a client may join a room of that name."""
    if room.startswith(PRIVATE):
        return standing.by_token and who != "nobody"
    if room.startswith(PERSONAL):
        return standing.user != "" and room == PERSONAL + standing.user
    return may(who, standing)
