"""The daemon: a node with listening sockets and signals around it.

run_daemon
├─ signal watcher             SIGTERM, SIGINT: the first drains, the second cuts off; SIGHUP: settings anew
├─ watchdog                   if systemd wants one
├─ suppressed                 says how much the log has left out
└─ open_node                  hub, housekeeping, connections (`hubbub.node`)
   └─ listening nursery       cancelled first
      └─ accept loop          one a listening socket
"""

import contextlib
import os
import random
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog
import trio

from hubbub import systemd
from hubbub.auth.keys import KeyRing
from hubbub.auth.proxies import is_loopback, is_trusted, parse_networks
from hubbub.collector import tune_collector
from hubbub.config import FIXED, Settings
from hubbub.config_change import change
from hubbub.connection.poller import Poller, open_poller
from hubbub.connection.proxy_header import receive_proxy_header
from hubbub.connection.transport import TcpTransport, TlsTransport, Transport
from hubbub.core.proxy_protocol import ProxyProtocolError
from hubbub.listen import (
    API_CONNECTIONS_MAX,
    Complaint,
    fit_file_limit,
    load_tls,
    open_listeners,
    open_listeners_at,
    run_accept_loop,
    url_of,
)
from hubbub.log import set_log_level, tell_suppressed
from hubbub.model.errors import StartError
from hubbub.node import Node, open_node
from hubbub.web.routes import Door

SIDE_DOORS = {Door.METRICS: ("metrics_address", 16), Door.API: ("api_address", API_CONNECTIONS_MAX)}
"""The setting that opens each, and how many connections it takes: its own, whatever happens at the front."""

SECRET_CHARACTERS_WISE = 32

log = structlog.get_logger()


async def run_daemon(settings: Settings, announce: Callable[[str], None], wanted: Callable[[], Settings]) -> int:
    """Run a node until a signal ends it; return the exit status: 0 after a drain, 1 after a second signal.

    Args:
        settings: what to start with; the caller's object isn't changed.
        announce: called with the address of each listening socket, once connections are accepted.
        wanted: called on SIGHUP: the settings as their sources have them now; raises what is wrong with them.

    Raises:
        StartError: it can't listen as configured.
    """
    tune_collector()
    running = Running(settings, load_tls(settings), wanted)
    settings = running.settings
    fit_file_limit(settings)
    slots = trio.Semaphore(settings.connections_max + settings.connections_spare)
    with contextlib.ExitStack() as listening_sockets, polling(running) as poller:
        listeners = open_listeners(settings.host, settings.port)
        for listener in listeners:
            listening_sockets.enter_context(listener)
        at_the_side = open_side_doors(settings, listening_sockets)
        running.addresses = [listener.getsockname()[0] for listener in listeners]
        check_open(settings, running.addresses)
        warn_of_short_secrets(settings)
        async with trio.open_nursery() as watching:
            async with open_node(settings, random.Random(), poller) as (node, connections):

                def start(connected: socket.socket, peer: str) -> None:
                    # One name for all, where Trio would make one for each.
                    connections.start_soon(serve_socket, node, running, slots, connected, peer, name="serve_socket")

                def start_at(door: Door, slots: trio.Semaphore, connected: socket.socket, peer: str) -> None:
                    connections.start_soon(serve_at_the_side, node, door, slots, connected, peer)

                running.keys = node.keys
                await watching.start(watch_signals, running, connections.cancel_scope)
                watching.start_soon(run_watchdog)
                watching.start_soon(run_suppressed)
                async with trio.open_nursery() as listening:
                    for door, listener, side_slots in at_the_side:
                        listening.start_soon(run_accept_loop, listener, side_slots, partial(start_at, door, side_slots))
                    for listener in listeners:
                        listening.start_soon(run_accept_loop, listener, slots, start)
                        announce(url_of(listener, running.tls is not None))
                    systemd.notify("READY=1")
                    await running.stopping.wait()
                    systemd.notify("STOPPING=1")
                    listening.cancel_scope.cancel()
                listening_sockets.close()
            watching.cancel_scope.cancel()
    tell_suppressed(at_once=True)
    log.info("stopped", cut_off=node.metrics.cut_off)
    return 1 if running.cut_off else 0


class Running:
    """What signals change while a node runs.

    Attributes:
        settings: shared by all parts of the node.
        tls: for connections that are accepted from now on.
        stopping: set by the first SIGTERM or SIGINT.
        cut_off: whether there was a second.
        addresses: those that it listens at.
        keys: the node's, once there is one.
        unwatched: what is said if the kernel watches no more sockets.
    """

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None, wanted: Callable[[], Settings]) -> None:
        self.settings = msgspec.structs.replace(settings)
        self.tls = tls
        self.stopping = trio.Event()
        self.cut_off = False
        self.addresses: Sequence[str] = ()
        self.keys: KeyRing | None = None
        self.unwatched = Complaint()
        # As last read, what is fixed as at the start: `settings` may have been made to fit this machine.
        self._before = settings
        self._wanted = wanted

    def reload(self) -> None:
        """Take the settings as they are now, and the certificate. What is wrong is logged, and changes nothing."""
        try:
            wanted = self._wanted()
            tls = load_tls(self.settings)
            check_open(wanted, self.addresses)
            if self.keys is not None:
                self.keys.load(wanted)
        except Exception as error:
            log.error("reload failed; nothing is changed", why=str(error).splitlines())
            return
        warn_of_short_secrets(wanted)
        self.tls = tls
        changed, need_restart = change(self.settings, self._before, wanted)
        self._before = msgspec.structs.replace(wanted, **{name: getattr(self._before, name) for name in FIXED})
        log.info("reloaded", changed=changed, need_restart=need_restart, certificate=tls is not None)
        set_log_level(self.settings.log_level)


def check_open(settings: Settings, addresses: Sequence[str]) -> None:
    """See that nobody opens a server that listens at these addresses to the world without meaning to.

    Raises:
        StartError: anyone who reaches the address could chat, and nobody has said that this is meant.
    """
    if settings.insecure:
        log.warning("insecure: everyone who reaches this server may do everything")
    elif not (settings.anonymous or settings.has_keys or settings.hook_connect_url):
        reachable = [address for address in addresses if not is_loopback(address)]
        if reachable:
            raise StartError(
                f"whoever reaches {', '.join(reachable)} could chat: configure tokens (token_hmac_secret, "
                "token_public_keys or token_jwks) or hook_connect_url, or say that strangers are welcome: "
                "anonymous = true, or --open"
            )


def warn_of_short_secrets(settings: Settings) -> None:
    """Say which are short enough to be found out from what they have signed."""
    for name in ("token_hmac_secret", "token_hmac_secret_previous", "hook_secret"):
        if 0 < len(getattr(settings, name)) < SECRET_CHARACTERS_WISE:
            log.warning("short secret", setting=name, why="at least 32 random characters are wise")


async def serve_socket(
    node: Node, running: Running, slots: trio.Semaphore, connected: socket.socket, peer: str
) -> None:
    """Serve an accepted socket, and give back the slot that the accept loop has taken for it."""
    try:
        with connected:
            local_address = sys.intern(connected.getsockname()[0])
            client = await client_by_proxy(node, connected, peer) if running.settings.proxy_protocol else peer
            if client is not None:
                transport = open_transport(node, running, connected)
                await node.front_door.serve(transport, client, local_address)
    finally:
        slots.release()


def polling(running: Running) -> contextlib.AbstractContextManager[Poller | None]:
    """Open what reads the connections' sockets; TLS is read by Trio."""
    return contextlib.nullcontext() if running.tls else open_poller()


def open_transport(node: Node, running: Running, connected: socket.socket) -> Transport:
    """Return what a connection is served over."""
    if running.tls:
        return TlsTransport(connected, running.tls)
    try:
        return TcpTransport(connected, node.poller)
    except OSError as error:
        if running.unwatched.is_due():
            log.error("can't watch a connection", why=str(error), hint="raise fs.epoll.max_user_watches")
        return TcpTransport(connected)  # by Trio, if that can; if not, that is this connection's end only


def open_side_doors(
    settings: Settings, sockets: contextlib.ExitStack
) -> list[tuple[Door, socket.socket, trio.Semaphore]]:
    """Listen at the addresses that aren't for everyone, each with slots of its own; `sockets` closes them.

    Raises:
        StartError: an address can't be used.
    """
    opened: list[tuple[Door, socket.socket, trio.Semaphore]] = []
    for door, (setting, connections_max) in SIDE_DOORS.items():
        slots = trio.Semaphore(connections_max)
        listeners = open_listeners_at(getattr(settings, setting))
        opened += [(door, sockets.enter_context(listener), slots) for listener in listeners]
    return opened


async def serve_at_the_side(node: Node, door: Door, slots: trio.Semaphore, connected: socket.socket, peer: str) -> None:
    """Serve a socket accepted at a side door."""
    try:
        with connected:
            await node.front_door.serve(TcpTransport(connected), peer, connected.getsockname()[0], door)
    finally:
        slots.release()


async def client_by_proxy(node: Node, connected: socket.socket, peer: str) -> str | None:
    """Return the client's address as the proxy's header names it; None if the connection isn't acceptable."""
    settings = node.settings
    if is_trusted(peer, parse_networks(settings.trusted_proxies)):
        try:
            with trio.move_on_after(settings.head_seconds_max) as scope, node.front_door.letting_go(scope):
                return await receive_proxy_header(connected) or peer
            return None
        except trio.BrokenResourceError:
            return None
        except ProxyProtocolError as error:
            log.info("refused", limit="proxy_protocol", peer=peer, why=str(error))
    node.metrics.count_refusal("proxy_protocol")
    return None


async def watch_signals(
    running: Running, connections: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGINT or SIGTERM: the first drains, the next cancels `connections`. SIGHUP: reload."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                running.reload()
            elif running.stopping.is_set():
                log.warning("cutting off", signal=name)
                running.cut_off = True
                connections.cancel()
            else:
                log.info("draining", signal=name)
                running.stopping.set()


async def run_watchdog() -> None:
    """Tell systemd that we are alive, as often as it wants; the hub's and everyone's turn comes in between."""
    seconds = systemd.watchdog_seconds(os.environ, os.getpid())
    while seconds is not None:
        systemd.notify("WATCHDOG=1")
        await trio.sleep(seconds)


async def run_suppressed() -> None:
    """Say what the log has left out, a second later, also if nothing else is logged."""
    while True:
        await trio.sleep(1)
        tell_suppressed()
