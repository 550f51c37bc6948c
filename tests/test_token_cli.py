"""`hubbub token`, and what else the command line has to do with tokens: no server open by accident, no secret shown."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from hubbub.cli import main
from hubbub.config_sources import OPTIONS
from peers import HandshakeRefused, open_peer
from signing import SECRET, entry, key_for, key_set, pem, sign, sign_with
from structured import open_structured

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
OPEN = (
    "hubbub: whoever reaches {} could chat: configure tokens (token_hmac_secret, token_public_keys or token_jwks) "
    "or hook_connect_url, "
    "or say that strangers are welcome: anonymous = true, or --open"
)
SECRETS = ("token_hmac_secret", "token_hmac_secret_previous")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no HUBBUB_ variable but the secret."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("HUBBUB_TOKEN_HMAC_SECRET", SECRET)
    return tmp_path


Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *argv: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command, run in this process; the secret is in neither."""
    try:
        status = main(argv)
    except SystemExit as end:
        status = int(end.code or 0)
    stdout, stderr = capsys.readouterr()
    assert SECRET not in stdout + stderr
    return status, stdout, stderr


def made(capsys: Captured, *argv: str) -> dict[str, object]:
    """The claims of a token that the command makes, which it must also find valid."""
    status, stdout, stderr = run(capsys, "token", *argv)
    assert (status, stderr) == (0, "")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", stdout)
    header, payload, _ = (base64.urlsafe_b64decode(part + "===") for part in stdout.strip().split("."))
    assert json.loads(header) == {"alg": "HS256", "typ": "JWT"}
    claims: dict[str, object] = json.loads(payload)
    assert run(capsys, "token", "check", stdout.strip())[1].startswith("valid: ")
    issued = claims.pop("iat")
    assert isinstance(issued, int)
    assert abs(issued - time.time()) < 60
    if "exp" in claims:
        assert isinstance(claims["exp"], int)
        claims["exp"] -= issued
    return claims


# -- making


@pytest.mark.parametrize(
    ("argv", "claims"),
    [
        ((), {"exp": 3600}),
        (("--user", "ann"), {"sub": "ann", "exp": 3600}),
        (("--user", "Änn \u2603"), {"sub": "Änn \u2603", "exp": 3600}),
        (("--expires", "90s"), {"exp": 90}),
        (("--expires", "15m"), {"exp": 900}),
        (("--expires", "2h"), {"exp": 7200}),
        (("--expires", "30d"), {"exp": 2_592_000}),
        (("--expires", "999999999d"), {"exp": 86_399_999_913_600}),
        (("--expires", "never"), {}),
        (("--user", "ann", "--room", "$news"), {"sub": "ann", "channel": "$news", "exp": 3600}),
        (("--room", "a room"), {"channel": "a room", "exp": 3600}),
        (("--join", "a", "--join", "b:c"), {"channels": ["a", "b:c"], "exp": 3600}),
        (("--info", '{"name": "Ann"}'), {"info": {"name": "Ann"}, "exp": 3600}),
        (("--info", "null"), {"info": None, "exp": 3600}),
        (("--info=-1",), {"info": -1, "exp": 3600}),
    ],
    ids=str,
)
def test_options(argv: tuple[str, ...], claims: dict[str, object], capsys: Captured) -> None:
    """Each of them, and what it puts in the token."""
    assert made(capsys, *argv) == claims


def test_issuer_and_audience(place: Path, capsys: Captured) -> None:
    """A server that asks for them accepts the token."""
    (place / "hubbub.toml").write_text('token_issuer = "us"\ntoken_audience = "chat"')
    status, token, _ = run(capsys, "token", "--config", "hubbub.toml")
    assert status == 0
    assert run(capsys, "token", "--config", "hubbub.toml", "check", token.strip())[0] == 0
    status, answer, _ = run(capsys, "token", "--config", "hubbub.toml", "check", sign(sub="ann"))
    assert (status, answer) == (1, "not valid: its claims aren't acceptable: missing_claim: Missing claim: 'aud,iss'\n")


def test_secret_of_the_file(place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server has it: the environment is stronger."""
    (place / "hubbub.toml").write_text('token_hmac_secret = "the secret in the file, which is long"')
    assert run(capsys, "token", "--config", "hubbub.toml", "check", sign())[0] == 0
    monkeypatch.delenv("HUBBUB_TOKEN_HMAC_SECRET")
    assert run(capsys, "token", "--config", "hubbub.toml", "check", sign())[0] == 1
    _, token, _ = run(capsys, "token", "--config", "hubbub.toml")
    assert run(capsys, "token", "--config", "hubbub.toml", "check", token.strip())[0] == 0


MISTAKES = [
    (["--expires", "1"], "token: --expires: got '1', allowed: a number with s, m, h or d, or never"),
    (["--expires", ""], "token: --expires: got '', allowed: a number with s, m, h or d, or never"),
    (["--expires=-1h"], "token: --expires: got '-1h', allowed: a number with s, m, h or d, or never"),
    (["--expires", "1h "], "token: --expires: got '1h ', allowed: a number with s, m, h or d, or never"),
    (["--expires", "1w\n"], "token: --expires: got '1w\\n', allowed: a number with s, m, h or d, or never"),
    (["--expires", 50 * "1"], f"token: --expires: got '{40 * '1'}', allowed: a number with s, m, h or d, or never"),
    (["--info", "{"], "token: --info: not JSON: "),
    (["--info", ""], "token: --info: not JSON: "),
    (["--info", "NaN"], "token: --info: not JSON: "),
    (["--info", "[" * 100_000], "token: --info: not JSON: "),
    (["--room", ""], "token: room name has 0 characters; allowed: 1 to 255"),
    (["--room", "x" * 256], "token: room name has 256 characters; allowed: 1 to 255"),
    (["--join", "a", "--join", "a\nb"], "token: room name holds U+000A; allowed: printable characters only"),
    (["--user", "\udcff"], "token: allowed: text in UTF-8"),
    (["check"], "token: allowed: hubbub token --user USER …, or hubbub token check TOKEN"),
    (["chekc", "x"], "token: allowed: hubbub token --user USER …, or hubbub token check TOKEN"),
    (["check", "x", "y"], "token: allowed: hubbub token --user USER …, or hubbub token check TOKEN"),
    (["--config", "none.toml"], "none.toml: cannot be read: No such file or directory"),
    (["--config", "wrong.toml"], "wrong.toml: prot: unknown, did you mean port?"),
]


@pytest.mark.parametrize(("argv", "line"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake(argv: list[str], line: str, place: Path, capsys: Captured) -> None:
    """One line, and status 2."""
    (place / "wrong.toml").write_text("prot = 1")
    status, stdout, stderr = run(capsys, "token", *argv)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"hubbub: {line}")


@pytest.mark.parametrize("argv", [["--user"], ["--usr", "ann"], ["--room"]])
def test_mistake_that_argparse_finds(argv: list[str], capsys: Captured) -> None:
    """With its usage."""
    status, stdout, stderr = run(capsys, "token", *argv)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("usage: hubbub")
    assert "Traceback" not in stderr


def test_without_a_secret(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to sign with, nor to check with."""
    monkeypatch.delenv("HUBBUB_TOKEN_HMAC_SECRET")
    line = "hubbub: token: there is no token_hmac_secret to sign with; set it in --config or the environment\n"
    assert run(capsys, "token", "--user", "ann") == (2, "", line)
    line = "hubbub: token: there are no keys to check it with; the same settings as the server's are needed\n"
    assert run(capsys, "token", "check", sign()) == (2, "", line)


def test_secret_that_is_a_public_key(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither signs nor checks; it isn't shown."""
    monkeypatch.setenv("HUBBUB_TOKEN_HMAC_SECRET", pem(key_for("ES256")).decode())
    line = "hubbub: token_hmac_secret: allowed: text that nobody else knows, not a public key\n"
    assert run(capsys, "token") == (2, "", line)
    assert run(capsys, "token", "check", sign()) == (2, "", line)


def test_short_secret(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works, and no library complains."""
    monkeypatch.setenv("HUBBUB_TOKEN_HMAC_SECRET", "short")
    made(capsys)


# -- explaining


def check(capsys: Captured, token: str) -> tuple[int, str]:
    """What is said of a token."""
    status, stdout, stderr = run(capsys, "token", "check", token)
    assert (stderr, stdout.count("\n")) == ("", 1)
    return status, stdout.removesuffix("\n")


def test_check_of_a_good_token(capsys: Captured) -> None:
    """Status 0, and what it is for."""
    for token, answer in {
        sign(sub="ann"): "valid: a connection of user 'ann', never expires",
        sign(): "valid: a connection of a stranger, never expires",
        sign(sub="a\nb"): "valid: a connection of user 'a\\nb', never expires",
        sign(sub="ann", channel="$news"): "valid: a subscription to '$news' of user 'ann', never expires",
        sign(exp=4_102_444_800): "valid: a connection of a stranger, expires 2100-01-01 00:00:00 UTC",
        sign(exp=10**15): "valid: a connection of a stranger, expires 1e+15 s after 1970",
        sign(exp=1e300): "valid: a connection of a stranger, expires 1e+300 s after 1970",
    }.items():
        assert check(capsys, token) == (0, answer)


def test_check_of_a_bad_token(capsys: Captured) -> None:
    """Status 1, and why."""
    other = "somebody else's, quite long"
    for token, answer in {
        sign(sub="ann", secret=other): "not valid: its signature doesn't fit",
        sign(exp=5): "not valid: it has expired",
        sign(nbf=4_102_444_800): "not valid: its claims aren't acceptable: invalid_claim: The token is not yet valid",
        sign(sub=5): "not valid: its claims aren't acceptable: Expected `str`, got `int` - at `$.sub`",
        "x": "not valid: it isn't a JSON Web Token",
        "": "not valid: it isn't a JSON Web Token",
        "\udcff": "not valid: it isn't a JSON Web Token",
        9_000 * "x": "not valid: over token_bytes_max = 8192 bytes",
        sign_with(key_for("ES256"), "ES256", {}): "not valid: no key here fits its alg ES256 and its kid",
    }.items():
        assert check(capsys, token) == (1, answer)


def test_check_with_public_keys(place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files; such a server has nothing to sign with."""
    monkeypatch.delenv("HUBBUB_TOKEN_HMAC_SECRET")
    (place / "key.pem").write_bytes(pem(key_for("ES256")))
    (place / "keys.json").write_bytes(key_set(entry(key_for("ES384"), kid="one")))
    (place / "hubbub.toml").write_text('token_public_keys = ["key.pem"]\ntoken_jwks = "keys.json"')
    for algorithm, header in (("ES256", None), ("ES384", {"kid": "one"})):
        token = sign_with(key_for(algorithm), algorithm, {"sub": "ann"}, header)
        assert run(capsys, "token", "--config", "hubbub.toml", "check", token)[0] == 0
    assert run(capsys, "token", "--config", "hubbub.toml")[0] == 2
    (place / "key.pem").unlink()
    line = "hubbub: can't read 'key.pem': No such file or directory\n"
    assert run(capsys, "token", "--config", "hubbub.toml", "check", "x") == (2, "", line)


async def test_token_opens_the_door(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line to the server."""
    _, token, _ = run(capsys, "token", "--user", "ann", "--join", "news", "--info", '{"n": 1}')
    _, room, _ = run(capsys, "token", "--user", "ann", "--room", "$private")
    for process in serve("--host", "127.0.0.1"):
        port = port_of(process)
        async with open_structured(port, connected=False) as client:
            result = await client.connect(token=token.strip())
            assert set(result["subs"]) == {"news"}
            assert 3590 <= result["ttl"] <= 3600
            await client.ask("subscribe", channel="$private", token=room.strip())
            await client.ask("publish", channel="$private", data=1)
            info = (await client.publication("$private"))["info"]
            assert (info["user"], info["conn_info"]) == ("ann", {"n": 1})


# -- serve


def serve(*argv: str, secret: str = SECRET) -> Iterator["subprocess.Popen[str]"]:
    """A server on a free port, once it listens; ended by SIGTERM, and it must end well."""
    environ = {**ENVIRONMENT, **({"HUBBUB_TOKEN_HMAC_SECRET": secret} if secret else {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0", *argv],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=30)
            assert (process.returncode, stdout) == (0, "")
            assert "Traceback" not in stderr
            assert SECRET not in stderr
        finally:
            process.kill()


def port_of(process: "subprocess.Popen[str]") -> int:
    """Where it listens."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on http://"), line
    return int(line.rpartition(":")[2])


def refused(*argv: str, secret: str = "") -> str:
    """What a server says that doesn't start."""
    environ = {**ENVIRONMENT, **({"HUBBUB_TOKEN_HMAC_SECRET": secret} if secret else {})}
    end = subprocess.run(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0", *argv],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (end.returncode, end.stdout) == (2, "")
    (line,) = end.stderr.splitlines()
    return line


def test_server_that_would_be_open_to_all_is_refused(place: Path) -> None:
    """On whatever address others can reach; nobody has said that this is meant."""
    assert refused("--host", "0.0.0.0") == OPEN.format("0.0.0.0")
    (place / "hubbub.toml").write_text('anonymous = false\nhost = "0.0.0.0"\ntoken_hmac_secret = ""')
    assert refused("--config", "hubbub.toml") == OPEN.format("0.0.0.0")


def test_server_with_a_key_that_cannot_be_read(place: Path) -> None:
    """One line, before anything listens."""
    (place / "hubbub.toml").write_text('token_public_keys = ["none.pem"]')
    assert refused("--config", "hubbub.toml") == "hubbub: can't read 'none.pem': No such file or directory"
    line = "hubbub: token_hmac_secret: allowed: text that nobody else knows, not a public key"
    assert refused(secret=pem(key_for("ES256")).decode()) == line


async def status_of(port: int) -> int:
    """What a plain stranger is answered."""
    try:
        async with open_peer(port):
            return 101
    except HandshakeRefused as error:
        return error.status


@pytest.mark.parametrize(
    ("argv", "secret", "status"),
    [(["--open"], "", 101), (["--open"], SECRET, 101), ([], SECRET, 401)],
    ids=["--open", "--open and a secret", "a secret"],
)
def test_server_that_may_listen_everywhere(argv: list[str], secret: str, status: int) -> None:
    """Because somebody has said so, or has given it a secret; then strangers stay outside."""
    for process in serve("--host", "0.0.0.0", *argv, secret=secret):
        assert trio.run(status_of, port_of(process)) == status


def test_insecure_server_says_so(place: Path) -> None:
    """It starts, with a warning."""
    (place / "hubbub.toml").write_text("insecure = true")
    for process in serve("--host", "0.0.0.0", "--config", "hubbub.toml", secret=""):
        assert trio.run(status_of, port_of(process)) == 101
        assert process.stderr is not None
        entry = json.loads(process.stderr.readline())
        assert entry["level"] == "warning"
        assert entry["event"] == "insecure: everyone who reaches this server may do everything"


def test_short_secret_is_one_line_of_the_log() -> None:
    """No library writes what isn't JSON between its lines."""
    for process in serve("--host", "127.0.0.1", secret="short"):
        port = port_of(process)
        assert trio.run(status_of, port) == 401
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert [json.loads(line)["event"] for line in process.stderr] == ["short secret", "draining", "stopped"]


# -- secrets in mistakes


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["12345678", "12345678.5", "true", '["hunter22"]', '{ x = "hunter22" }'])
def test_secret_of_a_wrong_type_is_not_shown(name: str, value: str, place: Path, capsys: Captured) -> None:
    """The line says where it is, not what."""
    (place / "wrong.toml").write_text(f"{name} = {value}")
    line = f"wrong.toml: {name}: got what isn't shown, allowed: a string, or nothing\n"
    assert run(capsys, "config", "check", "wrong.toml") == (1, line, "")
    assert run(capsys, "serve", "--config", "wrong.toml") == (2, "", f"hubbub: {line}")
    assert run(capsys, "token", "--config", "wrong.toml") == (2, "", f"hubbub: {line}")


@pytest.mark.parametrize("name", SECRETS)
def test_secret_in_a_wrong_place_is_not_shown(name: str, place: Path, capsys: Captured) -> None:
    """In a namespace's table, and under a name that is none."""
    (place / "wrong.toml").write_text(f'[namespaces.x]\n{name} = "hunter22"')
    line = f"wrong.toml: namespaces.x.{name}: got what isn't shown, allowed: only at the top level, above all tables\n"
    assert run(capsys, "config", "check", "wrong.toml") == (1, line, "")
    (place / "wrong.toml").write_text(f'{name}s = "hunter22"')
    line = f"wrong.toml: {name}s: unknown, did you mean {name}?\n"
    assert run(capsys, "config", "check", "wrong.toml") == (1, line, "")
    for content in (f"{name} = hunter22", f'{name} = "hunter22', f'{name} = "hunter22"\n{name} = "hunter23"'):
        (place / "wrong.toml").write_text(content)
        status, stdout, stderr = run(capsys, "config", "check", "wrong.toml")
        assert (status, stderr) == (1, "")
        assert "hunter2" not in stdout


@pytest.mark.parametrize("name", SECRETS)
def test_secret_in_the_environment_that_is_no_text(
    name: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment may hold any bytes."""
    monkeypatch.setenv(f"HUBBUB_{name.upper()}", "hunter22\udcff")
    line = f"hubbub: {name}: allowed: text that nobody else knows, not a public key\n"
    assert run(capsys, "token", "check", sign()) == (2, "", line)


def test_which_settings_are_secret() -> None:
    """These, and whatever is called so later must be, too."""
    secret = {name for name, option in OPTIONS.items() if option.secret}
    assert secret == {*SECRETS, "hook_secret", "api_keys"}
    assert secret - {"api_keys"} == {name for name in OPTIONS if "secret" in name}
