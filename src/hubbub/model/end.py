"""How a connection ends.

`End` says why, in hubbub's own words: the log and the metrics count these. What the peer is told is a
`Disconnect`: each dialect keeps a table from `End` to its own code and reason (`dialects/`).
"""

import enum

import msgspec


class End(enum.Enum):
    """Why a connection ended. The first reason counts; later ones are consequences."""

    # The peer's doing.
    PEER_CLOSED = "peer_closed"  # a Close frame
    PEER_LEFT = "peer_left"  # end of stream without a Close frame
    PEER_RESET = "peer_reset"  # the operating system reports a broken connection
    PROTOCOL_ERROR = "protocol_error"  # trio-websocket's verdict on malformed frames
    MESSAGE_TOO_LARGE = "message_too_large"
    TOO_MANY_FRAGMENTS = "too_many_fragments"
    TOO_MANY_CONTROL_FRAMES = "too_many_control_frames"
    TOO_FAST = "too_fast"  # over its rates for too long
    BAD_REQUEST = "bad_request"  # a command that makes no sense
    WRONG_FORMAT = "wrong_format"  # binary where the dialect is text
    NOT_AVAILABLE = "not_available"  # a command that nothing here listens to
    INVALID_TOKEN = "invalid_token"
    NOT_PERMITTED = "not_permitted"
    EXPIRED = "expired"  # brought no new token in time
    SUBSCRIPTION_EXPIRED = "subscription_expired"  # nor for a room
    STALE = "stale"  # didn't introduce itself in time
    NO_PONG = "no_pong"
    SLOW_CONSUMER = "slow_consumer"  # evicted: its outbox was over a limit
    WRITE_STALL = "write_stall"  # took no byte for too long
    HANDSHAKE_TIMEOUT = "handshake_timeout"  # the hub was too busy to let it in
    # Ours.
    SHUTDOWN = "shutdown"
    DISMISSED = "dismissed"  # the back end wants it to go
    REMOVED = "removed"  # ... or to leave its only room
    GAP = "gap"  # a publication is missing in a room where only the server could subscribe it again
    TOO_MANY_OF_USER = "too_many_of_user"
    UNANSWERED = "unanswered"  # the back end didn't say whether it may
    ROOM_ENDED = "room_ended"  # its only room is lost: a gap, or an exception in the room's step
    INTERNAL_ERROR = "internal_error"  # an exception in the code that serves this connection
    REFUSED = "refused"  # never opened: no room for it
    CANCELLED = "cancelled"  # cut off by the drain's deadline or a second signal


NOBODY_TO_TELL = frozenset({End.PEER_LEFT, End.PEER_RESET, End.WRITE_STALL})
"""Ends after which nothing can be sent any more."""


class Disconnect(msgspec.Struct, frozen=True):
    """What the peer is told in the Close frame.

    Attributes:
        code: RFC 6455 section 7.4; 3000 and up belong to dialects.
        reason: at most 123 bytes of UTF-8, for people.
    """

    code: int
    reason: str
