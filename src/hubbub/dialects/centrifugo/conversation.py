"""One connection that speaks the structured dialect: commands in, replies out.

    NEW ── connect ──▶ READY ── whatever isn't allowed ──▶ OVER
     ├──── anything else ────────────────────────────────────▲
     └── an expired token ──▶ REFUSED ── stale ──────────────┘

Rules:
1. Commands are carried out in their order, and answered in it: what needs no hub goes through it all the same. What
   each of them asks for is said in `hubbub.dialects.centrifugo.methods`.
2. What a client can't mean (broken JSON, a command too early, an unknown one) ends the connection with a code. What
   can't be done is an error, and the connection goes on.
3. Replies that were given in one pass of the hub leave in one frame, separated by newlines.
4. One pong a ping.
5. Who is in a room because the server wants it can't come back there by itself: if it loses the room for a fault of
   ours, its connection ends, so that it comes back to all.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from hubbub.auth.access import Access
from hubbub.auth.tokens import TokenError, TokenFault
from hubbub.config import Settings
from hubbub.core.frames import PING, TEXT, encode_frame
from hubbub.dialects.centrifugo import replies, requests
from hubbub.dialects.centrifugo.codes import ERRORS, UNSUBSCRIBES, Error, FatalError, RefusedError
from hubbub.dialects.centrifugo.dialect import encode_push
from hubbub.dialects.centrifugo.methods import METHODS
from hubbub.dialects.centrifugo.tenure import Tenure
from hubbub.model.command import Answer, Command, Refused, Reply, Subscribe, Subscribed, Tell
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Member, Position
from hubbub.model.question import Allowed, Ask, Asks
from hubbub.model.subscriber import Loss, Subscriber

PING_FRAME = encode_frame(TEXT, b"{}")
NATIVE_PING_FRAME = encode_frame(PING, b"hubbub")


class State(enum.Enum):
    """Where the conversation is."""

    NEW = "new"
    REFUSED = "refused"  # it may get a new token, and come back
    READY = "ready"
    OVER = "over"  # the connection is ending: nothing is listened to any more


_DEAF = frozenset({State.REFUSED, State.OVER})
"""What comes then isn't looked at."""

_FATAL_TOKENS = {TokenFault.MISSING: End.BAD_REQUEST, TokenFault.STRANGER: End.NOT_PERMITTED}
"""How a connection ends whose token isn't accepted; all other faults: an invalid token."""

Step = Command | Ask


class CentrifugoConversation:
    """Implements `hubbub.dialects.base.Conversation`.

    Args:
        subscriber: the connection.
        member: how others see it.
        settings: ping_seconds, message_commands_max, stale_seconds_max, token_grace_seconds_max.
        access: who it is.
        asks: whether the back end is to be asked.
        now: the node's clock.
        native_pings: whether the client asked for pings of RFC 6455 instead of the protocol's own.
    """

    __slots__ = (
        "_began_at",
        "_introduced",
        "_pings",
        "_replies",
        "access",
        "asks",
        "by_back_end",
        "by_server",
        "member",
        "native_pings",
        "settings",
        "state",
        "subscriber",
        "tenure",
    )

    has_runs = False

    def __init__(
        self,
        subscriber: Subscriber,
        member: Member,
        settings: Settings,
        access: Access,
        asks: Asks,
        now: float,
        native_pings: bool,
    ) -> None:
        self.subscriber = subscriber
        self.member = member
        self.settings = settings
        self.access = access
        self.asks = asks
        self.native_pings = native_pings
        self.tenure = Tenure(settings, access)
        self.state = State.NEW
        self.by_back_end: Allowed | None = None  # what it said of this connection
        self.by_server: frozenset[str] = frozenset()  # rooms in which it is because the server wants it there
        self._began_at = now
        self._introduced = False
        self._replies: list[bytes] = []
        self._pings = 0  # those that haven't been answered

    @property
    def is_known(self) -> bool:
        """Whether it has introduced itself, and was let in."""
        return self._introduced

    @property
    def about(self) -> Mapping[str, str]:
        """Who it is."""
        return {"user": self.member.user, "client": self.member.client}

    def overdue(self, now: float) -> End | None:
        """Return why the connection must end by now: no introduction, or no new token in time."""
        if self.state in (State.NEW, State.REFUSED):
            return End.STALE if now - self._began_at >= self.settings.stale_seconds_max else None
        return self.tenure.overdue(now)

    def opening(self, reply: Reply) -> tuple[()]:
        """Nothing is owed before the 101."""
        return ()

    def receive(self, data: bytes, binary: bool) -> Iterator[Step]:
        """Give what the commands of one frame ask for, each understood when its turn has come."""
        if self.state in _DEAF:
            return
        try:
            if binary:
                raise FatalError(End.WRONG_FORMAT, "allowed: text frames of JSON")
            for line in requests.lines_of(data, self.settings.message_commands_max):
                yield from self._understand(line)
                if self.state in _DEAF:
                    return
        except (FatalError, requests.MalformedRequestError) as error:
            end = error.end if isinstance(error, FatalError) else End.BAD_REQUEST
            yield self.over(end, str(error))

    def receive_run(self, messages: Sequence[bytes], binary: bool) -> None:
        """Each may hold several commands, and has to be understood by itself."""

    def replies(self) -> bytes:
        """Return the frame of the replies that wait."""
        if not self._replies:
            return b""
        replies, self._replies = self._replies, []
        return encode_frame(TEXT, b"\n".join(replies))

    def lose(self, room: str, loss: Loss) -> bytes | End:
        """Return the push that ends a subscription; or the end of the connection, if it couldn't subscribe again."""
        self.tenure.end(room)
        if room in self.by_server:
            self.by_server -= {room}
            if loss is not Loss.REMOVED:
                return End.GAP
        return encode_push(room, b'"unsubscribe":' + msgspec.json.encode(UNSUBSCRIBES[loss]))

    def ping(self) -> bytes:
        """Return a ping of the kind that the client asked for."""
        if self.native_pings:
            return NATIVE_PING_FRAME
        self._pings += 1
        return PING_FRAME

    def admit(
        self,
        room: str,
        reply: Reply,
        *,
        info: bytes = b"",
        data: bytes = b"",
        since: Position | None = None,
        ends_at: float | None = None,
    ) -> Subscribe | None:
        """Return the command that subscribes it by the server; None if it hasn't introduced itself yet."""
        if self.state is not State.READY:
            return None
        told = partial(self._tell_admitted, room, data, since, ends_at, reply)
        return Subscribe(self.subscriber, room, told, since=since, joins=False, by_server=True, info=info)

    def extend(self, ends_at: float | None, info: bytes) -> None:
        """Let it be until then: the back end has the last word."""
        self.tenure.ends_at = ends_at
        self.by_back_end = Allowed(info=info or (self.by_back_end or Allowed()).info, ends_at=ends_at)
        if info:
            self.introduce(self.member.user, info)

    # -- for the methods

    def ready(self) -> None:
        """Go on: it has introduced itself."""
        self.state, self._introduced = State.READY, True

    def refused(self) -> None:
        """Listen no more: it may come back better equipped."""
        self.state = State.REFUSED

    def dismissed(self, disconnect: Disconnect) -> Tell:
        """End the conversation as the back end wants it; return the command that ends the connection."""
        self.state = State.OVER
        return Tell(self.subscriber, lambda: self.subscriber.dismiss(disconnect), ends=True)

    def introduce(self, user: str, info: bytes) -> bool:
        """Be that user, and be seen so by others; False if the user has too many connections."""
        self.member = Member(user, self.member.client, info)
        return self.subscriber.introduce(self.member)

    def carefully(self, number: int, make: Callable[[], Step]) -> Step:
        """Return what `make` makes, or what its refusal becomes.

        Raises:
            FatalError: the connection must end.
        """
        try:
            return make()
        except TokenError as error:
            raise FatalError(_FATAL_TOKENS.get(error.fault, End.INVALID_TOKEN), str(error)) from error
        except RefusedError as refused:
            return self.refuse(number, refused.error)

    def refuse(self, number: int, error: Error) -> Tell:
        """Return the command that answers with an error when its turn has come."""
        content = msgspec.json.encode(error)
        return Tell(self.subscriber, lambda: self.say(number, b"error", content))

    def over(self, end: End, detail: str = "") -> Tell:
        """End the conversation: listen no more, and return the command that ends the connection."""
        self.state = State.OVER
        return Tell(self.subscriber, lambda: self.subscriber.evict(end, detail), ends=True)

    def say(self, number: int, member: bytes, content: bytes) -> None:
        """Reply."""
        self._replies.append(replies.encode_reply(number, member, content))

    def answer(self, number: int, member: bytes, encode: Callable[[Answer], bytes], answer: Answer) -> None:
        """Reply what `encode` makes of the answer, or an error if it is a refusal."""
        if isinstance(answer, Refused):
            self.say(number, b"error", msgspec.json.encode(ERRORS[answer.why].because(answer.why.value)))
        else:
            self.say(number, member, encode(answer))

    # -- parts

    def _understand(self, line: bytes) -> Iterator[Step]:
        request = requests.decode(line)
        for method in requests.METHODS:
            body = getattr(request, method)
            if body is not None:
                break
        else:
            self._pong(request)
            return
        if not request.id and method != "send":
            raise FatalError(End.BAD_REQUEST, "a command without an id above 0")
        if (self.state is State.NEW) != (method == "connect"):
            raise FatalError(End.BAD_REQUEST, "allowed: connect first, and once")
        number = request.id or 0
        yield self.carefully(number, lambda: METHODS[method](self, number, body))

    def _pong(self, request: requests.Request) -> None:
        if request.id:
            raise FatalError(End.BAD_REQUEST, "unknown command")
        if not self._pings:
            raise FatalError(End.BAD_REQUEST, "a pong without a ping")
        self._pings -= 1

    def _tell_admitted(
        self, room: str, data: bytes, since: Position | None, ends_at: float | None, reply: Reply, answer: Answer
    ) -> None:
        if isinstance(answer, Subscribed):
            self.by_server |= {room}
            self.tenure.begin(room, ends_at)
            self._replies += replies.encode_subscribe_pushes(room, data, since, answer)
        reply(answer)
