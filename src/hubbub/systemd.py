"""systemd: telling it that the service is ready, alive or stopping, as sd_notify(3) and sd_watchdog_enabled(3) say.

Rules:

- Without NOTIFY_SOCKET nobody asked, and nothing is sent.
- Telling systemd never harms the service: what fails is logged at debug, and that is all.
"""

import os
import socket
from collections.abc import Mapping

import structlog

_NO_WATCHDOG = 2**64 - 1
"""systemd writes "never" so: the largest 64-bit number."""

log = structlog.get_logger()


def notify(message: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send `message`, such as "READY=1", to systemd, if it asked for it.

    Never waits: if systemd's queue is full (hundreds of messages), the message is lost.
    """
    name = environ.get("NOTIFY_SOCKET")
    if not name:
        return
    try:
        if name[0] not in "/@":
            raise OSError("NOTIFY_SOCKET is neither a path from / nor an abstract name with @")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), "\0" + name[1:] if name[0] == "@" else name)
    except OSError as error:
        log.debug("can't notify systemd", message=message, why=str(error))


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return how often systemd should hear "WATCHDOG=1" from process `pid`; None if it doesn't expect it.

    That is half the time after which systemd gives the service up, as it recommends.
    """
    # An environment is inherited: the watchdog may be meant for a parent process.
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 2_000_000 if 0 < microseconds < _NO_WATCHDOG else None
