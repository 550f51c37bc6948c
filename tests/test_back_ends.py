"""The README's back ends, run as they stand there, but for the ports: they issue a token, and publish."""

import contextlib
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from apis import ALL, KEYS
from hubbub.config import Settings
from peers import SECONDS_MAX, connect
from servers import elsewhere, open_daemon
from signing import SECRET
from structured import open_structured
from test_shutdown import free_port
from tools import need

README = Path(__file__).parents[1] / "README.md"


def example(begins: str, hubbub: int, port: int) -> str:
    """Return the README's code block that begins like this, for a server at one port, listening itself at the other."""
    found = re.search(rf"```\w+\n({re.escape(begins)}.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code = found[1].replace("localhost:8000", f"localhost:{hubbub}").replace("3000", str(port))
    assert str(hubbub) in code
    assert str(port) in code
    return code


def fetch(port: int, path: str) -> str:
    """Ask the back end."""
    with urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=SECONDS_MAX) as response:
        text: str = response.read().decode()
        return text


@pytest.mark.parametrize("language", ["js", "python"])
async def test_back_end(language: str, tmp_path: Path) -> None:
    settings = {"token_hmac_secret": SECRET, "api_keys": ",".join(KEYS)}
    with open_daemon(**settings) as daemon:
        port, file, program = back_end_of(language, daemon.port, tmp_path)
        with running(program, str(file)):
            await until_it_listens(port)
            token = await elsewhere(lambda: fetch(port, "/token"))
            async with open_structured(daemon.port, connected=False) as client:
                await client.connect(token=token)
                await client.ask("subscribe", channel="news")
                said = await elsewhere(lambda: fetch(port, "/say"))
                heard = await client.publication("news")
                presence = await client.ask("presence", channel="news")
            assert heard == {"data": {"text": "42 was here"}, "offset": 1}
            assert '"offset"' in said
            assert [member["user"] for member in presence["presence"].values()] == ["42"]


@pytest.mark.parametrize("language", ["js", "python"])
async def test_back_end_without_a_server(language: str, tmp_path: Path) -> None:
    """It says so, and goes on."""
    port, file, command = back_end_of(language, free_port(), tmp_path)

    def status_of(path: str) -> int:
        try:
            fetch(port, path)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    with running(command, str(file)):
        await until_it_listens(port)
        assert [await elsewhere(partial(status_of, path)) for path in ("/say", "/say", "/token")] == [502, 502, 200]


def back_end_of(language: str, hubbub: int, folder: Path) -> tuple[int, Path, str]:
    """Write down the README's; return where it will listen, its file, and what runs that."""
    name, begins = {"js": ("back_end.mjs", "// back_end.mjs"), "python": ("back_end.py", "# back_end.py")}[language]
    program = need("node") if language == "js" else sys.executable
    port, file = free_port(), folder / name
    file.write_text(example(begins, hubbub, port))
    return port, file, program


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    """Run the back end, with a key and the secret."""
    environ = {"HUBBUB_TOKEN_HMAC_SECRET": SECRET, "HUBBUB_API_KEY": ALL}
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


async def until_it_listens(port: int) -> None:
    """Wait for the back end."""
    with trio.fail_after(SECONDS_MAX):
        while True:
            try:
                await trio.aclose_forcefully(await connect(port))
            except OSError:
                await trio.sleep(0.05)
            else:
                return


def test_settings_that_the_section_names() -> None:
    """They exist."""
    for name in ("api_keys", "api_address"):
        assert hasattr(Settings(), name)
        assert name in README.read_text()
