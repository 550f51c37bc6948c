"""`hubbub token`: make a token, or explain one.

It signs with `token_hmac_secret`, as a back end would; with public keys only, tokens are made where the private key is.
Neither a secret nor a key is ever printed.
"""

import argparse
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from joserfc import jwt

from hubbub.auth.keys import KeyRing, read_secret
from hubbub.auth.tokens import Claims, TokenError, Verifier
from hubbub.config import Settings
from hubbub.model.errors import StartError
from hubbub.model.names import check_room_name

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hubbub token`."""
    parser.add_argument("check", nargs="*", metavar="check TOKEN", help="say whether a token is valid, or why not")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument("--user", default="", metavar="USER", help="whom the token names")
    parser.add_argument("--room", metavar="ROOM", help="make a subscription token for that room")
    parser.add_argument("--join", action="append", default=[], metavar="ROOM", help="subscribe the connection to it")
    parser.add_argument("--info", metavar="JSON", help="what others see of the user")
    parser.add_argument("--expires", default="1h", metavar="TIME", help="such as 90s, 15m, 1h, 30d, or never (1h)")


def run_token(arguments: argparse.Namespace, settings: Settings) -> tuple[int, str]:
    """Return the exit status and what to print.

    Raises:
        StartError: the arguments, or the settings, don't allow it.
    """
    if arguments.check:
        if arguments.check[0] != "check" or len(arguments.check) != 2:
            raise StartError("token: allowed: hubbub token --user USER …, or hubbub token check TOKEN")
        return _explain(arguments.check[1], settings)
    return 0, _make(arguments, settings)


def _make(arguments: argparse.Namespace, settings: Settings) -> str:
    if not settings.token_hmac_secret:
        raise StartError("token: there is no token_hmac_secret to sign with; set it in --config or the environment")
    claims: dict[str, object] = {"iat": int(time.time())}
    if arguments.user:
        claims["sub"] = arguments.user
    if arguments.expires != "never":
        claims["exp"] = int(time.time()) + _seconds(arguments.expires)
    if arguments.info is not None:
        try:
            claims["info"] = msgspec.json.decode(arguments.info)
        except (ValueError, RecursionError) as error:
            raise StartError(f"token: --info: not JSON: {error}") from error
    try:
        if arguments.room is not None:
            claims["channel"] = check_room_name(arguments.room)
        if arguments.join:
            claims["channels"] = [check_room_name(room) for room in arguments.join]
    except ValueError as error:
        raise StartError(f"token: {error}") from error
    wanted = {"iss": settings.token_issuer, "aud": settings.token_audience}
    claims |= {name: value for name, value in wanted.items() if value}
    key = read_secret("token_hmac_secret", settings.token_hmac_secret)
    try:
        return jwt.encode({"alg": "HS256"}, claims, key)
    except UnicodeEncodeError as error:  # arguments may hold any bytes
        raise StartError("token: allowed: text in UTF-8") from error


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise StartError(f"token: --expires: got {text[:40]!a}, allowed: a number with s, m, h or d, or never")
    return int(found[1]) * _UNITS[found[2]]


def _explain(token: str, settings: Settings) -> tuple[int, str]:
    keys = KeyRing(settings)
    keys.load(settings)
    if not keys.keys:
        raise StartError("token: there are no keys to check it with; the same settings as the server's are needed")
    try:
        claims = Verifier(settings, keys, time.time).read(token)
    except TokenError as error:
        return 1, f"not valid: {error}"
    return 0, f"valid: {_describe(claims)}"


def _describe(claims: Claims) -> str:
    kind = f"a subscription to {claims.room!a}" if claims.room else "a connection"
    whose = f"of user {claims.sub!a}" if claims.sub else "of a stranger"
    until = "never expires"
    if claims.exp is not None:
        try:
            until = f"expires {datetime.fromtimestamp(claims.exp, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (ValueError, OverflowError):  # after the year 9999
            until = f"expires {claims.exp:g} s after 1970"
    return f"{kind} {whose}, {until}"
