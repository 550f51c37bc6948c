"""What a back end is told of (`hubbub.hooks`), as the hub and connections see it: called, and forgotten."""

from typing import Protocol

from hubbub.model.publication import Member


class Notices(Protocol):
    """Takes what has happened. None of it ever waits or raises."""

    def joined(self, room: str, member: Member) -> None:
        """A member has joined a room."""
        ...

    def left(self, room: str, member: Member) -> None:
        """A member has left a room: once for each `joined`, after it."""
        ...

    def opened(self, room: str) -> None:
        """A room has its first member, who is told of next."""
        ...

    def emptied(self, room: str) -> None:
        """A room's last member has left; that was told before."""
        ...

    def disconnected(self, member: Member, code: int | None, reason: str) -> None:
        """A connection that had been let in has ended; `code` is that of the Close, None where there was none."""
        ...


class NobodyTold:
    """Implements `Notices` where nobody wants to know."""

    def joined(self, room: str, member: Member) -> None:
        """Nothing."""

    def left(self, room: str, member: Member) -> None:
        """Nothing."""

    def opened(self, room: str) -> None:
        """Nothing."""

    def emptied(self, room: str) -> None:
        """Nothing."""

    def disconnected(self, member: Member, code: int | None, reason: str) -> None:
        """Nothing."""
