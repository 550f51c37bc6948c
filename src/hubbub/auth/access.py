"""Who a client is, by the token that it shows or doesn't.

Rules:
1. Without a token it is a stranger, where strangers are admitted: with `anonymous`, with `insecure`, and where no keys
   are configured at all, which the start only lets be on loopback.
2. A token that is shown is checked, whatever else would be allowed.
3. A token for a room is good for that room and that user only.
"""

from collections.abc import Callable, Mapping

import msgspec

from hubbub.auth.tokens import Claims, TokenError, TokenFault, Verifier
from hubbub.config import Settings
from hubbub.model.errors import RoomNameError
from hubbub.model.names import check_room_name

SECONDS_MAX = 2**31 - 1
"""The longest time that a client is told: some keep it as a signed number of 32 bits."""


class Credentials(msgspec.Struct, frozen=True):
    """What is known of a client.

    Attributes:
        user: "" for a stranger.
        info: JSON for others to see; b"" for none.
        ends_at: when it has to bring a new token, on the node's clock; None: never.
        rooms: which rooms the server subscribes it to, each with what its entry in `subs` says.
    """

    user: str = ""
    info: bytes = b""
    ends_at: float | None = None
    rooms: Mapping[str, msgspec.Raw] = {}


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
            for room in (*claims.channels, *claims.subs):
                check_room_name(room)
        except RoomNameError as error:
            raise TokenError(TokenFault.INVALID, f"its rooms: {error}") from error
        rooms = {**dict.fromkeys(claims.channels, msgspec.Raw(b"{}")), **claims.subs}
        return Credentials(claims.sub, _compact(claims.info), self.on_our_clock(claims), rooms)

    def subscribe(self, token: str, user: str, room: str) -> Credentials:
        """Return what a token says that is shown for a room by that user.

        Raises:
            TokenError: it isn't accepted; FOREIGN if it is another user's, or another room's.
        """
        claims = self._read(token)
        if claims.room != room or claims.sub != user:
            raise TokenError(TokenFault.FOREIGN, "it is for another room or another user")
        return Credentials(claims.sub, _compact(claims.info), self.on_our_clock(claims))

    def _read(self, token: str) -> Claims:
        if not self._settings.has_keys:
            raise TokenError(TokenFault.INVALID, "no tokens are configured here")
        return self._verifier.read(token)

    def on_our_clock(self, claims: Claims) -> float | None:
        """Return when what the claims open ends, on the node's clock."""
        ends_at = claims.ends_at
        return None if ends_at is None else ends_at - self._wall_clock() + self._clock()

    def seconds_left(self, ends_at: float) -> int:
        """Return how long something still lasts, in whole seconds, at least 1."""
        return max(1, round(min(ends_at - self._clock(), SECONDS_MAX)))


def _compact(info: msgspec.Raw) -> bytes:
    """Return JSON on one line: where it goes, a newline ends a message."""
    data = bytes(info)
    return msgspec.json.format(data, indent=-1) if data else b""
