"""The command line: statuses, one line a mistake, and never a traceback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from hubbub import __version__
from hubbub.cli import main
from hubbub.config import Settings
from hubbub.config_sources import default_toml
from hubbub.listen import load_tls
from hubbub.model.errors import StartError

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
RunNode = Callable[[Settings, Callable[[str], None], Callable[[], Settings]], Awaitable[int]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no HUBBUB_ variable but a test's own."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    return tmp_path


def status_of(*argv: str) -> int:
    """The exit status of the command, run in this process."""
    try:
        return main(argv)
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return code


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hubbub", *argv], env=ENVIRONMENT, capture_output=True, text=True, timeout=30
    )


MISTAKES = [
    (["serve", "--port", "abc"], 'hubbub: --port: got "abc", allowed: an integer from 0 to 65535'),
    (["serve", "--port", "65536"], 'hubbub: --port: got "65536", allowed: an integer from 0 to 65535'),
    (["serve", "--port="], 'hubbub: --port: got "", allowed: an integer from 0 to 65535'),
    (["serve", "--port", "-1"], 'hubbub: --port: got "-1", allowed: an integer from 0 to 65535'),
    (["serve", "--port"], "hubbub serve: error: argument --port: expected one argument"),
    (["serve", "--host", ""], 'hubbub: --host: got "", allowed: a host name or an IP address'),
    (
        ["serve", "--log-format", "xml"],
        'hubbub: --log-format: got "xml", allowed: one of "auto", "json", "text"',
    ),
    (
        ["serve", "--log-level", "INFO"],
        'hubbub: --log-level: got "INFO", allowed: one of "debug", "error", "info", "warning"',
    ),
    (
        ["serve", "--tls-cert", "cert.pem"],
        'hubbub: --tls-cert: got "cert.pem" without tls_key, allowed: both or neither',
    ),
    (["serve", "--config", "none.toml"], "hubbub: none.toml: cannot be read: No such file or directory"),
    (["serve", "--config", "prot.toml"], "hubbub: prot.toml: prot: unknown, did you mean port?"),
    (["serve", "--por", "80"], "hubbub serve: error: unrecognized arguments: --por 80"),
    (["serve", "extra"], "hubbub serve: error: unrecognized arguments: extra"),
    (["config", "default", "extra"], "hubbub config default: error: unrecognized arguments: extra"),
    (["config", "check", "f", "--all"], "hubbub config check: error: unrecognized arguments: --all"),
    (["publish", "room", "text", "extra"], "hubbub publish: error: unrecognized arguments: extra"),
    (["token", "--usr=42"], "hubbub token: error: unrecognized arguments: --usr=42"),
    (["--versoin"], "hubbub: error: unrecognized arguments: --versoin"),
    (["config"], "hubbub config: error: the following arguments are required: ACTION"),
    (["config", "check"], "hubbub config check: error: the following arguments are required: FILE"),
]


@pytest.mark.parametrize(("argv", "line"), MISTAKES)
def test_mistake(argv: list[str], line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "prot.toml").write_text("prot = 1")
    assert status_of(*argv) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    usage, _, last = stderr.rstrip("\n").rpartition("\n")
    assert last == line
    assert usage == "" or usage.startswith(f"usage: {last.partition(':')[0]} ")


@pytest.mark.parametrize("argv", [["sevre"], ["config", "chekc"]])
def test_unknown_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv) == 2
    assert f"invalid choice: '{argv[-1]}'" in capsys.readouterr().err.splitlines()[-1]


def test_every_mistake_has_a_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "hubbub.toml").write_text('rooms_max = "many"\nprot = 1')
    monkeypatch.setenv("HUBBUB_PING_SECONDS", "soon")
    assert status_of("serve", "--config", "hubbub.toml", "--port", "x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("hubbub: ") for line in lines)


@pytest.mark.parametrize(
    "argv", [["serve", "--port", "abc"], ["serve", "--config", "/"], ["sevre"], ["config", "check"]]
)
def test_mistake_in_a_real_process(argv: list[str]) -> None:
    end = run(*argv)
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr.splitlines()[-1].startswith("hubbub")
    assert "Traceback" not in end.stderr


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of() == 2
    assert capsys.readouterr().out.startswith("usage: hubbub")


def test_version() -> None:
    end = run("--version")
    assert (end.returncode, end.stdout, end.stderr) == (0, f"hubbub {__version__}\n", "")


def test_default_configuration_passes_the_check(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("config", "default") == 0
    printed = capsys.readouterr().out
    assert printed == default_toml()
    (place / "hubbub.toml").write_text(printed)
    assert status_of("config", "check", "hubbub.toml") == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_check_prints_every_mistake(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.toml").write_text('port = "abc"\nprot = 1')
    assert status_of("config", "check", "bad.toml") == 1
    assert capsys.readouterr() == (
        'bad.toml: port: got "abc", allowed: an integer from 0 to 65535\nbad.toml: prot: unknown, did you mean port?\n',
        "",
    )


def test_check_looks_into_namespaces(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "hubbub.toml").write_text("[namespaces.chat]\nhistory_size = 5\njoin_leave = true")
    assert status_of("config", "check", "hubbub.toml") == 0
    assert capsys.readouterr() == ("ok\n", "")
    (place / "hubbub.toml").write_text("[namespaces.chat]\nhistory_size = -5\nport = 80")
    assert status_of("config", "check", "hubbub.toml") == 1
    assert capsys.readouterr().out.splitlines() == [
        "hubbub.toml: namespaces.chat.history_size: got -5, allowed: an integer from 0 to 1000000",
        "hubbub.toml: namespaces.chat.port: got 80, allowed: only at the top level, above all tables",
    ]


def test_check_looks_at_the_file_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "good.toml").write_text("port = 1")
    monkeypatch.setenv("HUBBUB_PORT", "abc")
    assert status_of("config", "check", "good.toml") == 0
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("argv", [["config", "default"], ["--version"], ["serve", "--help"], []])
def test_reader_of_stdout_has_left(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        end = subprocess.run(
            [sys.executable, "-m", "hubbub", *argv],
            env=ENVIRONMENT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    assert (end.returncode, end.stderr) == (0 if argv else 2, b"")


@pytest.mark.parametrize(
    "argv",
    [
        ["config", "default"],
        ["config", "check", "hubbub.toml"],
        ["token", "--user", "42", "--config", "hubbub.toml"],
        ["--version"],
        ["serve", "--help"],
        ["serve", "--port", "0"],
        [],
    ],
)
def test_stdout_that_cannot_be_written(argv: list[str], place: Path) -> None:
    (place / "hubbub.toml").write_text(f'token_hmac_secret = "{32 * "x"}"')
    with open("/dev/full", "wb") as stdout:
        command = [sys.executable, "-m", "hubbub", *argv]
        end = subprocess.run(command, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, timeout=30)
    assert (end.returncode, end.stderr) == (2, b"hubbub: can't write to stdout: No space left on device\n")


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_closed(closed: str) -> None:
    """No socket gets the number of one, and so what was meant for it."""
    command = f'exec "$0" -m hubbub serve --port 0 {closed}'
    with subprocess.Popen(["sh", "-c", command, sys.executable], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            until(lambda: catches_sigterm(process.pid))
            files = Path(f"/proc/{process.pid}/fd")
            numbers = [number for number in ("0", "1", "2") if f"{number}<&-" in closed or f"{number}>&-" in closed]
            assert [os.readlink(files / number) for number in numbers] == ["/dev/null"] * len(numbers)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def catches_sigterm(pid: int) -> bool:
    """Whether the server is up."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunNode], None]:
    """Puts a function in the place of `run_daemon`."""

    def replace(run_daemon: RunNode) -> None:
        module = ModuleType("hubbub.daemon")
        module.__dict__["run_daemon"] = run_daemon
        monkeypatch.setitem(sys.modules, "hubbub.daemon", module)
        monkeypatch.setattr("hubbub.cli.configure_logging", lambda *_: None)

    return replace


def test_serve_gives_the_node_its_settings_and_returns_its_status(
    node: Callable[[RunNode], None],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run_daemon(settings: Settings, announce: Callable[[str], None], wanted: Callable[[], Settings]) -> int:
        assert settings == Settings(host="::1", port=3, rooms_max=2, history_size=1)
        announce("http://[::1]:3")
        return 1

    node(run_daemon)
    (place / "hubbub.toml").write_text("port = 1\nrooms_max = 1\nhistory_size = 1")
    monkeypatch.setenv("HUBBUB_ROOMS_MAX", "2")
    monkeypatch.setenv("HUBBUB_PORT", "2")
    assert status_of("serve", "--config", "hubbub.toml", "--port", "3", "--host", "::1") == 1
    assert capsys.readouterr() == ("listening on http://[::1]:3\n", "")


def test_the_key_of_a_back_end_is_no_setting(node: Callable[[RunNode], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tries the server and its back end in one shell has it in the environment; at a reload, too."""

    async def run_daemon(settings: Settings, announce: Callable[[str], None], wanted: Callable[[], Settings]) -> int:
        assert wanted() == settings == Settings()
        return 0

    node(run_daemon)
    monkeypatch.setenv("HUBBUB_API_KEY", "9vR4wZy7Np1sQe6G")
    assert status_of("serve") == 0


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (StartError("alone"), ["hubbub: alone"]),
        (ExceptionGroup("", [ExceptionGroup("", [StartError("wrapped")])]), ["hubbub: wrapped"]),
        (ExceptionGroup("", [StartError("one"), StartError("two")]), ["hubbub: one", "hubbub: two"]),
    ],
)
def test_start_error_is_one_line(
    error: Exception,
    lines: list[str],
    node: Callable[[RunNode], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run_daemon(settings: Settings, announce: Callable[[str], None], wanted: Callable[[], Settings]) -> int:
        raise error

    node(run_daemon)
    assert status_of("serve") == 2
    assert capsys.readouterr().err.splitlines() == lines


def test_an_error_of_ours_is_not_hidden(node: Callable[[RunNode], None]) -> None:
    async def run_daemon(settings: Settings, announce: Callable[[str], None], wanted: Callable[[], Settings]) -> int:
        raise ExceptionGroup("", [StartError("not the whole story"), ZeroDivisionError()])

    node(run_daemon)
    with pytest.raises(ExceptionGroup) as caught:
        status_of("serve")
    assert caught.value.subgroup(ZeroDivisionError)


def assert_refused(end: subprocess.CompletedProcess[str]) -> None:
    """The server did not start, and said why in one line."""
    assert (end.returncode, end.stdout) == (2, "")
    (line,) = end.stderr.splitlines()
    assert line.startswith("hubbub: ")


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert_refused(run("serve", "--port", str(taken.getsockname()[1])))


# Nobody's address (RFC 5737), and two names that are none; no DNS server is asked.
@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 64 + ".example", "a..b"])
def test_address_that_cannot_be_used(host: str) -> None:
    assert_refused(run("serve", "--host", host, "--port", "0"))


CERT = "allowed: PEM of a certificate, followed by those that it rests on"
KEY = "allowed: PEM of the certificate's private key, without a password"


@pytest.mark.parametrize(
    ("cert", "key", "why"),
    [
        ("none.pem", "key.pem", "tls_cert none.pem: cannot be read: No such file or directory"),
        ("cert.pem", "none.pem", "tls_key none.pem: cannot be read: No such file or directory"),
        ("none.pem", "none2.pem", "tls_cert none.pem: cannot be read: No such file or directory"),
        ("cert.pem", ".", "tls_key .: cannot be read: Is a directory"),
        ("empty.pem", "key.pem", f"tls_cert empty.pem: {CERT}"),
        ("junk.pem", "key.pem", f"tls_cert junk.pem: {CERT}"),
        ("junk.pem", "junk.pem", f"tls_cert junk.pem: {CERT}"),
        ("noise.pem", "key.pem", f"tls_cert noise.pem: {CERT}"),
        ("cert.pem", "empty.pem", f"tls_key empty.pem: {KEY}"),
        ("cert.pem", "junk.pem", f"tls_key junk.pem: {KEY}"),
        ("key.pem", "cert.pem", f"tls_cert key.pem: {CERT}"),
        ("cert.pem", "cert.pem", f"tls_key cert.pem: {KEY}"),
        ("cert.pem", "other.pem", "tls_key other.pem: it belongs to another certificate than tls_cert cert.pem"),
        ("cert.pem", "locked.pem", "tls_key locked.pem: it is encrypted, allowed: a key without a password"),
    ],
)
def test_certificate_that_cannot_be_used(cert: str, key: str, why: str, place: Path) -> None:
    leaf, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    (place / "cert.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (place / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    (place / "other.pem").write_bytes(other.private_key_pem.bytes())
    locked = load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (place / "locked.pem").write_bytes(locked)
    (place / "empty.pem").touch()
    (place / "junk.pem").write_text("no certificate")
    (place / "noise.pem").write_bytes(bytes(range(256)))
    with pytest.raises(StartError, match=f"^{re.escape(why)}$"):
        load_tls(Settings(tls_cert=cert, tls_key=key))


def test_a_certificate_that_is_not_there_is_one_line() -> None:
    assert_refused(run("serve", "--port", "0", "--tls-cert", "none.pem", "--tls-key", "none.pem"))


def test_serve_announces_itself_and_ends_on_sigterm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stdout) == (0, "")
    assert "Traceback" not in stderr


LOGGING = """\
import logging, sys, structlog
from hubbub.log import configure_logging
log = structlog.get_logger()
configure_logging(sys.argv[1], sys.argv[2], sys.stderr)
log.debug("ours", level_given="debug")
log.info("ours", peer="::1")
logging.getLogger("trio-websocket").info("theirs")
logging.getLogger("trio-websocket").warning("theirs %d", 1)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
"""


def log_of(log_format: str, log_level: str) -> list[str]:
    """What a program's stderr, which is no terminal, holds after a few entries."""
    end = subprocess.run(
        [sys.executable, "-c", LOGGING, log_format, log_level], capture_output=True, text=True, timeout=30
    )
    assert (end.returncode, end.stdout) == (0, "")
    return end.stderr.splitlines()


@pytest.mark.parametrize(
    ("log_level", "events"),
    [
        ("debug", ["ours", "ours", "theirs 1", "broken"]),
        ("info", ["ours", "theirs 1", "broken"]),
        ("warning", ["theirs 1", "broken"]),
        ("error", ["broken"]),
    ],
)
def test_log_off_a_terminal_is_json(log_level: str, events: list[str]) -> None:
    entries = [json.loads(line) for line in log_of("auto", log_level)]
    assert [entry["event"] for entry in entries] == events
    assert all(entry["timestamp"].endswith("Z") for entry in entries)
    assert entries[-1]["level"] == "error"
    assert "ZeroDivisionError" in entries[-1]["exception"]


def test_log_as_text_has_no_colours_off_a_terminal() -> None:
    lines = log_of("text", "info")
    assert "[info     ] ours" in lines[0]
    assert "peer=::1" in lines[0]
    assert "\x1b" not in "".join(lines)
