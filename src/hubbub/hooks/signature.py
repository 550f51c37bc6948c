"""How a back end knows that a hook's request comes from this server: HMAC-SHA-256 with a secret that both know.

    X-Hubbub-Signature: t=UNIXSECONDS,v1=HEX        HEX = HMAC-SHA-256(hook_secret, "UNIXSECONDS." + body)

The time is signed too, so that a request that somebody has overheard is worth nothing a few minutes later.
"""

import hashlib
import hmac
import re

HEADER = "X-Hubbub-Signature"
SECONDS_MAX = 300.0

_FORM = re.compile(r"t=([0-9]{1,15}),v1=([0-9a-f]{64})")


def sign(secret: str, body: bytes, now: float) -> str:
    """Return the header's value for a body that is sent at `now`, in seconds since 1970."""
    second = int(now)
    return f"t={second},v1={_digest(secret, second, body)}"


def verify(secret: str, header: str, body: bytes, now: float, seconds_max: float = SECONDS_MAX) -> bool:
    """Return whether the header is what whoever knows the secret says of that body, within that time of `now`."""
    match = _FORM.fullmatch(header)
    if match is None:
        return False
    second, digest = int(match[1]), match[2]
    return abs(now - second) <= seconds_max and hmac.compare_digest(digest, _digest(secret, second, body))


def _digest(secret: str, second: int, body: bytes) -> str:
    return hmac.new(secret.encode(), b"%d." % second + body, hashlib.sha256).hexdigest()
