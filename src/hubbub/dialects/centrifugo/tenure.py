"""How long a connection and its subscriptions last: as long as their tokens, and a grace in which new ones may come."""

from hubbub.auth.access import Access
from hubbub.config import Settings
from hubbub.model.end import End


def sooner(one: float | None, other: float | None) -> float | None:
    """Return which of two ends comes first; None: never."""
    return min((end for end in (one, other) if end is not None), default=None)


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
        self._bounds: dict[str, float] = {}  # what the back end has said of these: no token is good for longer

    def begin(self, room: str, ends_at: float | None, bound: float | None = None) -> None:
        """Note when a subscription ends that has begun (None: never), and what the back end has said of that."""
        self.end(room)
        self.set_room(room, ends_at)
        if bound is not None:
            self._bounds[room] = bound

    def end(self, room: str) -> None:
        """Forget a subscription that has ended, if there was one."""
        self.rooms.pop(room, None)
        self._bounds.pop(room, None)

    def set_room(self, room: str, ends_at: float | None) -> None:
        """Note when a subscription ends that there is."""
        if ends_at is None:
            self.rooms.pop(room, None)
        else:
            self.rooms[room] = ends_at

    def bounded(self, room: str, ends_at: float | None) -> float | None:
        """Return until when a token that is good until then is good for a room that it is in."""
        return sooner(ends_at, self._bounds.get(room))

    def overdue(self, now: float) -> End | None:
        """Return which has expired without a new token, if one has."""
        late = now - self._settings.token_grace_seconds_max
        if self.ends_at is not None and self.ends_at <= late:
            return End.EXPIRED
        return End.SUBSCRIPTION_EXPIRED if min(self.rooms.values(), default=now) <= late else None

    def lifetime(self, ends_at: float | None) -> dict[str, object]:
        """Return the members of a reply that tell the client when to bring a new token."""
        return {} if ends_at is None else {"expires": True, "ttl": self._access.seconds_left(ends_at)}
