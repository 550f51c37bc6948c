"""Host and Origin: which names this server answers to, and which pages may open a WebSocket to it.

Browsers let any page connect anywhere, and only say from where (RFC 6455 section 10.2): without the Origin check
any page that a user visits could chat in that user's name. The Host check stops DNS rebinding, in which a
foreign name is made to point at a loopback or private address.

Defaults: Host must be a loopback name or the address that the connection arrived at; Origin, where there is
one, must name the same host and port as Host. Programs that aren't browsers send no Origin; they pass.
"""

import ipaddress
import re
from collections.abc import Sequence

ANY = "*"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def split_host(value: str) -> tuple[str, int | None] | None:
    """Return (name in lower case, port or None) of a Host field's value; None if it isn't one (RFC 9110 7.2)."""
    match = _HOST.fullmatch(value)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > 65535:
        return None
    return _canonical(match["name"]), port


def is_host_allowed(name: str, local_address: str, allowed: Sequence[str]) -> bool:
    """Return whether this server answers to `name`, as `split_host` gave it.

    Args:
        local_address: the address that the connection arrived at.
        allowed: the setting allowed_hosts; if empty, loopback names and the local address.
    """
    if not allowed:
        return name in _LOOPBACK_NAMES or name == _canonical(local_address)
    return any(pattern == ANY or _matches(name, pattern) for pattern in allowed)


def is_origin_allowed(origin: str | None, host: tuple[str, int | None], tls: bool, allowed: Sequence[str]) -> bool:
    """Return whether a page from `origin` may open a WebSocket here; None, no Origin sent, may.

    Args:
        host: of the same request, as `split_host` gave it.
        tls: whether we speak TLS ourselves: then the page must, too. Without, a proxy in front may; so a port that
            isn't named is the one that the page's own scheme implies.
        allowed: the setting allowed_origins; if empty, the same host and port.
    """
    if origin is None:
        return True
    if allowed:
        return any(pattern == ANY or _matches(origin.lower(), pattern) for pattern in allowed)
    match = _ORIGIN.fullmatch(origin)
    parts = split_host(match["host"]) if match else None
    scheme = match["scheme"].lower() if match else ""
    default_port = _DEFAULT_PORTS.get(scheme)
    if parts is None or default_port is None or (tls and scheme != "https"):
        return False
    return (host[0], host[1] or default_port) == (parts[0], parts[1] or default_port)


def _matches(value: str, pattern: str) -> bool:
    """A `*` stands for one or more characters of a host name, dots included."""
    parts = (re.escape(part) for part in pattern.lower().rstrip("/").split("*"))
    return re.fullmatch("[a-z0-9._-]+".join(parts), value) is not None


def _canonical(name: str) -> str:
    name = name.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name
