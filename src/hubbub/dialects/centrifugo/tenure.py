"""How long a connection and its subscriptions last: as long as their tokens, and a grace in which new ones may come."""

from collections.abc import Mapping

from hubbub.auth.access import Access
from hubbub.config import Settings
from hubbub.model.end import End


class Tenure:
    """What is to expire, of one connection.

    Attributes:
        ends_at: when the connection's token expires, on the node's clock; None: never.
        rooms: when the tokens of its subscriptions do, where they do.
    """

    __slots__ = ("_access", "_bounds", "_settings", "ends_at", "rooms")

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings = settings
        self._access = access
        self.ends_at: float | None = None
        self.rooms: dict[str, float] = {}
        self._bounds: Mapping[str, float] = {}  # what the back end has said of rooms: no token is good for longer

    def set_room(self, room: str, ends_at: float | None) -> None:
        """Note when a subscription ends."""
        if ends_at is None:
            self.rooms.pop(room, None)
        else:
            self.rooms[room] = ends_at

    def bind(self, room: str, ends_at: float | None) -> None:
        """Note what the back end has said of a room, before it is joined; None: nothing."""
        bounds = {name: bound for name, bound in self._bounds.items() if name != room}
        self._bounds = bounds if ends_at is None else {**bounds, room: ends_at}

    def bounded(self, room: str, ends_at: float | None) -> float | None:
        """Return until when a token that is good until then is good for that room."""
        bound = self._bounds.get(room)
        return ends_at if bound is None else min(bound, bound if ends_at is None else ends_at)

    def overdue(self, now: float) -> End | None:
        """Return which has expired without a new token, if one has."""
        late = now - self._settings.token_grace_seconds_max
        if self.ends_at is not None and self.ends_at <= late:
            return End.EXPIRED
        return End.SUBSCRIPTION_EXPIRED if min(self.rooms.values(), default=now) <= late else None

    def lifetime(self, ends_at: float | None) -> dict[str, object]:
        """Return the members of a reply that tell the client when to bring a new token."""
        return {} if ends_at is None else {"expires": True, "ttl": self._access.seconds_left(ends_at)}
