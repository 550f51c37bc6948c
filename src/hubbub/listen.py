"""Listening: sockets, TLS contexts, and the accept loop.

The accept loop takes plain non-blocking sockets from the kernel, several an event, without a Trio object for each:
that is a third of the cost of `trio.serve_listeners` under a storm of returning clients. It waits for a connection
slot when the node is full, and for a while when the process is out of file descriptors.
"""

import contextlib
import errno
import math
import resource
import socket
import ssl
from collections.abc import Callable

import structlog
import trio

from hubbub.config import Settings
from hubbub.model.errors import StartError

ACCEPTS_PER_EVENT = 64
BACKLOG = 4096
"""What the kernel may hold for us; it takes less if its own limit (net.core.somaxconn) is lower."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
OUT_OF_RESOURCES_SECONDS = 0.25
COMPLAIN_SECONDS = 10.0
FILES_RESERVED = 64
"""Open files that aren't connections: listeners, the operators', the log, Trio's own."""
CONNECTIONS_WORTHWHILE = 64
"""If connections_max would have to be lowered to fewer, the limit of open files is a mistake."""
API_CONNECTIONS_MAX = 64
"""Connections at `api_address`: a back end keeps a few open."""
NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""A name may stand for an address that this machine doesn't have: `localhost` for ::1 without IPv6."""

log = structlog.get_logger()


class Complaint:
    """What would be said again and again, and is said now and then."""

    def __init__(self) -> None:
        self._not_before = -math.inf

    def is_due(self) -> bool:
        """Whether to say it now: it wasn't for `COMPLAIN_SECONDS`."""
        now = trio.current_time()
        if now < self._not_before:
            return False
        self._not_before = now + COMPLAIN_SECONDS
        return True


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address that the host name stands for; the caller closes them.

    Raises:
        StartError: the address can't be used.
    """
    opened: list[socket.socket] = []
    missing = OSError("it stands for no address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in dict.fromkeys(found):
            taken = opened[0].getsockname()[1] if opened else port  # port 0: one free port for all addresses
            try:
                opened.append(_listen(family, (address[0], taken, *address[2:])))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
        if not opened:
            raise missing
    except (OSError, UnicodeError, OverflowError) as error:
        for listener in opened:
            listener.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StartError(f"can't listen on {host} port {port}: {why}") from error
    return opened


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def load_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the context for the configured certificate, None without one.

    Raises:
        StartError: the certificate or its key can't be used.
    """
    if not settings.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    cert, key = f"tls_cert {settings.tls_cert}", f"tls_key {settings.tls_key}"
    chain = _read(cert, settings.tls_cert)
    _read(key, settings.tls_key)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except _Encrypted as error:
        raise StartError(f"{key}: it is encrypted, allowed: a key without a password") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"{key}: it belongs to another certificate than {cert}") from error
        if error.reason:  # more than "PEM lib"
            raise StartError(f"can't use {cert} with {key}: {error.reason}") from error
        if _is_pem(chain):
            raise StartError(f"{key}: allowed: PEM of the certificate's private key, without a password") from error
        raise StartError(f"{cert}: allowed: PEM of a certificate, followed by those that it rests on") from error
    return context


class _Encrypted(Exception):
    """The key wants a password."""


def _no_password() -> str:
    raise _Encrypted


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # the latter: a NUL
        why = error.strerror if isinstance(error, OSError) else "it can't be a path"
        raise StartError(f"{name}: cannot be read: {why}") from error


def _is_pem(chain: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=chain.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def open_listeners_at(address: str) -> list[socket.socket]:
    """Return the listening sockets of a setting HOST:PORT, none if it is empty; the caller closes them.

    Raises:
        StartError: the address can't be used.
    """
    if not address:
        return []
    host, _, port = address.rpartition(":")
    return open_listeners(host.strip("[]"), int(port))


def fit_file_limit(settings: Settings) -> None:
    """Raise the limit of open files to the most this process may have, and lower `connections_max` to fit under it.

    Raises:
        StartError: hardly any connection would fit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asks = settings.hook_connect_url or settings.hook_subscribe_url or settings.hook_publish_url
    spare = settings.connections_spare + settings.hook_requests_max * bool(asks)
    most = hard - FILES_RESERVED - spare - API_CONNECTIONS_MAX * bool(settings.api_address)
    if hard != resource.RLIM_INFINITY and settings.connections_max > most:
        if most < CONNECTIONS_WORTHWHILE:
            needed = hard - most + min(settings.connections_max, CONNECTIONS_WORTHWHILE)
            raise StartError(
                f"file limit: got {hard}, allowed: from {needed} (ulimit -n, LimitNOFILE) with these settings"
            )
        log.warning("connections_max lowered", wanted=settings.connections_max, now=most, file_limit=hard)
        settings.connections_max = most


def url_of(listener: socket.socket, tls: bool) -> str:
    """Return the address as a person would type it."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def run_accept_loop(
    listener: socket.socket, slots: trio.Semaphore, start: Callable[[socket.socket, str], None]
) -> None:
    """Accept until cancelled: `start` gets each connected socket and its peer's address, and owns it.

    A slot is taken for each; who serves the socket gives it back. The listener stays the caller's to close.
    """
    complaint = Complaint()
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(ACCEPTS_PER_EVENT):
            await slots.acquire()
            try:
                connected, address = listener.accept()
            except OSError as error:
                slots.release()
                if error.errno in OUT_OF_RESOURCES:
                    if complaint.is_due():
                        log.error("can't accept", why=str(error), hint="raise the file limit or lower connections_max")
                    await trio.sleep(OUT_OF_RESOURCES_SECONDS)
                break  # nobody waits any more, or the one who did has gone
            connected.setblocking(False)
            with contextlib.suppress(OSError):  # where a peer that has reset already can be seen here
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            start(connected, str(address[0]))
