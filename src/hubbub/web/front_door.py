"""The front door: everything that arrives at the port, up to the moment when it is a WebSocket, or is answered.

    request head ─▶ Host ─▶ path ─▶ method ─▶ body ─▶ answer                      (page, /health, /metrics)
                                           └▶ handshake ─▶ Origin ─▶ room ─▶ serve_connection

Rules:
1. Everything has a deadline: TLS and the head `head_seconds_max`, the next request `keepalive_seconds_max`, the
   writing of an answer `write_stall_seconds_max`.
2. What is wrong is answered with a status and a line that says what, and what is allowed.
3. One place a connection catches everything: expected ends by name, the rest is logged with its traceback and
   counted, and ends that connection only.
4. The transport is closed here, on every path, after its peer had a chance to read the answer.
"""

import contextlib
from collections.abc import Iterator, Sequence

import structlog
import trio

from hubbub.auth.origins import is_host_allowed, is_origin_allowed, split_host
from hubbub.config import Settings
from hubbub.connection.connection import Services, Upgrade, serve_connection
from hubbub.connection.linger import linger
from hubbub.connection.transport import TlsTransport, Transport
from hubbub.dialects.plain import PlainConversation, PlainDialect
from hubbub.web.http import HttpConnection, HttpError, Request, Response
from hubbub.web.metrics import CONTENT_TYPE, Metrics
from hubbub.web.site import load_site
from hubbub.web.upgrade import PLAIN_PATH, check_handshake, read_history, read_room

log = structlog.get_logger()

READABLE = ("GET", "HEAD")
"""Methods of everything here; there is nothing to write to yet."""


class FrontDoor:
    """Serves transports, each in a task of its caller's.

    Args:
        services: what connections share.
        metrics: counts, and answers /metrics.
    """

    def __init__(self, services: Services, metrics: Metrics) -> None:
        self._services = services
        self._settings: Settings = services.settings
        self._metrics = metrics
        self._site = load_site()
        self._plain = PlainDialect()
        self._waiting: set[trio.CancelScope] = set()  # those that wait for a request
        self._serving = 0
        self._draining = False

    @property
    def serving(self) -> int:
        """How many transports are being served, before and after their upgrade."""
        return self._serving

    def drain(self) -> None:
        """Answer no further requests: those who wait for one are let go. Never waits."""
        self._draining = True
        for scope in self._waiting:
            scope.cancel()

    async def serve(self, transport: Transport, peer: str, local_address: str) -> None:
        """Serve one transport to its end, and close it. Raises nothing but cancellation.

        Args:
            peer: who is there, for the log.
            local_address: where the connection arrived, for the Host check.
        """
        self._serving += 1
        try:
            await self._serve(transport, peer, local_address)
        except* (trio.BrokenResourceError, trio.TooSlowError):
            pass  # the peer is gone, or as good as gone
        except* Exception:
            log.exception("connection ended by an internal error", peer=peer)
            self._metrics.count_error()
        finally:
            self._serving -= 1
            transport.close_forcefully()

    async def _serve(self, transport: Transport, peer: str, local_address: str) -> None:
        # Two calls, so that nothing of HTTP's (4 KB with h11's state) outlives the upgrade.
        upgrade = await self._talk_http(transport, peer, local_address)
        if upgrade is not None:
            refused = await serve_connection(transport, upgrade, self._services)
            if refused is not None:
                answer = HttpError(503, refused.reason, close=True).response
                await self._answer(HttpConnection(transport, self._settings), answer)
                await linger(transport, self._settings)

    async def _talk_http(self, transport: Transport, peer: str, local_address: str) -> Upgrade | None:
        """Answer requests until one is an upgrade; None if the connection is over before."""
        settings = self._settings
        tls = isinstance(transport, TlsTransport)
        http = HttpConnection(transport, settings)
        head_deadline = trio.current_time() + settings.head_seconds_max
        if isinstance(transport, TlsTransport):
            with trio.CancelScope(deadline=head_deadline) as scope, self._letting_go(scope):
                await transport.do_handshake()
            if scope.cancelled_caught:
                return None
        while True:
            answer = await self._next_answer(http, peer, local_address, tls, head_deadline)
            if answer is None or isinstance(answer, Upgrade):
                return answer
            await self._answer(http, answer)
            if answer.close or not http.can_go_on:
                await linger(transport, settings)
                return None
            with trio.move_on_after(settings.keepalive_seconds_max) as scope, self._letting_go(scope):
                await http.wait()
            if not http.in_head:
                return None
            head_deadline = trio.current_time() + settings.head_seconds_max

    async def _answer(self, http: HttpConnection, answer: Response) -> None:
        self._metrics.count_response(answer.status)
        with trio.fail_after(self._settings.write_stall_seconds_max):
            await http.respond(answer)

    async def _next_answer(
        self, http: HttpConnection, peer: str, local_address: str, tls: bool, deadline: float
    ) -> Response | Upgrade | None:
        """Read a request and decide; None if there is none and never will be."""
        with trio.CancelScope(deadline=deadline) as scope, self._letting_go(scope):
            try:
                request = await http.read_request()
                if request is None:
                    return None
                return self._route(request, peer, local_address, tls, http.leftover)
            except HttpError as error:
                return error.response
        if not http.in_head or self._draining:
            return None
        return HttpError(408, f"no request within {self._settings.head_seconds_max:g} s", close=True).response

    def _route(self, request: Request, peer: str, local_address: str, tls: bool, leftover: bytes) -> Response | Upgrade:
        path, _, query = request.target.partition("?")
        if path == "/health":
            _check_method(request, READABLE)
            return Response(503, b"draining\n", close=True) if self._draining else Response(200, b"ok\n")
        host = self._checked_host(request, local_address)
        if path == "/metrics":
            _check_method(request, READABLE)
            return Response(200, self._metrics.text(), CONTENT_TYPE)
        if self._draining:
            raise HttpError(503, "the server is shutting down", close=True)
        if self._serving > self._settings.connections_max:
            raise HttpError(503, f"there are connections_max = {self._settings.connections_max} already", close=True)
        if path == PLAIN_PATH or path.startswith(PLAIN_PATH + "/"):
            _check_method(request, ("GET",))
            return self._upgrade(request, host, path, query, peer, tls, leftover)
        if path in self._site:
            _check_method(request, READABLE)
            return self._site[path]
        raise HttpError(404, f"there is nothing here; there are /, {PLAIN_PATH}, {PLAIN_PATH}/ROOM, /health, /metrics")

    def _upgrade(
        self,
        request: Request,
        host: tuple[str, int | None],
        path: str,
        query: str,
        peer: str,
        tls: bool,
        leftover: bytes,
    ) -> Upgrade:
        head = check_handshake(request)
        origins = request.fields("origin")
        allowed = self._settings.allowed_origins
        if len(origins) > 1 or not is_origin_allowed(origins[0] if origins else None, host, tls, allowed):
            got = ", ".join(origins)[:100]
            raise HttpError(403, f"Origin: got {got!a}, allowed: {_listed(allowed, 'the same host')}")
        room = read_room(path)
        conversation = PlainConversation(room)
        return Upgrade(head, leftover, self._plain, conversation, room, read_history(query), peer)

    def _checked_host(self, request: Request, local_address: str) -> tuple[str, int | None]:
        fields = request.fields("host")
        host = split_host(fields[0]) if len(fields) == 1 else None
        if host is None:
            raise HttpError(400, "Host: allowed: one name or address, with or without a port")
        allowed = self._settings.allowed_hosts
        if not is_host_allowed(host[0], local_address, allowed):
            ours = _listed(allowed, "loopback names and the bound address; see allowed_hosts")
            raise HttpError(421, f"Host: got {host[0][:100]!a}, allowed: {ours}")
        return host

    @contextlib.contextmanager
    def _letting_go(self, scope: trio.CancelScope) -> Iterator[None]:
        """Let `drain` cancel the scope."""
        if self._draining:
            scope.cancel()
        self._waiting.add(scope)
        try:
            yield
        finally:
            self._waiting.discard(scope)


def _check_method(request: Request, allowed: tuple[str, ...]) -> None:
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, f"method: got {request.method[:20]!a}, allowed: {names}", (("Allow", names),))


def _listed(names: Sequence[str], otherwise: str) -> str:
    return ", ".join(names) if names else otherwise
