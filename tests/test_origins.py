"""Which names this server answers to, and which pages may open a WebSocket to it."""

import pytest

from hubbub.auth.origins import is_host_allowed, is_origin_allowed, split_host

HOSTS = [
    ("localhost", ("localhost", None)),
    ("localhost:8000", ("localhost", 8000)),
    ("LocalHost:8000", ("localhost", 8000)),
    ("chat.example.com.", ("chat.example.com", None)),
    ("chat.example.com.:443", ("chat.example.com", 443)),
    ("my_host-1", ("my_host-1", None)),
    ("127.0.0.1:65535", ("127.0.0.1", 65535)),
    ("[::1]", ("::1", None)),
    ("[::1]:8000", ("::1", 8000)),
    ("[0:0:0:0:0:0:0:1]", ("::1", None)),
    ("[2001:DB8::A]:1", ("2001:db8::a", 1)),
    ("", None),
    (" localhost", None),
    ("local host", None),
    ("localhost\n", None),
    ("localhost:", None),
    ("localhost:http", None),
    ("localhost:65536", None),
    ("localhost:-1", None),
    ("localhost:٣", None),
    ("localhost:1:2", None),
    ("::1", None),
    ("[::1", None),
    ("[localhost]", None),
    ("me@localhost", None),
    ("localhost/path", None),
    ("localhost?", None),
    ("localhost,example.com", None),
    ("löcalhost", None),
    ("http://localhost", None),
]


@pytest.mark.parametrize(("value", "parts"), HOSTS)
def test_split_host(value: str, parts: tuple[str, int | None] | None) -> None:
    """A name or address in its one spelling, and the port; None for what is neither."""
    assert split_host(value) == parts


HOSTS_ALLOWED = [
    # host, where the connection arrived, allowed_hosts, whether
    ("localhost", "10.0.0.1", [], True),
    ("127.0.0.1", "10.0.0.1", [], True),
    ("[0::1]", "10.0.0.1", [], True),
    ("10.0.0.1", "10.0.0.1", [], True),
    ("10.0.0.2", "10.0.0.1", [], False),
    ("[2001:db8:0::a]", "2001:db8::a", [], True),
    ("example.com", "10.0.0.1", [], False),
    ("localhost.example.com", "10.0.0.1", [], False),
    ("notlocalhost", "10.0.0.1", [], False),
    ("127.0.0.2", "127.0.0.1", [], False),
    ("chat.example.com", "10.0.0.1", ["chat.example.com"], True),
    ("Chat.Example.COM.", "10.0.0.1", ["CHAT.example.com"], True),
    ("localhost", "10.0.0.1", ["chat.example.com"], False),
    ("10.0.0.1", "10.0.0.1", ["chat.example.com"], False),
    ("b.example.com", "10.0.0.1", ["a.example.com", "b.example.com"], True),
    ("chatxexample.com", "10.0.0.1", ["chat.example.com"], False),
    ("a.example.com", "10.0.0.1", ["*.example.com"], True),
    ("a.b.example.com", "10.0.0.1", ["*.example.com"], True),
    ("example.com", "10.0.0.1", ["*.example.com"], False),
    ("notexample.com", "10.0.0.1", ["*.example.com"], False),
    ("a.example.com.evil.com", "10.0.0.1", ["*.example.com"], False),
    ("anything", "10.0.0.1", ["*"], True),
    ("[::2]", "10.0.0.1", ["*"], True),
]


@pytest.mark.parametrize(("host", "local_address", "allowed", "answer"), HOSTS_ALLOWED)
def test_host(host: str, local_address: str, allowed: list[str], answer: bool) -> None:
    """By default loopback and the bound address, otherwise what is configured and nothing else."""
    parts = split_host(host)
    assert parts is not None
    assert is_host_allowed(parts[0], local_address, allowed) is answer


SAME_HOST = [
    # origin, host, tls, whether
    (None, "localhost:8000", False, True),
    ("http://localhost:8000", "localhost:8000", False, True),
    ("HTTP://LOCALHOST:8000", "localhost:8000", False, True),
    ("http://localhost.:8000", "localhost:8000", False, True),
    ("http://localhost:8001", "localhost:8000", False, False),
    ("http://localhost", "localhost:8000", False, False),
    ("http://127.0.0.1:8000", "localhost:8000", False, False),
    ("http://localhost", "localhost", False, True),
    ("http://localhost:80", "localhost", False, True),
    ("http://localhost", "localhost:80", False, True),
    ("https://localhost", "localhost", True, True),
    ("https://localhost:443", "localhost", True, True),
    ("https://localhost", "localhost:443", True, True),
    ("http://localhost", "localhost", True, False),
    ("https://localhost", "localhost", False, True),  # a proxy in front ends TLS
    ("https://localhost:443", "localhost", False, True),
    ("https://localhost:8443", "localhost:8443", False, True),
    ("https://localhost", "localhost:80", False, False),
    ("http://localhost", "localhost:443", False, False),
    ("https://localhost:8000", "localhost:8000", True, True),
    ("http://[::1]:8000", "[::1]:8000", False, True),
    ("http://[0:0::1]", "[::1]", False, True),
    ("http://[::2]", "[::1]", False, False),
    ("null", "localhost", False, False),
    ("null", "null", False, False),
    ("", "localhost", False, False),
    ("localhost", "localhost", False, False),
    ("//localhost", "localhost", False, False),
    ("http://", "localhost", False, False),
    ("http://localhost/", "localhost", False, False),
    ("http://localhost/.evil.com", "localhost", False, False),
    ("http://localhost.evil.com", "localhost", False, False),
    ("http://localhost@evil.com", "localhost", False, False),
    ("http://evil.com#localhost", "localhost", False, False),
    ("http://evil.com http://localhost", "localhost", False, False),
    ("http://localhost\n", "localhost", False, False),
    ("ftp://localhost", "localhost", False, False),
    ("file://", "localhost", False, False),
    ("chrome-extension://abcdef", "localhost", False, False),
]


@pytest.mark.parametrize(("origin", "host", "tls", "answer"), SAME_HOST)
def test_origin_by_default(origin: str | None, host: str, tls: bool, answer: bool) -> None:
    """Same host and port, whichever of them are spelt out; no Origin is no browser."""
    parts = split_host(host)
    assert parts is not None
    assert is_origin_allowed(origin, parts, tls, []) is answer


PATTERNS = [
    # origin, allowed_origins, whether
    (None, ["https://example.com"], True),
    ("https://example.com", ["https://example.com"], True),
    ("HTTPS://Example.COM", ["https://example.com"], True),
    ("https://example.com", ["HTTPS://EXAMPLE.com/"], True),
    ("http://example.com", ["https://example.com"], False),
    ("https://example.com:444", ["https://example.com"], False),
    ("https://example.com:444", ["https://example.com:444"], True),
    ("https://b.com", ["https://a.com", "https://b.com"], True),
    ("http://localhost", ["https://example.com"], False),
    ("https://a.example.com", ["https://*.example.com"], True),
    ("https://a.b.example.com", ["https://*.example.com"], True),
    ("https://example.com", ["https://*.example.com"], False),
    ("https://.example.com", ["https://*.example.com"], False),
    ("https://notexample.com", ["https://*.example.com"], False),
    ("https://evil.com/.example.com", ["https://*.example.com"], False),
    ("https://evil.com#.example.com", ["https://*.example.com"], False),
    ("https://evil.com?.example.com", ["https://*.example.com"], False),
    ("https://evil.com:80.example.com", ["https://*.example.com"], False),
    ("https://me@a.example.com", ["https://*.example.com"], False),
    ("https://a.example.com.evil.com", ["https://*.example.com"], False),
    ("https://a.example.com:8000", ["https://*.example.com"], False),
    ("https://axexample.com", ["https://a.example.com"], False),
    ("http://a.example.com", ["https://*.example.com"], False),
    ("https://a.example.com\n", ["https://*.example.com"], False),
    ("null", ["https://example.com"], False),
    ("null", ["null"], True),
    ("null", ["*"], True),
    ("http://anything:1", ["*"], True),
    ("", ["*"], True),
    ("http://anything:1", ["https://example.com", "*"], True),
]


@pytest.mark.parametrize(("origin", "allowed", "answer"), PATTERNS)
def test_configured_origins(origin: str | None, allowed: list[str], answer: bool) -> None:
    """A star stands for a part of a host name, never for a port, a path or a scheme's end."""
    assert is_origin_allowed(origin, ("localhost", None), False, allowed) is answer
