"""Who may become what at the upgrade: rooms, tokens and options of the request's target.

A structured client introduces itself afterwards, by its first command; a plain one has only this moment, so what it may
not have is refused before the 101: 401 (its token) and 404 (no such namespace) here, 403 (the room, its history) by the
hub or the back end, when it joins.
"""

from collections.abc import Callable
from functools import partial

from hubbub.auth.access import Access, Credentials
from hubbub.auth.tokens import TokenError, TokenFault
from hubbub.config import Settings
from hubbub.dialects.base import Conversation
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.dialects.plain import PlainConversation
from hubbub.model.publication import Member
from hubbub.model.question import Asks
from hubbub.model.subscriber import Subscriber
from hubbub.web.http import HttpError
from hubbub.web.upgrade import read_history, read_native_pings, read_room, read_token

Converse = Callable[[Subscriber, Member], Conversation]
"""How the connection, once it exists, begins its side of the conversation."""


class Admission:
    """What is decided about an upgrade beyond the request itself.

    Args:
        settings: namespaces and permissions.
        access: who a client is, by its token.
        asks: whether the back end is to be asked.
        clock: the node's.
    """

    def __init__(self, settings: Settings, access: Access, asks: Asks, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._access = access
        self._asks = asks
        self._clock = clock

    def structured(self, query: str) -> Converse:
        """Let a structured client in."""
        return partial(self._converse, native_pings=read_native_pings(query))

    def plain(self, path: str, query: str) -> Converse:
        """Let a plain client in, as far as its request says whether it may: the hub has the last word.

        Raises:
            HttpError: it may not.
        """
        settings, room, history = self._settings, read_room(path), read_history(query)
        if settings.namespace(room) is None:
            known = ", ".join(sorted(settings.namespaces)) or "none"
            raise HttpError(404, f"namespace: got {room.partition(':')[0]!a}, configured: {known}")
        try:
            who = self._access.connect(read_token(query))
        except TokenError as error:
            if error.fault is not TokenFault.MISSING or not self._asks("connect", room):
                raise HttpError(403 if error.fault is TokenFault.STRANGER else 401, f"token: {error}") from error
            who = Credentials()  # the back end will say
        return partial(PlainConversation, who=who, room=room, history=history, asks=self._asks)

    def _converse(self, subscriber: Subscriber, member: Member, native_pings: bool) -> Conversation:
        now = self._clock()
        return CentrifugoConversation(subscriber, member, self._settings, self._access, self._asks, now, native_pings)
