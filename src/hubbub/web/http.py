"""HTTP/1.1 over a transport: h11 does the protocol, this adds reading, writing and limits.

Rules:
1. A request is its head. Whoever has looked at that decides what becomes of its body: it is read up to a limit, or
   read and discarded up to another, so that the connection can go on to the next request.
2. A body over its limit ends the connection (413): nobody reads the rest just to find the next request.
"""

import email.utils
import re
from collections.abc import Callable
from http import HTTPStatus

import h11
import msgspec
import trio

from hubbub.config import Settings
from hubbub.connection.transport import Transport
from hubbub.connection.turnstile import Turnstile

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
READABLE = ("GET", "HEAD")
"""Methods for what there is to look at."""
_READ_BYTES = 4096
_DETAIL_CHARACTERS_MAX = 200
"""h11 quotes the line that it refuses; nobody needs all of a long one."""
_ABSOLUTE = re.compile("https?://(?P<authority>[^/?#]*)(?P<rest>.*)", re.IGNORECASE)


class Request(msgspec.Struct, frozen=True):
    """One request head. `target` in origin form; header names in lower case, values as text (Latin-1)."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]

    def fields(self, name: str) -> list[str]:
        """Return the values of all fields of that name (lower case), in their order."""
        return [value for key, value in self.headers if key == name]

    def tokens(self, name: str) -> list[str]:
        """Return the members of a comma-separated list field, in lower case (RFC 9110 section 5.6.1)."""
        members = ",".join(self.fields(name)).split(",")
        return [member.strip().lower() for member in members if member.strip()]


class Response(msgspec.Struct, frozen=True):
    """One response. `close` ends the connection after it."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


class HttpError(Exception):
    """The request can't be answered as asked; `response` says why.

    `quoting` is what only the client is told: its own line, which may hold a key, isn't for the log.
    `notable`: it depends on a setting that may be wrong, so the operator is told.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
        quoting: str = "",
        notable: bool = False,
    ) -> None:
        super().__init__(detail)
        self.notable = notable
        body = f"{status} {HTTPStatus(status).phrase}: {detail}{quoting}\n"
        self.response = Response(status, body.encode(), headers=headers, close=close)


def check_method(request: Request, allowed: tuple[str, ...]) -> None:
    """See that the method is one of those.

    Raises:
        HttpError: 405, it isn't.
    """
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, f"method: got {request.method[:20]!a}, allowed: {names}", (("Allow", names),))


class HttpConnection:
    """The server's side of one HTTP/1.1 connection, up to its end or an upgrade. Owns nothing."""

    def __init__(self, transport: Transport, settings: Settings, turnstile: Turnstile) -> None:
        self._transport = transport
        self._turnstile = turnstile
        self._settings = settings
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=settings.head_bytes_max)
        self._heard = False
        self._head_only = False

    @property
    def in_head(self) -> bool:
        """Whether the next request has begun and isn't complete."""
        return self._heard

    @property
    def can_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    @property
    def leftover(self) -> bytes:
        """What the peer sent behind an upgrade request."""
        return self._h11.trailing_data[0]

    async def wait(self) -> None:
        """Wait until the next request has begun, or the peer has ended the connection. No deadline of its own.

        Raises:
            trio.BrokenResourceError: the connection is broken.
        """
        self._h11.start_next_cycle()
        self._heard = bool(self.leftover)
        if self._heard:
            await trio.lowlevel.checkpoint()  # many requests sent at once mustn't keep everyone else waiting
        else:
            await self._receive()

    async def read_head(self) -> Request | None:
        """Wait for a request's head; None if the peer has ended the connection. No deadline of its own.

        Its body is to be read or discarded before the answer.

        Raises:
            HttpError: what came is not an acceptable request (400, 431, 501, 505).
            trio.BrokenResourceError: the connection is broken.
        """
        self._head_only = False
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        request = _request(event)
        self._head_only = request.method == "HEAD"
        if not request.version.startswith("1."):
            raise HttpError(505, f"HTTP version: got {request.version}, allowed: 1.1, 1.0", close=True)
        if request.fields("content-length") and request.fields("transfer-encoding"):
            # Somebody between us may have read it differently.
            raise HttpError(400, "body: got Content-Length and Transfer-Encoding, allowed: one of them", close=True)
        return request

    async def read_body(self, request: Request, bytes_max: int) -> bytes:
        """Return the body of the request whose head has been read. No deadline of its own.

        Raises:
            HttpError: it is over `bytes_max` (413), or malformed (400).
            trio.BrokenResourceError: the connection is broken.
        """
        body = bytearray()
        await self._take_body(request, bytes_max, body.extend)
        return bytes(body)

    async def discard_body(self, request: Request) -> None:
        """Read on to the end of the request whose head has been read. No deadline of its own.

        Raises:
            HttpError: the body is over `body_bytes_max` (413), or malformed (400).
            trio.BrokenResourceError: the connection is broken.
        """
        await self._take_body(request, self._settings.body_bytes_max, len)

    async def _take_body(self, request: Request, bytes_max: int, take: Callable[[bytes], object]) -> None:
        declared = int("".join(request.fields("content-length")) or "0")  # h11 has checked that it is one number
        received = 0
        while declared <= bytes_max and received <= bytes_max:
            event = await self._next_event()
            if not isinstance(event, h11.Data):
                return
            received += len(event.data)
            take(event.data)
        raise HttpError(413, f"body is over {bytes_max} bytes", close=True)

    async def respond(self, response: Response) -> None:
        """Send a response; does nothing if one has been sent to this request already. No deadline of its own.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers,
        ]
        if response.close:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(response.status).phrase
        data = self._h11.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
        if not self._head_only:
            data += self._h11.send(h11.Data(data=response.body)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        await self._send(data)

    async def _next_event(self) -> object:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                detail, colon, line = str(error)[:_DETAIL_CHARACTERS_MAX].partition(": ")
                if status == 431:
                    detail, colon, line = f"request head is over {self._settings.head_bytes_max} bytes", "", ""
                raise HttpError(status, detail, close=True, quoting=colon + line) from error
            if event is not h11.NEED_DATA:
                return event
            if self._h11.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                await self._send(self._h11.send(go_on) or b"")
            await self._receive()

    async def _receive(self) -> None:
        data = await self._transport.receive_some(_READ_BYTES)
        self._heard = self._heard or bool(data)
        self._h11.receive_data(data)
        await self._turnstile.pass_through()

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            sent += self._transport.send_nowait(view[sent:]) or await self._transport.send_some(view[sent:])


def _request(event: h11.Request) -> Request:
    """Return what h11 has parsed, with an absolute target as proxies send it split up: RFC 9112 section 3.2.2."""
    target = event.target.decode("latin-1")
    headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:
        path = absolute["rest"]
        target = path if path.startswith("/") else f"/{path}"
        headers = [("host", absolute["authority"]), *(field for field in headers if field[0] != "host")]
    return Request(event.method.decode(), target, event.http_version.decode(), headers)
