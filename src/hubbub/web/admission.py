"""Who may become what at the upgrade: rooms, tokens and options of the request's target.

A structured client introduces itself afterwards, by its first command; a plain one has only this moment, so what it may
not have is refused here: 401 (its token), 403 (the room, its history), 404 (no such namespace).
"""

from collections.abc import Callable
from functools import partial

from hubbub.auth.access import Access
from hubbub.auth.permissions import Standing, may, may_subscribe
from hubbub.auth.tokens import TokenError, TokenFault
from hubbub.config import Settings
from hubbub.dialects.base import Conversation
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.dialects.plain import PlainConversation
from hubbub.model.command import Refusal
from hubbub.model.publication import Member
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
        clock: the node's.
    """

    def __init__(self, settings: Settings, access: Access, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._access = access
        self._clock = clock

    def structured(self, query: str) -> Converse:
        """Let a structured client in."""
        return partial(self._converse, native_pings=read_native_pings(query))

    def plain(self, path: str, query: str) -> Converse:
        """Let a plain client in.

        Raises:
            HttpError: it may not, or not as it wants.
        """
        settings, room, history = self._settings, read_room(path), read_history(query)
        namespace = settings.namespace(room)
        if namespace is None:
            known = ", ".join(sorted(settings.namespaces)) or "none"
            raise HttpError(404, f"namespace: got {room.partition(':')[0]!a}, configured: {known}")
        try:
            who = self._access.connect(read_token(query))
        except TokenError as error:
            raise HttpError(403 if error.fault is TokenFault.STRANGER else 401, f"token: {error}") from error
        if not settings.insecure:
            if not may_subscribe(namespace.allow_subscribe, room, Standing(who.user)):
                raise HttpError(403, f"room: {Refusal.DENIED.value}")
            if history and not may(namespace.allow_history, Standing(who.user, subscribed=True)):
                raise HttpError(403, f"history: {Refusal.DENIED.value}")
        return partial(PlainConversation, who=who, room=room, history=history)

    def _converse(self, subscriber: Subscriber, member: Member, native_pings: bool) -> Conversation:
        now = self._clock()
        return CentrifugoConversation(subscriber, member, self._settings, self._access, now, native_pings)
