"""`hubbub publish`: says something in a room of a running server, or one line that says why not; never a traceback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apis import ALL, KEYS, PUBLISH, READ
from peers import open_peer
from servers import Daemon, elsewhere, open_daemon
from structured import open_structured
from test_shutdown import free_port

SETTINGS = {"api_keys": ",".join(KEYS)}


def publish(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the command; no key may show in what it prints, nor a traceback. `KEY=…` is for the environment."""
    for key in [one.removeprefix("KEY=") for one in arguments if one.startswith("KEY=")]:
        environ["HUBBUB_API_KEY"] = key
    arguments = tuple(one for one in arguments if not one.startswith("KEY="))
    command = [sys.executable, "-m", "hubbub", "publish", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={**clean, **environ}, errors="replace"
    )
    printed = result.stdout + result.stderr
    assert "Traceback" not in printed
    for entry in KEYS:
        assert entry.split(":", 2)[2] not in printed
    assert (result.stdout + result.stderr).count("\n") == 1
    return result


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all, in which each test has a room of its own."""
    with open_daemon(**SETTINGS) as daemon:
        yield daemon


async def test_text_and_json(daemon: Daemon) -> None:
    async with open_peer(daemon.port) as plain, open_structured(daemon.port) as client:
        await client.ask("subscribe", channel="chat")
        for key in (ALL, PUBLISH):
            result = await elsewhere(lambda key=key: publish("chat", "hello", "--url", daemon.url, f"KEY={key}"))  # type: ignore[misc]
            assert result.returncode == 0, result.stderr
            assert result.stdout.startswith("room chat, offset ")
            assert ", epoch " in result.stdout
            assert await plain.receive() == "hello"
            assert (await client.publication("chat"))["data"] == "hello"
        data = '{"a": [1, "ü"]}'
        flags = ("--json", "--url", f"{daemon.url}/api/")
        result = await elsewhere(lambda: publish("chat", data, *flags, HUBBUB_API_KEY=PUBLISH))
        assert result.returncode == 0
        assert (await client.publication("chat"))["data"] == json.loads(data)


def test_idempotency_key(daemon: Daemon) -> None:
    flags = ("--url", daemon.url, f"KEY={ALL}", "--idempotency-key", "k")
    first, second = publish("again", "a", *flags), publish("again", "a", *flags)
    assert first.stdout == second.stdout
    assert "offset 1," in first.stdout


def test_settings_say_where_and_with_which_key(tmp_path: Path) -> None:
    """The key is the first that may publish, the address that of the API."""
    port = free_port()
    file = tmp_path / "hubbub.toml"
    keys = json.dumps([KEYS[2], KEYS[1], KEYS[0]])
    file.write_text(f'api_keys = {keys}\napi_address = "127.0.0.1:{port}"\n')
    with open_daemon("--config", str(file)):
        assert publish("chat", "hello", "--config", str(file)).returncode == 0
    port = free_port()
    with open_daemon("--port", str(port), **SETTINGS):
        result = publish("chat", "hello", HUBBUB_PORT=str(port), HUBBUB_API_KEYS=",".join(KEYS), HUBBUB_HOST="0.0.0.0")
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere:chat", "hello", f"KEY={ALL}"], "refused: unknown channel: the room's namespace isn't configured"),
        (["chat", "hello", f"KEY={READ}"], "refused: permission denied: the key desk may presence, "),
        (["chat", "hello", "KEY=wrong"], "refused: 401 Unauthorized: key: got one that isn't configured"),
        (["", "hello", f"KEY={ALL}"], "refused: bad request: room name has 0 characters"),
    ],
)
def test_what_the_server_refuses(daemon: Daemon, arguments: list[str], says: str) -> None:
    result = publish(*arguments, "--url", daemon.url)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith(says)


def test_server_without_an_api() -> None:
    with open_daemon() as daemon:
        result = publish("chat", "hello", f"KEY={ALL}", "--url", daemon.url)
    assert (result.returncode, "there is no server API; api_keys" in result.stdout) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chat", "hello"], "there is no key; allowed: HUBBUB_API_KEY in the environment, or api_keys in the settings"),
        (["chat", "{", "--json", f"KEY={ALL}"], "TEXT with --json: not JSON: "),
        (
            ["chat", "hello", f"KEY={ALL}", "--url", "localhost:8000"],
            "--url: got 'localhost:8000', allowed: http://HOST:PORT",
        ),
        (
            ["chat", "hello", f"KEY={ALL}", "--url", "ws://localhost:8000/chat"],
            "--url: got 'ws://localhost:8000/chat', ",
        ),
        (["chat", "hello", f"KEY={ALL}", "--url", "http://[::"], "can't reach the server: "),
        (["chat", "hello", f"KEY={ALL}", "--url", "http://127.0.0.1:1"], "can't reach the server: "),
        (["chat", "hello", "KEY=" + "ü" * 20, "--url", "http://127.0.0.1:1"], "allowed: text in UTF-8, and a key in "),
        (["chat", "hello", f"KEY={ALL}\n{ALL}", "--url", "http://127.0.0.1:1"], "can't reach the server: "),
        (["chat", "\udcff", f"KEY={ALL}"], "allowed: text in UTF-8"),
        (["chat", "hello", "--config", "/nowhere"], "/nowhere: cannot be read"),
    ],
)
def test_misuse(arguments: list[str], says: str) -> None:
    result = publish(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("hubbub: ")
    assert says in result.stderr


def test_somebody_else_answers() -> None:
    """A server that isn't hubbub is told apart from one that refuses."""
    script = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=0, bind='127.0.0.1')"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        assert other.stdout is not None
        port = other.stdout.readline().split(" port ")[1].split()[0]
        result = publish("chat", "hello", f"KEY={ALL}", "--url", f"http://127.0.0.1:{port}")
        other.kill()
    assert (result.returncode, result.stdout) == (1, "refused: 501, and not in words of hubbub\n")


def test_server_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        command = [sys.executable, "-m", "hubbub", "publish", "chat", "hello"]
        command += ["--url", f"http://127.0.0.1:{server.getsockname()[1]}"]
        environ = {**os.environ, "HUBBUB_API_KEY": ALL}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
        ) as process:
            connected, _ = server.accept()
            connected.close()
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("hubbub: publish: can't reach the server: ")
