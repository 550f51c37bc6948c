"""The keys that tokens are verified with: from the settings, from PEM files, from a JSON Web Key Set.

Rules:
1. What is in the settings and in files is read at the start and at each reload; what can't be read stops the start,
   and makes a reload change nothing.
2. A key set at a URL is read again and again by a task of its own, and whenever a token names a key that isn't known,
   not more often than `REFETCH_SECONDS`. Nobody waits for that: such a token is wrong until the key is there.
3. What a URL gives is checked before it takes the place of what was there: the last good set is kept.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import httpx
import structlog
import trio
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, RSAKey

from hubbub.auth.tokens import algorithms_of
from hubbub.config import Settings
from hubbub.model.errors import StartError

REFETCH_SECONDS = 10.0
FETCH_SECONDS_MAX = 10.0
JWKS_BYTES_MAX = 1_048_576

NOT_READ = "key set not read; the last good one is kept"
NONE_YET = "key set not read; there is none yet, and it is tried again"

log = structlog.get_logger()


class KeyRing:
    """All keys of a node."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local: tuple[Key, ...] = ()
        self._fetched: tuple[Key, ...] = ()
        self._wanted = trio.Event()

    @property
    def keys(self) -> Sequence[Key]:
        """Those of this moment."""
        return (*self._local, *self._fetched)

    def load(self, settings: Settings) -> None:
        """Read secrets and files.

        Raises:
            StartError: one can't be used; then nothing has changed.
        """
        keys: list[Key] = [
            read_secret(name, secret)
            for name in ("token_hmac_secret", "token_hmac_secret_previous")
            if (secret := getattr(settings, name))
        ]
        keys += [_read_pem(path) for path in settings.token_public_keys]
        if is_url(settings.token_jwks):
            _check_url(settings.token_jwks)
        elif settings.token_jwks:
            keys += parse_key_set(_read(settings.token_jwks), settings.token_jwks)
        self._local = tuple(keys)
        if not is_url(settings.token_jwks):
            self._fetched = ()
        self.want_newer()  # there may be another URL

    def want_newer(self) -> None:
        """Say that a token names a key that isn't known. Never waits."""
        self._wanted.set()

    async def run(self) -> None:
        """Keep the set at the URL fresh, until cancelled."""
        while True:
            self._wanted = trio.Event()
            if is_url(self._settings.token_jwks):
                await self._fetch(self._settings.token_jwks)
            await trio.sleep(REFETCH_SECONDS)
            with trio.move_on_after(max(0.0, self._settings.token_jwks_seconds - REFETCH_SECONDS)):
                await self._wanted.wait()

    async def _fetch(self, url: str) -> None:
        place = _without_secrets(url)
        not_read = NOT_READ if self._fetched else NONE_YET
        try:
            with trio.fail_after(FETCH_SECONDS_MAX):
                async with (
                    httpx.AsyncClient(timeout=FETCH_SECONDS_MAX, follow_redirects=True) as http,
                    http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
                ):
                    content = b""
                    async for piece in response.aiter_raw():  # to the end: httpx can't be left halfway
                        content += piece if len(content) <= JWKS_BYTES_MAX else b""
            if not response.is_success:
                raise StartError(f"token_jwks {place}: it answers {response.status_code}")
            if len(content) > JWKS_BYTES_MAX:
                raise StartError(f"token_jwks {place}: over {JWKS_BYTES_MAX} bytes")
            self._fetched = tuple(parse_key_set(content, place))
        except StartError as error:
            log.warning(not_read, url=place, why=str(error))
        except trio.TooSlowError:
            log.warning(not_read, url=place, why="no answer in time")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            # Its text may hold the URL. (An OSError: SSL_CERT_FILE can't be read.)
            log.warning(not_read, url=place, why=type(error).__name__)


def is_url(place: str) -> bool:
    """Return whether a key set is to be fetched."""
    return place.startswith(("http://", "https://"))


def read_secret(name: str, secret: str) -> OctKey:
    """Return the key that the setting of that name holds.

    Raises:
        StartError: it can't be a secret.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # a short one; the setting's description says what is wise
            return OctKey.import_key(secret)
    except ValueError as error:
        # A public key is none: anybody could sign with it.
        raise StartError(f"{name}: allowed: text that nobody else knows, not a public key") from error


def _check_url(url: str) -> None:
    try:
        if httpx.URL(url).host:
            return
    except (httpx.InvalidURL, ValueError):
        pass
    raise StartError("token_jwks: allowed: the path of a file, or a URL http(s)://HOST[:PORT]/…")


def _without_secrets(url: str) -> str:
    """Return a URL as it may be logged."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


def parse_key_set(content: bytes, place: str) -> list[Key]:
    """Return the keys of a JSON Web Key Set (RFC 7517) that can verify; others are left out, as its section 5 wants.

    Raises:
        StartError: it isn't one, or holds no such key.
    """
    try:
        entries = list(json.loads(content)["keys"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise StartError(f"token_jwks {place}: not a JSON Web Key Set ({type(error).__name__})") from error
    keys = [key for entry in entries if (key := _read_entry(entry)) is not None]
    if not keys:
        raise StartError(f"token_jwks {place}: no key for any of our algorithms")
    return keys


def _read_entry(entry: object) -> Key | None:
    if not isinstance(entry, dict):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)
            key = JWKRegistry.import_key(entry)
            return key if algorithms_of(key) and key.get("use", "sig") == "sig" else None
    except Exception:  # as above: one key that can't be read doesn't spoil the others
        return None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter: a NUL
        why = error.strerror if isinstance(error, OSError) else "it can't be a path"
        raise StartError(f"can't read {path!a}: {why}") from error


def _read_pem(path: str) -> Key:
    content = _read(path)
    for kind in (RSAKey, ECKey):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)
                key = kind.import_key(content)
                if algorithms_of(key):
                    return key
        except Exception:  # whatever joserfc and what is below it have against it
            continue
    raise StartError(
        f"token_public_keys {path}: allowed: PEM of an RSA key, or an elliptic one of P-256, P-384 or P-521"
    )
