"""In place of tokens: everyone is who the test says."""

from hubbub.auth.access import Access, Credentials
from hubbub.auth.keys import KeyRing
from hubbub.auth.tokens import Verifier
from hubbub.config import Settings


class Known(Access):
    """Who connects is this user; "" for a stranger. Tokens for rooms are refused, as there are no keys."""

    def __init__(self, settings: Settings, user: str = "") -> None:
        super().__init__(settings, Verifier(settings, KeyRing(settings), lambda: 0.0), lambda: 0.0, lambda: 0.0)
        self._user = user

    def connect(self, token: str) -> Credentials:
        """Return that user; a token is refused, as there are no keys."""
        return super().connect(token) if token else Credentials(self._user)
