"""The front door: everything that arrives at the port, up to the moment when it is a WebSocket, or is answered.

Rules:
1. Everything has a deadline: TLS and the head `head_seconds_max`, the next request `keepalive_seconds_max`, the
   writing of an answer `write_stall_seconds_max`.
2. What is wrong is answered with a status and a line that says what, and what is allowed (`routes`).
3. Through a trusted proxy's connection come requests of many: each counts as its own client's, until it is answered.
4. An address that goes on far beyond its connections is not even heard.
5. One place catches everything: expected ends by name, the rest is logged with its traceback and counted, and ends
   that connection only.
6. The transport is closed here, on every path, after its peer had a chance to read the answer.
"""

import contextlib
from collections.abc import Iterator
from http import HTTPStatus

import msgspec
import structlog
import trio

from hubbub.auth.proxies import client_address, is_loopback, is_trusted, parse_networks
from hubbub.connection.connection import serve_connection
from hubbub.connection.linger import linger
from hubbub.connection.services import Services, Upgrade
from hubbub.connection.transport import TlsTransport, Transport
from hubbub.model.command import Refusal, Refused
from hubbub.web.addresses import Addresses
from hubbub.web.admission import Admission
from hubbub.web.api.api import Api, Call
from hubbub.web.http import HttpConnection, HttpError, Request, Response
from hubbub.web.metrics import Metrics
from hubbub.web.routes import Door, House, Routes, Visit

STATUSES = {
    Refusal.NOT_LET_IN: 403,
    Refusal.DENIED: 403,
    Refusal.HISTORY_DENIED: 403,
    Refusal.TOO_MANY_OF_USER: 429,
}
"""What is answered in place of the 101 to whom the hub doesn't let in; 503 to all others."""

log = structlog.get_logger()

HEARD_BEYOND_LIMIT = 8
"""So many connections over its limit an address may have, to be told so; beyond, they are closed unheard."""


class FrontDoor:
    """Serves transports, each in a task of its caller's.

    Args:
        services: what connections share.
        metrics: counts, and answers /metrics.
        admission: who becomes what.
        api: answers the server API's calls.
    """

    def __init__(self, services: Services, metrics: Metrics, admission: Admission, api: Api) -> None:
        self._services = services
        self._settings = services.settings
        self._metrics = metrics
        self._routes = Routes(services.settings, metrics, admission, api)
        self._api = api
        self._addresses = Addresses()
        self._waiting: set[trio.CancelScope] = set()  # those that wait for a request
        self._serving = dict.fromkeys(Door, 0)
        self._draining = False

    @property
    def serving(self) -> int:
        """How many transports are being served, before and after their upgrade."""
        return sum(self._serving.values())

    @property
    def addresses(self) -> int:
        """How many client addresses are counted."""
        return len(self._addresses)

    def drain(self) -> None:
        """Answer no further requests: those who wait for one are let go. Never waits."""
        self._draining = True
        for scope in self._waiting:
            scope.cancel()

    async def serve(self, transport: Transport, peer: str, local_address: str, door: Door = Door.PUBLIC) -> None:
        """Serve one transport to its end, and close it. Raises nothing but cancellation.

        Args:
            peer: who is there: the peer's address, or what the PROXY protocol says.
            local_address: where the connection arrived, for the Host check.
            door: by which door it came in.
        """
        visit = Visit(peer, peer, local_address, isinstance(transport, TlsTransport), door)
        log.debug("opened", peer=peer, tls=visit.tls)
        self._serving[door] += 1
        try:
            # Two calls, so that nothing of HTTP's (4 KB with h11's state) outlives the upgrade.
            upgrade = await self._talk_http(transport, visit) if self._is_heard(visit) else None
            if upgrade is not None:
                serving = serve_connection(transport, upgrade, self._services)
                del upgrade  # or an idle connection would hold its request
                refused = await serving
                if refused is not None:
                    await self._turn_away(transport, visit, refused)
        except* (trio.BrokenResourceError, trio.TooSlowError):
            pass  # the peer is gone, or as good as gone
        except* Exception:
            log.exception("connection ended by an internal error", peer=visit.client)
            self._metrics.count_error()
        finally:
            self._serving[door] -= 1
            self._leave(visit)
            transport.close_forcefully()

    def _is_heard(self, visit: Visit) -> bool:
        """Count the peer's address, if it is a client's; False if it has far too many connections."""
        trusted = parse_networks(self._settings.trusted_proxies)
        if visit.door is not Door.PUBLIC or is_loopback(visit.peer) or is_trusted(visit.peer, trusted):
            return True
        visit.key, visit.from_address = self._addresses.enter(visit.peer)
        if visit.from_address <= self._settings.connections_per_address_max + HEARD_BEYOND_LIMIT:
            return True
        self._metrics.count_refusal("connections_per_address_max")
        log.info("refused", peer=visit.peer, why="connections_per_address_max, and unheard")
        return False

    def _learn_client(self, request: Request, visit: Visit) -> None:
        """Take the client's address from the header of a trusted proxy."""
        trusted = parse_networks(self._settings.trusted_proxies)
        if visit.door is Door.PUBLIC and is_trusted(visit.peer, trusted):
            self._leave(visit)  # a reload may have made it trusted
            named = client_address(visit.peer, request.fields("forwarded"), request.fields("x-forwarded-for"), trusted)
            if named is not None:
                visit.client = named
                visit.key, visit.from_address = self._addresses.enter(named)

    def _forget_client(self, visit: Visit) -> None:
        """Be a proxy's connection again, and nobody's: its next request may be of another client."""
        if visit.client != visit.peer:
            self._leave(visit)
            visit.client = visit.peer

    def _leave(self, visit: Visit) -> None:
        """Let it no longer count as anybody's."""
        if visit.key is not None:
            self._addresses.leave(visit.key)
            visit.key, visit.from_address = None, 0

    async def _turn_away(self, transport: Transport, visit: Visit, refused: Refused) -> None:
        """Answer an upgrade with why it is none."""
        answer = self._refuse(visit, HttpError(STATUSES.get(refused.why, 503), refused.why.value, close=True))
        await self._answer(self._http(transport), answer)
        await linger(transport, self._settings)

    async def _talk_http(self, transport: Transport, visit: Visit) -> Upgrade | None:
        """Answer requests until one is an upgrade; None if the connection is over before."""
        settings = self._settings
        http = self._http(transport)
        head_deadline = trio.current_time() + settings.head_seconds_max
        if isinstance(transport, TlsTransport):
            with trio.CancelScope(deadline=head_deadline) as scope, self.letting_go(scope):
                await transport.do_handshake()
            if scope.cancelled_caught:
                return None
        while True:
            answer = await self._next_answer(http, visit, head_deadline)
            if answer is None or isinstance(answer, Upgrade):
                return answer
            if isinstance(answer, Call):
                answer = await self._carry_out(answer, visit)
            await self._answer(http, answer)
            if answer.close or not http.can_go_on:
                await linger(transport, settings)
                return None
            self._forget_client(visit)
            with trio.move_on_after(settings.keepalive_seconds_max) as scope, self.letting_go(scope):
                await http.wait()
            if not http.in_head:
                return None
            head_deadline = trio.current_time() + settings.head_seconds_max

    def _refuse(self, visit: Visit, error: HttpError) -> Response:
        """Log it: what met a limit or a list concerns the operator, what was malformed only who looks for it."""
        status = error.response.status
        met_a_limit = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        write = log.info if met_a_limit or error.notable else log.debug
        write("refused", peer=visit.client, status=status, why=str(error))
        return error.response

    def _http(self, transport: Transport) -> HttpConnection:
        return HttpConnection(transport, self._settings, self._services.entrance)

    async def _answer(self, http: HttpConnection, answer: Response) -> None:
        self._metrics.count_response(answer.status)
        with trio.fail_after(self._settings.write_stall_seconds_max):
            await http.respond(answer)

    async def _carry_out(self, call: Call, visit: Visit) -> Response:
        try:
            return await self._api.answer(call)
        except HttpError as error:
            return self._refuse(visit, error)

    async def _next_answer(
        self, http: HttpConnection, visit: Visit, deadline: float
    ) -> Response | Call | Upgrade | None:
        """Read a request and decide; None if there is none and never will be."""
        with trio.CancelScope(deadline=deadline) as scope, self.letting_go(scope):
            try:
                request = await http.read_head()
                if request is None:
                    return None
                self._learn_client(request, visit)
                decided = self._decide(request, http.leftover, visit)
                if isinstance(decided, Call):
                    body = await http.read_body(request, self._settings.api_body_bytes_max)
                    return msgspec.structs.replace(decided, body=body)
                await http.discard_body(request)
                return decided
            except HttpError as error:
                return self._refuse(visit, error)
        if not http.in_head or self._draining:
            return None
        late = f"no request within {self._settings.head_seconds_max:g} s"
        return self._refuse(visit, HttpError(408, late, close=True))

    def _decide(self, request: Request, leftover: bytes, visit: Visit) -> Response | Call | Upgrade:
        house = House(self._draining, self._serving[Door.PUBLIC], len(self._services.connections))
        try:
            return self._routes.decide(request, leftover, visit, house)
        except HttpError as error:
            return self._refuse(visit, error)

    @contextlib.contextmanager
    def letting_go(self, scope: trio.CancelScope) -> Iterator[None]:
        """Let `drain` cancel the scope."""
        if self._draining:
            scope.cancel()
        self._waiting.add(scope)
        try:
            yield
        finally:
            self._waiting.discard(scope)
