"""Who a client is, by the token that it shows or doesn't.

Rules:
1. Without a token it is a stranger, where strangers are admitted: with `anonymous`, with `insecure`, and where no keys
   are configured at all, which the start only lets be on loopback.
2. A token that is shown is checked, whatever else would be allowed.
3. A token for a room is good for that room and that user only.
"""

import base64
from collections.abc import Callable, Iterable, Mapping

import msgspec

from hubbub.auth.tokens import Claims, Grant, TokenError, TokenFault, Verifier
from hubbub.config import Settings
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name

SECONDS_MAX = 2**31 - 1
"""The longest time that a client is told: some keep it as a signed number of 32 bits."""


class Membership(msgspec.Struct, frozen=True):
    """How the server subscribes a client to a room: JSON for others there to see, and for the client; b"" for none."""

    info: bytes = b""
    data: bytes = b""


class Credentials(msgspec.Struct, frozen=True):
    """What is known of a client.

    Attributes:
        user: "" for a stranger.
        info: JSON for others to see; b"" for none.
        ends_at: when it has to bring a new token, on the node's clock; None: never.
        rooms: which rooms the server subscribes it to.
    """

    user: str = ""
    info: bytes = b""
    ends_at: float | None = None
    rooms: Mapping[str, Membership] = {}


class Access:
    """Shared by all connections of a node.

    Args:
        settings: anonymous, insecure, and whether there are keys.
        verifier: reads tokens.
        clock: the node's clock, in seconds.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self, settings: Settings, verifier: Verifier, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._clock = clock
        self._wall_clock = wall_clock

    @property
    def admits_strangers(self) -> bool:
        """Whether one may come without a token."""
        settings = self._settings
        return settings.insecure or settings.anonymous or not settings.has_keys

    def connect(self, token: str) -> Credentials:
        """Return who shows that token; "" is none.

        Raises:
            TokenError: it isn't accepted, or there must be one; MISSING, INVALID, EXPIRED, or STRANGER.
        """
        if not token:
            if not self.admits_strangers:
                raise TokenError(TokenFault.MISSING, "a token is needed")
            return Credentials()
        claims = self._read(token)
        if claims.room:
            raise TokenError(TokenFault.INVALID, "it is a subscription's, not a connection's")
        if not claims.sub and not self.admits_strangers:
            raise TokenError(TokenFault.STRANGER, "it names no user, and strangers aren't admitted")
        try:
            rooms = memberships(claims.channels, claims.subs)
        except RoomNameError as error:
            raise TokenError(TokenFault.INVALID, f"its rooms: {error}") from error
        return Credentials(claims.sub, info_of(claims), self.on_our_clock(claims.ends_at), rooms)

    def subscribe(self, token: str, user: str, room: str) -> Credentials:
        """Return what a token says that is shown for a room by that user.

        Raises:
            TokenError: it isn't accepted; FOREIGN if it is another user's, or another room's.
        """
        claims = self._read(token)
        if claims.room != room or claims.sub != user:
            raise TokenError(TokenFault.FOREIGN, "it is for another room or another user")
        return Credentials(claims.sub, info_of(claims), self.on_our_clock(claims.ends_at))

    def _read(self, token: str) -> Claims:
        if not self._settings.has_keys:
            raise TokenError(TokenFault.INVALID, "no tokens are configured here")
        return self._verifier.read(token)

    def on_our_clock(self, ends_at: float | None) -> float | None:
        """Return a time in seconds since 1970 on the node's clock; None stays None."""
        return None if ends_at is None else ends_at - self._wall_clock() + self._clock()

    def seconds_left(self, ends_at: float) -> int:
        """Return how long something still lasts, in whole seconds, at least 1."""
        return max(1, round(min(ends_at - self._clock(), SECONDS_MAX)))


def memberships(rooms: Iterable[str], granted: Mapping[str, Grant]) -> dict[str, Membership]:
    """Return what is said of rooms: by name alone, and with more.

    Raises:
        RoomNameError: no room may be called so.
        TokenError: what is said of one isn't acceptable.
    """
    found = {check_room_name(room): Membership() for room in rooms}
    for room, grant in granted.items():
        found[check_room_name(room)] = Membership(info_of(grant), compact(grant.data))
    return found


def info_of(claims: Claims | Grant) -> bytes:
    """Return what others may see, on one line.

    Raises:
        TokenError: `b64info` isn't JSON in base64.
    """
    if not claims.b64info:
        return compact(claims.info)
    try:
        info = base64.b64decode(claims.b64info, validate=True)
        msgspec.json.decode(info)
        return compact(msgspec.Raw(info))
    except (ValueError, RecursionError) as error:
        raise TokenError(TokenFault.INVALID, "b64info: allowed: JSON in base64") from error


def compact(info: msgspec.Raw) -> bytes:
    """Return JSON on one line: where it goes, a newline ends a message."""
    data = bytes(info)
    return msgspec.json.format(data, indent=-1) if data else b""
