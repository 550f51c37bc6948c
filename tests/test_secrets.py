"""Secrets stay secret: they are looked for in all that a server has said after it has been used in every way."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import trio

from peers import Closed, HandshakeRefused, connect, handshake, shake_hands
from servers import Daemon, open_daemon
from signing import sign
from structured import open_structured

HMAC, PREVIOUS, HOOK = "hmac-secret-0123456789abcdef", "previous-secret-0123456789ab", "hook-secret-0123456789abcde"
KEY, READ_KEY = "api-key-0123456789abcdef", "read-key-0123456789abcdef"
PASSWORD, QUERY = "url-password-012345", "url-query-0123456789"
SECRETS = (HMAC, PREVIOUS, HOOK, KEY, READ_KEY, PASSWORD, QUERY)


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def post(daemon: Daemon, method: str, body: bytes, key: str) -> str:
    """Call the server API; return all that is answered."""
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{daemon.url}/api/{method}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return f"{response.headers}{response.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.headers}{error.read().decode()}"


def use_the_api(daemon: Daemon) -> list[str]:
    """Use it well and badly; return what is said to that."""
    body = json.dumps({"channel": "room", "data": "hello"}).encode()
    said = [post(daemon, method, body, key) for method in ("publish", "info", "nothing") for key in (KEY, READ_KEY)]
    said += [post(daemon, "publish", body, key) for key in ("", KEY[:-1], KEY + "x", f"web:all:{KEY}", HMAC)]
    said += [post(daemon, "publish", broken, KEY) for broken in (b"", b"{", b"[]", b'{"channel":7}', b"\xff", body * 9)]
    command = [sys.executable, "-m", "hubbub", "publish", "room", "text", "--url", daemon.url]
    for key in (KEY, READ_KEY, "wrong-key-0123456789"):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env={**os.environ, "HUBBUB_API_KEY": key}
        )
        said += [done.stdout, done.stderr]
    return said


async def use_the_sockets(daemon: Daemon, tokens: dict[str, str]) -> list[str]:
    """Come with every token in both dialects; return what is said to that."""
    said: list[str] = []
    for token in tokens.values():
        async with open_structured(daemon.port, connected=False) as client:
            number = await client.say("connect", token=token)
            try:
                said.append(json.dumps(await client.reply(number)))
                await client.say("subscribe", channel="$room", token=token)
                await client.goes_on()
            except Closed as closed:
                said.append(closed.reason)
        stream = await connect(daemon.port)
        with trio.move_on_after(5):
            try:
                await shake_hands(stream, handshake(f"/chat/room?token={token}"))
            except HandshakeRefused as refused:
                said.append(repr(refused.args))
        await trio.aclose_forcefully(stream)
    return said


def test_secrets_are_nowhere(tmp_path: Path) -> None:
    """Not in the log at its most talkative, in metrics, answers, Closes, commands' output, or the process's title."""
    nowhere = f"http://name:{PASSWORD}@127.0.0.1:{closed_port()}/hook?key={QUERY}"
    config = tmp_path / "hubbub.toml"
    config.write_text(
        f'token_hmac_secret = "{HMAC}"\ntoken_hmac_secret_previous = "{PREVIOUS}"\nhook_secret = "{HOOK}"\n'
        f'api_keys = ["web:all:{KEY}", "cron:read:{READ_KEY}"]\ntoken_jwks = "{nowhere}"\n'
        f'hook_connect_url = "{nowhere}"\nhook_connect_on_failure = "allow"\nhook_publish_url = "{nowhere}"\n'
        f'hook_notices_url = "{nowhere}"\nhook_notices_seconds_max = 0.5\nstale_seconds_max = 0.5\n'
        f'log_level = "debug"\nlog_format = "text"\n'
    )
    tokens = {
        "good": sign(sub="ann", secret=HMAC),
        "by the one before": sign(sub="ann", secret=PREVIOUS),
        "wrong": sign(sub="ann", secret="another secret, of somebody else"),
        "expired": sign(sub="ann", exp=1, secret=HMAC),
        "for a room": sign(sub="ann", channel="$room", secret=HMAC),
        "none": "not.a.token",
    }
    with open_daemon("--config", str(config), drain_seconds_max=1) as daemon:
        said = [Path(f"/proc/{daemon.process.pid}/cmdline").read_text()]
        said += use_the_api(daemon)
        said += trio.run(use_the_sockets, daemon, tokens)
        config.write_text(config.read_text() + f'api_keys_ = ["{KEY}"]\nhook_secret_ = "{HOOK}"\n')
        daemon.process.send_signal(signal.SIGHUP)
        checked = [sys.executable, "-m", "hubbub", "config", "check", str(config)]
        said += [subprocess.run(checked, capture_output=True, text=True, timeout=30).stdout]
        with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=10) as response:
            said.append(response.read().decode())
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.stderr is not None
        log = daemon.process.stderr.read()
    assert "upgraded" in log, "it has been talkative"
    assert "reload failed" in log
    signatures = [token.rpartition(".")[2] for name, token in tokens.items() if name != "none"]
    for secret in (*SECRETS, *signatures):
        assert secret not in log
        for text in said:
            assert secret not in text
