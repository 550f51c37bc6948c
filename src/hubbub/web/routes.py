"""What is answered to which request: decided here, synchronously; carried out by the front door.

    Host ─▶ path ─▶ method ─▶ answer                                       (page, /health, /metrics)
                          └▶ handshake ─▶ Origin ─▶ room ─▶ upgrade        (/chat, /chat/ROOM, /connection/websocket)

What is wrong is an `HttpError` that says what, and what is allowed.
"""

from collections.abc import Sequence

import msgspec

from hubbub.auth.origins import is_host_allowed, is_origin_allowed, split_host
from hubbub.config import Settings
from hubbub.connection.connection import Upgrade
from hubbub.dialects.centrifugo.dialect import CentrifugoDialect
from hubbub.dialects.plain import PlainDialect
from hubbub.web.admission import Admission
from hubbub.web.http import HttpError, Request, Response
from hubbub.web.metrics import CONTENT_TYPE, Metrics
from hubbub.web.site import load_site
from hubbub.web.upgrade import (
    PLAIN_PATH,
    STRUCTURED_PATH,
    check_handshake,
    choose_subprotocol,
    is_plain,
)

READABLE = ("GET", "HEAD")
"""Methods of everything here; there is nothing to write to yet."""
OPERATORS = ("/health", "/metrics")
"""Paths that are answered also when the house is full, and that can have an address of their own."""


class Visit(msgspec.Struct):
    """One transport as the front door sees it.

    Attributes:
        peer: the address at the other end; behind a trusted proxy the client's, once it is known.
        local_address: where it arrived, for the Host check.
        tls: whether we speak TLS with it.
        operators: whether it arrived at the operators' own address.
        key: what it counts as in `Addresses`; None: not at all.
        from_address: how many connections that address has, this one included.
    """

    peer: str
    local_address: str
    tls: bool
    operators: bool = False
    key: str | None = None
    from_address: int = 0


class House(msgspec.Struct, frozen=True):
    """How full it is, as far as an answer depends on it."""

    draining: bool
    serving: int
    websockets: int


class Routes:
    """The answers.

    Args:
        settings: hosts, origins, limits.
        metrics: for /metrics.
        admission: who becomes what.
    """

    def __init__(self, settings: Settings, metrics: Metrics, admission: Admission) -> None:
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._site = load_site()
        self._plain = PlainDialect()
        self._structured = CentrifugoDialect()

    def decide(self, request: Request, leftover: bytes, visit: Visit, house: House) -> Response | Upgrade:
        """Return the answer, or what the connection becomes.

        Args:
            leftover: what the client sent behind its request, for the upgrade.

        Raises:
            HttpError: the request can't be answered as asked.
        """
        path, _, query = request.target.partition("?")
        if path == "/health":
            _check_method(request, READABLE)
            return Response(503, b"draining\n", close=True) if house.draining else Response(200, b"ok\n")
        host = self._checked_host(request, visit)
        if path == "/metrics" and (visit.operators or not self._settings.metrics_address):
            _check_method(request, READABLE)
            return Response(200, self._metrics.text(), CONTENT_TYPE)
        if visit.operators:
            raise HttpError(404, f"there is nothing here; there are {', '.join(OPERATORS)}")
        self._check_room_for_one_more(visit, house)
        if path == STRUCTURED_PATH or (self._settings.plain and is_plain(path)):
            _check_method(request, ("GET",))
            self._check_sockets(house)
            subprotocol = choose_subprotocol(request) if path == STRUCTURED_PATH else None
            head = check_handshake(request, subprotocol)
            self._check_origin(request, host, visit)
            if path == STRUCTURED_PATH:
                converse = self._admission.structured(query)
                return Upgrade(head, leftover, subprotocol, self._structured, converse, visit.peer)
            return Upgrade(head, leftover, None, self._plain, self._admission.plain(path, query), visit.peer)
        if path in self._site:
            _check_method(request, READABLE)
            return self._site[path]
        paths = ["/", *[PLAIN_PATH, f"{PLAIN_PATH}/ROOM"] * self._settings.plain, STRUCTURED_PATH, "/health"]
        paths += ["/metrics"] * (not self._settings.metrics_address)
        raise HttpError(404, f"there is nothing here; there are {', '.join(paths)}")

    def _check_room_for_one_more(self, visit: Visit, house: House) -> None:
        limits = self._settings
        if house.draining:
            raise HttpError(503, "the server is shutting down", close=True)
        if house.serving > limits.connections_max:
            self._metrics.count_refusal("connections_max")
            raise HttpError(503, f"there are connections_max = {limits.connections_max} already", close=True)
        if visit.from_address > limits.connections_per_address_max:
            self._metrics.count_refusal("connections_per_address_max")
            text = f"your address has connections_per_address_max = {limits.connections_per_address_max} already"
            raise HttpError(429, text, close=True)

    def _check_sockets(self, house: House) -> None:
        if house.websockets >= self._settings.connections_max:
            self._metrics.count_refusal("connections_max")
            raise HttpError(503, f"there are connections_max = {self._settings.connections_max} already", close=True)

    def _check_origin(self, request: Request, host: tuple[str, int | None], visit: Visit) -> None:
        origins = request.fields("origin")
        allowed = self._settings.allowed_origins
        if len(origins) > 1 or not is_origin_allowed(origins[0] if origins else None, host, visit.tls, allowed):
            got = ", ".join(origins)[:100]
            raise HttpError(403, f"Origin: got {got!a}, allowed: {_listed(allowed, 'the same host')}")

    def _checked_host(self, request: Request, visit: Visit) -> tuple[str, int | None]:
        fields = request.fields("host")
        host = split_host(fields[0]) if len(fields) == 1 else None
        if host is None:
            raise HttpError(400, "Host: allowed: one name or address, with or without a port")
        allowed = self._settings.allowed_hosts
        if not is_host_allowed(host[0], visit.local_address, allowed):
            ours = _listed(allowed, "loopback names and the bound address; see allowed_hosts")
            raise HttpError(421, f"Host: got {host[0][:100]!a}, allowed: {ours}")
        return host


def _check_method(request: Request, allowed: tuple[str, ...]) -> None:
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, f"method: got {request.method[:20]!a}, allowed: {names}", (("Allow", names),))


def _listed(names: Sequence[str], otherwise: str) -> str:
    return ", ".join(names) if names else otherwise
