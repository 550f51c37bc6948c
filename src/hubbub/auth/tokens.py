"""Tokens: what a back end has signed about a user (JSON Web Tokens, RFC 7519).

Rules:
1. The key decides which algorithms are possible, never the token: an HMAC secret verifies HS*, an RSA key RS*, an
   elliptic one the ES* of its curve. So neither `alg: none` nor a public key taken for a secret gets through.
2. A token that names a key (`kid`) is verified by that key only, one that doesn't by each that fits.
3. A signature is checked before a claim is looked at. `exp`, `nbf` and `iat` are always checked if they are there,
   `iss` and `aud` if they are configured; then they must be there.
4. What is wrong is said in words for a developer, without anything of the key or the token.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from joserfc import jws
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, Key, OctKey, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from hubbub.config import Settings

HMAC = ("HS256", "HS384", "HS512")
RSA = ("RS256", "RS384", "RS512")
CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
ALGORITHMS = (*HMAC, *RSA, *CURVES.values())

# A parameter of the header that isn't known is to be ignored, unless `crit` names it (RFC 7515 section 4).
_registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)


class TokenFault(enum.Enum):
    """What is wrong with a token, as far as its bearer has to know."""

    MISSING = "missing"
    INVALID = "invalid"
    EXPIRED = "expired"
    FOREIGN = "foreign"  # for another room or another user
    STRANGER = "stranger"  # names nobody, where somebody is wanted


class TokenError(Exception):
    """The token isn't accepted; the text says why."""

    def __init__(self, fault: TokenFault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


class Grant(msgspec.Struct, frozen=True):
    """What is said of a room that the server subscribes a connection to.

    Attributes:
        info: JSON for others in the room to see; b64info: the same in base64.
        data: JSON for the client.
    """

    info: msgspec.Raw = msgspec.Raw()
    b64info: str = ""
    data: msgspec.Raw = msgspec.Raw()


class Claims(msgspec.Struct, frozen=True):
    """What a token says.

    Attributes:
        sub: the user; "" for anonymous.
        exp: when the token is no longer accepted, in seconds since 1970; None: never.
        expire_at: when what it has opened ends, if that isn't `exp`; 0: never.
        room: the one that a subscription token is for; `channel` in the token.
        info: JSON for others to see; b64info: the same in base64.
        channels, subs: rooms that the server subscribes the connection to.
    """

    sub: str = ""
    exp: float | None = None
    expire_at: float | None = None
    room: str = msgspec.field(default="", name="channel")
    info: msgspec.Raw = msgspec.Raw()
    b64info: str = ""
    channels: list[str] = []
    subs: dict[str, Grant] = {}

    @property
    def ends_at(self) -> float | None:
        """When the connection or the subscription ends, unless it is refreshed; None: never."""
        if self.expire_at is not None:
            return self.expire_at or None
        return self.exp


_claims = msgspec.json.Decoder(Claims)


def algorithms_of(key: Key) -> tuple[str, ...]:
    """Return the algorithms that the key may verify; none for keys of other kinds."""
    if isinstance(key, OctKey):
        return HMAC
    if isinstance(key, RSAKey):
        return RSA
    return (CURVES[key.curve_name],) if isinstance(key, ECKey) and key.curve_name in CURVES else ()


class Keys(Protocol):
    """Where keys come from."""

    @property
    def keys(self) -> Sequence[Key]:
        """Those of this moment."""
        ...

    def want_newer(self) -> None:
        """Be told that a token names a key that isn't there. Never waits."""
        ...


class Verifier:
    """Reads tokens.

    Args:
        settings: token_bytes_max, token_issuer, token_audience, token_leeway_seconds.
        keys: those of this moment; told when a token names one that isn't there.
        now: gives the time in seconds since 1970.
    """

    def __init__(self, settings: Settings, keys: Keys, now: Callable[[], float]) -> None:
        self._settings = settings
        self._keys = keys
        self._now = now

    def read(self, token: str) -> Claims:
        """Return what the token says.

        Raises:
            TokenError: it isn't valid, or not any more.
        """
        settings = self._settings
        if len(token) > settings.token_bytes_max:
            raise TokenError(TokenFault.INVALID, f"over token_bytes_max = {settings.token_bytes_max} bytes")
        payload = self._verified(token)
        try:
            claims = _claims.decode(payload)
            self._registry().validate(msgspec.json.decode(payload))
        except ExpiredTokenError as error:
            raise TokenError(TokenFault.EXPIRED, "it has expired") from error
        except (JoseError, ValueError, RecursionError) as error:
            raise TokenError(TokenFault.INVALID, f"its claims aren't acceptable: {error}") from error
        return claims

    def _verified(self, token: str) -> bytes:
        try:
            signature = jws.extract_compact(token.encode())
            header = signature.headers()
            algorithm, name = header.get("alg"), header.get("kid")
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:  # or no object for a header
            raise TokenError(TokenFault.INVALID, "it isn't a JSON Web Token") from error
        if algorithm not in ALGORITHMS:
            raise TokenError(TokenFault.INVALID, f"alg: allowed: {', '.join(ALGORITHMS)}")
        keys = [key for key in self._keys.keys if algorithm in algorithms_of(key)]
        if name is not None and any(key.kid is not None for key in keys):
            keys = [key for key in keys if key.kid == name]
        if not keys:
            self._keys.want_newer()
            raise TokenError(TokenFault.INVALID, f"no key here fits its alg {algorithm} and its kid")
        for key in keys:
            try:
                if jws.validate_compact(signature, key, registry=_registry):
                    return signature.payload
            except (JoseError, ValueError, TypeError, AttributeError):  # the latter: parameters of wrong types
                continue
        raise TokenError(TokenFault.INVALID, "its signature doesn't fit")

    def _registry(self) -> JWTClaimsRegistry:
        settings = self._settings
        wanted = {"iss": settings.token_issuer, "aud": settings.token_audience}
        options = {name: {"essential": True, "value": value} for name, value in wanted.items() if value}
        return JWTClaimsRegistry(int(self._now()), int(settings.token_leeway_seconds), **options)  # type: ignore[arg-type]
