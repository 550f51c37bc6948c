"""What systemd hears, over a real socket."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hubbub.systemd import notify, watchdog_seconds


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    """A datagram socket that nobody has bound yet."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.settimeout(5)
        yield receiver


def test_notify(systemd: socket.socket, tmp_path: Path) -> None:
    """Each message is a datagram."""
    path = str(tmp_path / "notify")
    systemd.bind(path)
    notify("READY=1\nSTATUS=völlig bereit", {"NOTIFY_SOCKET": path})
    notify("STOPPING=1", {"NOTIFY_SOCKET": path})
    assert systemd.recv(1000) == "READY=1\nSTATUS=völlig bereit".encode()
    assert systemd.recv(1000) == b"STOPPING=1"


def test_notify_an_abstract_name(systemd: socket.socket) -> None:
    """Names with @ are in no file system."""
    systemd.bind("")  # the kernel picks a free abstract name
    name = systemd.getsockname()
    assert isinstance(name, bytes)
    notify("READY=1", {"NOTIFY_SOCKET": "@" + name[1:].decode()})
    assert systemd.recv(1000) == b"READY=1"


def test_notify_by_the_process_environment(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is at the time."""
    systemd.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("READY=1")
    assert systemd.recv(1000) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_nobody_asked(environ: dict[str, str]) -> None:
    """Nothing happens, and nothing is worth a word."""
    with capture_logs() as logs:
        notify("READY=1", environ)
    assert logs == []


@pytest.mark.parametrize("name", ["/nowhere/notify", "@nobody is here", "/" + "x" * 200, "relative", "vsock:2:1234"])
def test_what_fails_is_logged_only(name: str) -> None:
    """No such socket, no valid name, or a kind of socket that we don't speak."""
    with capture_logs() as logs:
        notify("READY=1", {"NOTIFY_SOCKET": name})
    assert [(entry["event"], entry["log_level"], entry["message"]) for entry in logs] == [
        ("can't notify systemd", "debug", "READY=1")
    ]


def test_a_full_queue_does_not_block(systemd: socket.socket, tmp_path: Path) -> None:
    """What systemd has no room for is lost, and that is logged."""
    path = str(tmp_path / "notify")
    systemd.bind(path)
    with capture_logs() as logs:
        for _ in range(100_000):
            notify("WATCHDOG=1", {"NOTIFY_SOCKET": path})
            if logs:
                break
    assert [entry["log_level"] for entry in logs] == ["debug"]
    assert systemd.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "1"}, 0.0000005),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_PID": "42"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "30s"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, None),
        ({"WATCHDOG_USEC": "9" * 400}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_watchdog(environ: dict[str, str], seconds: float | None) -> None:
    """Half the time that systemd gives, if it means this process."""
    assert watchdog_seconds(environ, 42) == seconds
