"""In place of tokens: everyone is who the test says. And of a back end: nobody asks it."""

from collections.abc import Iterable

from hubbub.auth.access import Access, Credentials
from hubbub.auth.keys import KeyRing
from hubbub.auth.tokens import Verifier
from hubbub.config import Settings
from hubbub.model.command import Command
from hubbub.model.question import Ask, Asked


class Known(Access):
    """Who connects is this user; "" for a stranger. Tokens for rooms are refused, as there are no keys."""

    def __init__(self, settings: Settings, user: str = "") -> None:
        super().__init__(settings, Verifier(settings, KeyRing(settings), lambda: 0.0), lambda: 0.0, lambda: 0.0)
        self._user = user

    def connect(self, token: str) -> Credentials:
        """Return that user; a token is refused, as there are no keys."""
        return super().connect(token) if token else Credentials(self._user)


def nothing_is_asked(what: Asked, room: str) -> bool:
    """Implement `hubbub.model.question.Asks`."""
    return False


def commands_of(steps: Iterable[Command | Ask]) -> list[Command]:
    """Return what a conversation gives where nothing is asked."""
    commands = []
    for step in steps:
        assert not isinstance(step, Ask)
        commands.append(step)
    return commands
