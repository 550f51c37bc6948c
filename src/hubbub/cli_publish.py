"""`hubbub publish`: say something in a room, over the server API.

The key is never printed, whatever goes wrong; nor is there a flag for it, as everyone may read a command line.
"""

import argparse
import os
from pathlib import Path

import httpx
import msgspec

from hubbub.auth.api_keys import Scope, first_key_for
from hubbub.config import Settings
from hubbub.model.errors import StartError

KEY_VARIABLE = "HUBBUB_API_KEY"
"""Of the environment; not a setting."""
SECONDS_MAX = 30.0
"""How long an answer may take: longer than api_seconds_max."""
_URLS = "allowed: http://HOST:PORT or https://HOST:PORT"
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Where a server is found that listens at all addresses."""


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hubbub publish`."""
    parser.add_argument("room", metavar="ROOM", help="where")
    parser.add_argument("text", metavar="TEXT", help="what")
    parser.add_argument("--json", action="store_true", help="TEXT is JSON, and is published as such")
    parser.add_argument(
        "--url", metavar="URL", help="the server, such as http://localhost:8000; else as in the settings"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument("--idempotency-key", metavar="KEY", help="a repeat with it isn't a second publication")


def run_publish(arguments: argparse.Namespace, settings: Settings) -> tuple[int, str]:
    """Publish; return the exit status and what to print: 0 and where it is, or 1 and why it was refused.

    Raises:
        StartError: the arguments or the settings don't allow it, or there is no such server.
    """
    key = os.environ.get(KEY_VARIABLE) or first_key_for(settings.api_keys, Scope.PUBLISH)
    if not key:
        allowed = "HUBBUB_API_KEY in the environment, or api_keys in the settings"
        raise StartError(f"publish: there is no key; allowed: {allowed}")
    body: dict[str, object] = {"channel": arguments.room, "data": _data(arguments)}
    if arguments.idempotency_key is not None:
        body["idempotency_key"] = arguments.idempotency_key
    url = (arguments.url or _url_of(settings)).rstrip("/").removesuffix("/api")
    if not url.lower().startswith(("http://", "https://")):
        raise StartError(f"publish: --url: got {arguments.url!a}, {_URLS}")
    response = _post(f"{url}/api/publish", key, body)
    try:
        answer = msgspec.json.decode(response.content, type=dict[str, dict[str, object]]) if response.is_success else {}
    except ValueError:
        answer = {}
    if "error" in answer:
        return 1, f"refused: {_line(answer['error'].get('message'))}"
    if "result" not in answer:
        line, status = _line(response.text), str(response.status_code)
        return 1, f"refused: {line if line.startswith(status) else f'{status}, and not in words of hubbub'}"
    place = "".join(f", {name} {answer['result'][name]}" for name in ("offset", "epoch") if name in answer["result"])
    return 0, f"room {_line(arguments.room)}{place}"


def _data(arguments: argparse.Namespace) -> object:
    if not arguments.json:
        return arguments.text
    try:
        msgspec.json.decode(arguments.text)
    except (ValueError, RecursionError) as error:
        raise StartError(f"publish: TEXT with --json: not JSON: {error}") from error
    return msgspec.Raw(arguments.text.encode())


def _post(url: str, key: str, body: dict[str, object]) -> httpx.Response:
    try:
        content = msgspec.json.encode(body)
        headers = {b"X-API-Key": key.encode("ascii"), b"Content-Type": b"application/json"}
        return httpx.post(url, content=content, headers=headers, timeout=SECONDS_MAX, trust_env=False)
    except UnicodeEncodeError as error:  # arguments may hold any bytes
        raise StartError("publish: allowed: text in UTF-8, and a key in ASCII") from error
    except httpx.TimeoutException as error:
        raise StartError(f"publish: no answer within {SECONDS_MAX:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        # What other errors say may hold the key.
        why = _line(error) if isinstance(error, httpx.ConnectError) else type(error).__name__
        raise StartError(f"publish: can't reach the server: {why}; --url: {_URLS}") from error


def _url_of(settings: Settings) -> str:
    """Return where the server of these settings answers."""
    if settings.api_address:
        host, _, port = settings.api_address.rpartition(":")
        scheme = "http"
    else:
        host, port, scheme = settings.host, str(settings.port), "https" if settings.tls_cert else "http"
    host = host.strip("[]")
    host = _ANYWHERE.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _line(text: object) -> str:
    """Return what a server says on one line, of no great length."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())[:200]
