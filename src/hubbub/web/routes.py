"""What is answered to which request: decided here, synchronously; carried out by the front door.

    Host ─▶ path ─▶ method ─▶ answer                                       (page, /health, /metrics)
                          ├▶ key ─▶ call, which waits for the hub          (/api/METHOD)
                          └▶ handshake ─▶ Origin ─▶ room ─▶ upgrade        (/chat, /chat/ROOM, /connection/websocket)

It is the head alone that decides; what becomes of the body depends on that. What is wrong is an `HttpError` that says
what, and what is allowed.
"""

import enum
from collections.abc import Sequence

import msgspec

from hubbub.auth.origins import is_host_allowed, is_origin_allowed, split_host
from hubbub.config import Settings
from hubbub.connection.services import Upgrade
from hubbub.dialects.centrifugo.dialect import CentrifugoDialect
from hubbub.dialects.plain import PlainDialect
from hubbub.web.admission import Admission
from hubbub.web.api.api import API_PATH, Api, Call
from hubbub.web.http import READABLE, HttpError, Request, Response, check_method
from hubbub.web.metrics import CONTENT_TYPE, Metrics
from hubbub.web.site import load_site
from hubbub.web.upgrade import (
    PLAIN_PATH,
    STRUCTURED_PATH,
    check_handshake,
    choose_subprotocol,
    is_plain,
)


class Door(enum.Enum):
    """Where a connection has arrived."""

    PUBLIC = "public"  # the one port; everything that has no address of its own is answered there
    METRICS = "metrics"  # metrics_address
    API = "api"  # api_address


class Visit(msgspec.Struct):
    """One transport as the front door sees it.

    Attributes:
        peer: the address at the other end, or what the PROXY protocol says.
        client: the same; while a trusted proxy's request is answered, and from its upgrade on, whom that names.
        local_address: where it arrived, for the Host check.
        tls: whether we speak TLS with it.
        door: by which door.
        key: what it counts as in `Addresses`; None: not at all.
        from_address: how many connections that address has, this one included.
    """

    peer: str
    client: str
    local_address: str
    tls: bool
    door: Door = Door.PUBLIC
    key: str | None = None
    from_address: int = 0


class House(msgspec.Struct, frozen=True):
    """How full it is, as far as an answer depends on it; `serving` counts who came by the public door."""

    draining: bool
    serving: int
    websockets: int


class Routes:
    """The answers.

    Args:
        settings: hosts, origins, limits.
        metrics: for /metrics.
        admission: who becomes what.
        api: for /api/.
    """

    def __init__(self, settings: Settings, metrics: Metrics, admission: Admission, api: Api) -> None:
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._api = api
        self._site = load_site()
        self._plain = PlainDialect()
        self._structured = CentrifugoDialect()

    def decide(self, request: Request, leftover: bytes, visit: Visit, house: House) -> Response | Call | Upgrade:
        """Return the answer, or what has to be done for it, or what the connection becomes.

        Args:
            leftover: what the client sent behind the head, for the upgrade.

        Raises:
            HttpError: the request can't be answered as asked.
        """
        path = request.target.partition("?")[0]
        if path == "/health":
            check_method(request, READABLE)
            return Response(503, b"draining\n", close=True) if house.draining else Response(200, b"ok\n")
        host = self._checked_host(request, visit)
        if path == "/metrics" and visit.door is self._metrics_door:
            check_method(request, READABLE)
            return Response(200, self._metrics.text(), CONTENT_TYPE)
        if house.draining:
            raise HttpError(503, "the server is shutting down", close=True)
        if visit.door is Door.PUBLIC:
            self._check_room_for_one_more(visit, house)
        if path.startswith(API_PATH) and visit.door is self._api_door:
            return self._api.enter(request, path)
        if visit.door is Door.PUBLIC:
            if path == STRUCTURED_PATH or (self._settings.plain and is_plain(path)):
                return self._upgrade(request, leftover, visit, house, host)
            if path in self._site:
                check_method(request, READABLE)
                return self._site[path]
        raise HttpError(404, f"there is nothing here; there are {', '.join(self._paths(visit.door))}")

    @property
    def _metrics_door(self) -> Door:
        return Door.METRICS if self._settings.metrics_address else Door.PUBLIC

    @property
    def _api_door(self) -> Door:
        return Door.API if self._settings.api_address else Door.PUBLIC

    def _paths(self, door: Door) -> list[str]:
        paths = ["/health"]
        if door is Door.PUBLIC:
            paths = ["/", *[PLAIN_PATH, f"{PLAIN_PATH}/ROOM"] * self._settings.plain, STRUCTURED_PATH, "/health"]
        paths += ["/metrics"] * (door is self._metrics_door)
        return paths + [f"{API_PATH}METHOD"] * (door is self._api_door and bool(self._settings.api_keys))

    def _upgrade(
        self, request: Request, leftover: bytes, visit: Visit, house: House, host: tuple[str, int | None]
    ) -> Upgrade:
        path, _, query = request.target.partition("?")
        check_method(request, ("GET",))
        self._check_sockets(house)
        subprotocol = choose_subprotocol(request) if path == STRUCTURED_PATH else None
        head = check_handshake(request, subprotocol)
        self._check_origin(request, host, visit)
        if path == STRUCTURED_PATH:
            converse = self._admission.structured(query)
            return Upgrade(head, leftover, subprotocol, self._structured, converse, visit.client)
        return Upgrade(head, leftover, None, self._plain, self._admission.plain(path, query), visit.client)

    def _check_room_for_one_more(self, visit: Visit, house: House) -> None:
        limits = self._settings
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
            ours = _listed(allowed, "the same host and port; see allowed_origins")
            raise HttpError(403, f"Origin: got {got!a}, allowed: {ours}", notable=True)

    def _checked_host(self, request: Request, visit: Visit) -> tuple[str, int | None]:
        fields = request.fields("host")
        host = split_host(fields[0]) if len(fields) == 1 else None
        if host is None:
            raise HttpError(400, "Host: allowed: one name or address, with or without a port")
        allowed = self._settings.allowed_hosts
        if not is_host_allowed(host[0], visit.local_address, allowed):
            ours = _listed(allowed, "loopback names and the bound address; see allowed_hosts")
            raise HttpError(421, f"Host: got {host[0][:100]!a}, allowed: {ours}", notable=True)
        return host


def _listed(names: Sequence[str], otherwise: str) -> str:
    return ", ".join(names) if names else otherwise
