"""The protocol's codes, and what makes hubbub say them.

An *error* answers a command and leaves the connection as it is. An *unsubscribe* ends a subscription; from 2500 up the
client subscribes again by itself. A *disconnect* ends the connection; the client comes back by itself, except after
3500 to 3999 and 4500 to 4999.
"""

import msgspec

from hubbub.model.command import Refusal
from hubbub.model.end import Disconnect, End
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name
from hubbub.model.subscriber import Loss


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a command that wasn't carried out; `temporary`: it may be, later."""

    code: int
    message: str
    temporary: bool = False

    def because(self, why: str) -> "Error":
        """Say more."""
        return Error(self.code, f"{self.message}: {why}", self.temporary)


INTERNAL = Error(100, "internal server error", temporary=True)
UNKNOWN_CHANNEL = Error(102, "unknown channel")
PERMISSION_DENIED = Error(103, "permission denied")
ALREADY_SUBSCRIBED = Error(105, "already subscribed")
LIMIT_EXCEEDED = Error(106, "limit exceeded")
BAD_REQUEST = Error(107, "bad request")
NOT_AVAILABLE = Error(108, "not available")
TOKEN_EXPIRED = Error(109, "token expired")
TOO_MANY_REQUESTS = Error(111, "too many requests", temporary=True)
UNRECOVERABLE = Error(112, "unrecoverable position")

ERRORS = {
    Refusal.UNKNOWN_NAMESPACE: UNKNOWN_CHANNEL,
    Refusal.NOT_LET_IN: PERMISSION_DENIED,
    Refusal.DENIED: PERMISSION_DENIED,
    Refusal.HISTORY_DENIED: PERMISSION_DENIED,
    Refusal.ALREADY_SUBSCRIBED: ALREADY_SUBSCRIBED,
    Refusal.TOO_MANY_SUBSCRIPTIONS: LIMIT_EXCEEDED,
    Refusal.TOO_MANY_ROOMS: LIMIT_EXCEEDED,
    Refusal.ROOM_FULL: LIMIT_EXCEEDED,
    Refusal.TOO_MANY_OF_USER: LIMIT_EXCEEDED,
    Refusal.UNRECOVERABLE: UNRECOVERABLE,
    Refusal.SWITCHED_OFF: NOT_AVAILABLE,
    Refusal.TOO_MANY_KEYS: TOO_MANY_REQUESTS,
    Refusal.BUSY: INTERNAL,
    Refusal.UNANSWERED: INTERNAL,
    Refusal.STOPPING: INTERNAL,
    Refusal.INTERNAL_ERROR: INTERNAL,
}

UNSUBSCRIBES = {
    Loss.REMOVED: Disconnect(2000, "server unsubscribe"),
    Loss.GAP: Disconnect(2500, "insufficient state"),
    Loss.ROOM_ENDED: Disconnect(2502, "state invalidated"),
}

DISCONNECTS = {
    End.SHUTDOWN: Disconnect(3001, "shutdown"),
    End.INTERNAL_ERROR: Disconnect(3004, "internal server error"),
    End.UNANSWERED: Disconnect(3004, "internal server error"),
    End.EXPIRED: Disconnect(3005, "connection expired"),
    End.SUBSCRIPTION_EXPIRED: Disconnect(3006, "subscription expired"),
    End.SLOW_CONSUMER: Disconnect(3008, "slow"),
    End.GAP: Disconnect(3010, "insufficient state"),
    End.NO_PONG: Disconnect(3012, "no pong"),
    End.TOO_FAST: Disconnect(3013, "too many requests"),
    End.TOO_MANY_CONTROL_FRAMES: Disconnect(3013, "too many requests"),
    End.INVALID_TOKEN: Disconnect(3500, "invalid token"),
    End.BAD_REQUEST: Disconnect(3501, "bad request"),
    End.TOO_MANY_FRAGMENTS: Disconnect(3501, "bad request"),
    End.STALE: Disconnect(3502, "stale"),
    End.DISMISSED: Disconnect(3503, "force disconnect"),
    End.TOO_MANY_OF_USER: Disconnect(3504, "connection limit"),
    End.WRONG_FORMAT: Disconnect(3506, "inappropriate protocol"),
    End.NOT_PERMITTED: Disconnect(3507, "permission denied"),
    End.NOT_AVAILABLE: Disconnect(3508, "not available"),
    End.MESSAGE_TOO_LARGE: Disconnect(1009, "message too large"),
}
"""Ends that aren't here leave nobody to tell, or are answered by trio-websocket (protocol errors, Close)."""


class RefusedError(Exception):
    """The command gets this error, and the conversation goes on."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


class FatalError(Exception):
    """The connection ends; `detail` says more than `end`."""

    def __init__(self, end: End, detail: str) -> None:
        super().__init__(detail)
        self.end = end
        self.detail = detail


def room_of(name: str | None) -> str:
    """Return the room that a command is for.

    Raises:
        FatalError: it names none.
        RefusedError: no room may be called so.
    """
    if not name:
        raise FatalError(End.BAD_REQUEST, "a command without its channel")
    try:
        return check_room_name(name)
    except RoomNameError as error:
        raise RefusedError(BAD_REQUEST.because(str(error))) from error
