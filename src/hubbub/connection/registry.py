"""All connections of a node, and whose they are: for the heartbeat, the drain, and the server API."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubbub.connection.connection import Connection


class Connections:
    """Each connection adds and discards itself, and says whose it is once that is known."""

    def __init__(self) -> None:
        self._all: set[Connection] = set()
        self._of_user: dict[str, set[Connection]] = {}  # strangers aren't in it

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator["Connection"]:
        return iter(self._all)

    @property
    def users(self) -> int:
        """How many different users there are; all strangers are one."""
        strangers = any(not connection.member.user for connection in self._all)
        return len(self._of_user) + strangers

    def of_user(self, user: str) -> list["Connection"]:
        """Return the connections of a user; of strangers for ""."""
        if user:
            return list(self._of_user.get(user, ()))
        return [connection for connection in self._all if not connection.member.user]

    def add(self, connection: "Connection") -> None:
        """Add a connection."""
        self._all.add(connection)

    def introduce(self, connection: "Connection") -> int:
        """Learn whose a connection is; return how many of that user there are that aren't ending.

        0 for strangers, for a connection that isn't here, and for one of which that is known.
        """
        user = connection.member.user
        if not user or connection not in self._all or connection in self._of_user.get(user, ()):
            return 0
        connections = self._of_user.setdefault(user, set())
        connections.add(connection)
        return sum(one.ended is None for one in connections)

    def discard(self, connection: "Connection") -> None:
        """Forget a connection, if it is there."""
        self._all.discard(connection)
        user = connection.member.user
        connections = self._of_user.get(user)
        if connections is not None:
            connections.discard(connection)
            if not connections:
                del self._of_user[user]
