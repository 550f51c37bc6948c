"""The seam under every connection: bytes in, bytes out, and the end of it.

Three parts implement it: TCP and TLS here, and the simulation's bounded pipe in the tests; the same ordering,
slow-consumer and close tests run on all three.

*Resource handling*: the accept loop opens a transport, the task that serves it closes it, forcefully, in its
`finally`. One task receives; while it waits, the poller may read for it. One party sends at a time: its writer while
there is backlog, else the outbox, or for it the hub.

*Error handling*: what the operating system says of a broken connection is `trio.BrokenResourceError`. After a
send that failed or was cancelled, only `close_forcefully` is legal: how much the peer has is unknown.
"""

import contextlib
import fcntl
import select
import socket
import ssl
import termios
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import trio

from hubbub.connection.poller import Poller, Take

TLS_PIECE_BYTES = 16 * 1024
"""One TLS record: what is handed to the library at a time, so that progress can be seen."""


class Transport(Protocol):
    """A stream of bytes to one peer.

    Attributes:
        send_bare: as `send_nowait`, with nothing around the operating system's own call, for the hot path: where
            nothing is taken, it raises `BlockingIOError` (TCP) or returns 0 (TLS, always); where the connection is
            broken, it raises any other `OSError`.
    """

    @property
    def send_bare(self) -> Callable[[bytes], int]: ...

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Send what the peer takes at this moment and return how much that was; 0 is a legal answer.

        Raises:
            trio.BrokenResourceError: the connection is broken.
        """
        ...

    async def send_some(self, data: memoryview) -> int:
        """Wait until the peer takes something, and return how much it took, at least 1.

        Raises:
            trio.BrokenResourceError: the connection is broken.
        """
        ...

    async def receive_some(self, bytes_max: int) -> bytes:
        """Wait for bytes and return them; b'' at the end of the stream. Always a checkpoint.

        Raises:
            trio.BrokenResourceError: the connection is broken.
        """
        ...

    def set_taker(self, take: Take | None) -> None:
        """Have `take` deal with what arrives while somebody waits in `receive_some`, where that can be done at once.

        It deals with all that it is given, or returns False and touches nothing: then `receive_some` returns it.
        """
        ...

    async def shutdown_send(self) -> None:
        """Tell the peer that nothing more comes; receiving goes on. Never raises."""
        ...

    def unsent_bytes(self) -> int:
        """Return how much of what was sent the peer's machine hasn't acknowledged; 0 where that isn't known."""
        ...

    def peer_left(self) -> bool:
        """Return whether the peer has said that nothing more comes, behind whatever hasn't been read; or is gone."""
        ...

    def is_broken(self) -> bool:
        """Return whether the peer is gone, so that nothing can be sent to it."""
        ...

    def close_forcefully(self) -> None:
        """Give the resource back at once, dropping what is under way. Idempotent, never raises."""
        ...


class TcpTransport:
    """A connected, non-blocking stream socket, which it owns from here on.

    Args:
        connected: the socket.
        poller: reads from it; None: its task waits for it by Trio.

    Raises:
        OSError: the poller can't watch it; it is still the caller's.
    """

    __slots__ = ("_inlet", "_poller", "_socket", "send_bare")

    def __init__(self, connected: socket.socket, poller: Poller | None = None) -> None:
        self._socket = connected
        self._poller = poller
        self._inlet = poller.watch(connected.fileno(), connected.recv) if poller is not None else None
        self.send_bare: Callable[[bytes | memoryview], int] = connected.send  # 2 to 8 µs, nearly all the kernel's

    def send_nowait(self, data: bytes | memoryview) -> int:
        """One `send`."""
        try:
            return self.send_bare(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_some(self, data: memoryview) -> int:
        """Wait for room in the socket's buffer, then send once."""
        while True:
            with _broken_if_closed():
                await trio.lowlevel.wait_writable(self._socket)
            if sent := self.send_nowait(data):
                return sent

    def receive_some(self, bytes_max: int) -> Coroutine[Any, Any, bytes]:
        """By the poller, if there is one. No coroutine of its own: each idle connection would hold it."""
        return self._wait_and_read(bytes_max) if self._inlet is None else self._inlet.receive_some(bytes_max)

    async def _wait_and_read(self, bytes_max: int) -> bytes:
        """Wait first, then read: a read that fails costs as much as one that doesn't."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(bytes_max)
            except BlockingIOError:
                continue  # a spurious wake-up
            except trio.ClosedResourceError as error:
                raise trio.BrokenResourceError("closed") from error
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def set_taker(self, take: Take | None) -> None:
        """Where the poller reads."""
        if self._inlet is not None:
            self._inlet.take = take

    async def shutdown_send(self) -> None:
        """Send FIN after what the kernel still holds."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    def unsent_bytes(self) -> int:
        """Ask the kernel (SIOCOUTQ, which is TIOCOUTQ for a socket)."""
        return _unacknowledged(self._socket)

    def peer_left(self) -> bool:
        """Ask the kernel."""
        return _is_so(self._socket, _BROKEN | _LEFT)

    def is_broken(self) -> bool:
        """Ask the kernel."""
        return _is_so(self._socket, _BROKEN)

    def close_forcefully(self) -> None:
        """Close the socket; with unread input the kernel resets the connection."""
        if self._socket.fileno() >= 0:
            if self._poller is not None:
                self._poller.forget(self._socket.fileno())
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class TlsTransport:
    """TLS over a connected socket, which it owns from here on.

    Nothing is ever sent without waiting: encrypting belongs to Trio's `SSLStream`, which is asynchronous. So over
    TLS every delivery goes by the outbox's memory channel and its writer.
    """

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = connected
        self._socket_stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        self._stream = trio.SSLStream(self._socket_stream, context, server_side=True, https_compatible=True)
        self._ended = False
        self.send_bare: Callable[[bytes], int] = self.send_nowait

    async def do_handshake(self) -> None:
        """Shake hands; the caller sets the deadline.

        Raises:
            trio.BrokenResourceError: the peer doesn't speak TLS, or not one that we accept, or went away.
        """
        await self._stream.do_handshake()

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Take nothing, always."""
        return 0

    async def send_some(self, data: memoryview) -> int:
        """Encrypt and send one record's worth."""
        piece = data[:TLS_PIECE_BYTES]
        with _broken_if_closed():
            await self._stream.send_all(bytes(piece))
        return len(piece)

    async def receive_some(self, bytes_max: int) -> bytes:
        """Receive and decrypt; after our end of the session, only receive: it is discarded anyway."""
        stream = self._socket_stream if self._ended else self._stream
        with _broken_if_closed():
            return bytes(await stream.receive_some(bytes_max))

    def set_taker(self, take: Take | None) -> None:
        """Decrypting waits."""

    async def shutdown_send(self) -> None:
        """Send close_notify if the peer takes it soon, then FIN."""
        self._ended = True
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.unwrap()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def unsent_bytes(self) -> int:
        """Ask the kernel."""
        return _unacknowledged(self._socket)

    def peer_left(self) -> bool:
        """Ask the kernel."""
        return _is_so(self._socket, _BROKEN | _LEFT)

    def is_broken(self) -> bool:
        """Ask the kernel."""
        return _is_so(self._socket, _BROKEN)

    def close_forcefully(self) -> None:
        """Close the socket under the TLS session."""
        self._socket_stream.socket.close()


@contextlib.contextmanager
def _broken_if_closed() -> Iterator[None]:
    try:
        yield
    except trio.ClosedResourceError as error:
        raise trio.BrokenResourceError("closed") from error
    except OSError as error:  # Trio's epoll can't watch it (`fs.epoll.max_user_watches`)
        raise trio.BrokenResourceError(str(error)) from error


def _unacknowledged(connected: socket.socket) -> int:
    answer = bytearray(4)
    try:
        fcntl.ioctl(connected, termios.TIOCOUTQ, answer)
    except (OSError, ValueError):
        return 0  # closed, or a system without this question
    return int.from_bytes(answer, "little")


_BROKEN = select.POLLERR | select.POLLHUP
_LEFT = getattr(select, "POLLRDHUP", 0)  # Linux


def _is_so(connected: socket.socket, events: int) -> bool:
    poll = select.poll()
    try:
        poll.register(connected, events)
        return any(found & events for _, found in poll.poll(0))
    except (OSError, ValueError):
        return True  # closed
