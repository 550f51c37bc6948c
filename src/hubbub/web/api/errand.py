"""What a method works with: the node's parts, the hub's answers, the connections that a request is about.

Rules:
1. Whatever changes a room or a connection goes through the hub's inbox, so it has its place among all other commands.
2. A request waits `api_seconds_max` for the inbox to take its commands; one that isn't taken isn't carried out. From
   then on it waits for the hub, which always answers.
3. What a connection's end makes impossible while it is being asked for is no mistake: nobody is there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import msgspec
import trio

from hubbub.auth.access import Access
from hubbub.auth.api_keys import ApiKey
from hubbub.config import Settings
from hubbub.connection.connection import Connection
from hubbub.connection.registry import Connections
from hubbub.core.rooms import Rooms
from hubbub.dialects.centrifugo.codes import ERRORS, Error, RefusedError
from hubbub.hub.inbox import Inbox
from hubbub.model.command import Answer, Command, Done, Refusal, Refused, Reply, Tell

Question: TypeAlias = Callable[[Reply], Command | None]
"""Makes a command with that reply; None: there is nothing to do."""


class Means(msgspec.Struct, frozen=True):
    """What all requests share.

    Attributes:
        settings: limits and namespaces.
        inbox: the hub's.
        rooms: who is where; only looked at.
        connections: whose they are.
        access: for its clock.
        uid: the node's own name, anew at each start.
        name: of its machine.
        started_at: on Trio's clock.
    """

    settings: Settings
    inbox: Inbox
    rooms: Rooms
    connections: Connections
    access: Access
    uid: str
    name: str
    started_at: float


class Errand:
    """One request being carried out.

    Attributes:
        means: what all requests share.
        key: what it was let in with.
    """

    def __init__(self, means: Means, key: ApiKey) -> None:
        self.means = means
        self.key = key
        self._deadline = trio.current_time() + means.settings.api_seconds_max

    async def ask(self, question: Question) -> Answer:
        """Have one command carried out, and return the answer.

        Raises:
            RefusedError: it is a refusal.
        """
        (answer,) = await self.ask_all([question])
        if isinstance(answer, Refused):
            raise RefusedError(error_of(answer))
        return answer

    async def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Have commands carried out in their order, and return their answers."""
        pending: list[_Pending] = []
        with trio.CancelScope(deadline=self._deadline):
            for question in questions:
                one = _Pending()
                command = question(one.give)
                if command is None:
                    one.give(Done())
                else:
                    await self.means.inbox.put(command)
                pending.append(one)
        answers = [await one.answer() for one in pending]
        return [*answers, *[Refused(Refusal.BUSY)] * (len(questions) - len(pending))]

    async def tell_all(self, questions: Sequence[tuple[Connection, Question]]) -> None:
        """As `ask_all`, for something about each of these connections.

        Raises:
            RefusedError: the first refusal for a connection that is still there.
        """
        answers = await self.ask_all([question for _, question in questions])
        for (connection, _), answer in zip(questions, answers, strict=True):
            if isinstance(answer, Refused) and not (connection.gone and answer.why is Refusal.STOPPING):
                raise RefusedError(error_of(answer))

    def connections_of(self, user: str, client: str | None) -> list[Connection]:
        """Return a user's connections, or the one of that name."""
        return [one for one in self.means.connections.of_user(user) if client is None or one.member.client == client]

    def on_our_clock(self, unix_time: float | None) -> float | None:
        """Return a time as connections count it; None, and 0, is never."""
        return self.means.access.on_our_clock(unix_time or None)


def telling(connection: Connection, act: Callable[[], object], *, ends: bool = False) -> Question:
    """Return the question that has something done to a connection when it is its turn."""
    return lambda reply: Tell(connection, partial(_act, act, reply), ends)


def error_of(refused: Refused) -> Error:
    """Return what the back end is told."""
    late = refused.why is Refusal.BUSY
    return ERRORS[refused.why].because("the hub didn't take it in time" if late else refused.why.value)


class _Pending:
    """An answer that is still to come."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._given = trio.Event()

    def give(self, answer: Answer) -> None:
        self._answer = answer
        self._given.set()

    async def answer(self) -> Answer:
        await self._given.wait()
        assert self._answer is not None
        return self._answer


def _act(act: Callable[[], object], reply: Reply) -> None:
    try:
        act()
    finally:
        reply(Done())  # somebody waits for it, whatever comes of it
