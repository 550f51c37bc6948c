"""Tokens for tests, as a back end signs them, or as somebody else does."""

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

SECRET = "a secret of the tests, and of nobody else"

_DIGESTS = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "ES256K": "secp256k1"}


def in_seconds(seconds: float) -> float:
    """Return a time as tokens have it."""
    return time.time() + seconds


def encode(data: bytes) -> bytes:
    """Return one of a token's three parts."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign_bytes(header: bytes, payload: bytes, secret: bytes = SECRET.encode(), algorithm: str = "HS256") -> str:
    """Return a token of these very bytes, with a good HMAC."""
    signed = encode(header) + b"." + encode(payload)
    return (signed + b"." + encode(hmac.new(secret, signed, _DIGESTS[algorithm]).digest())).decode()


def sign(
    claims: Mapping[str, object] | None = None,
    secret: str = SECRET,
    header: Mapping[str, object] | None = None,
    **more: object,
) -> str:
    """Return a token by a secret: HS256, or as the header says."""
    head = {"alg": "HS256", **(header or {})}
    payload = json.dumps({**(claims or {}), **more}).encode()
    algorithm = head["alg"] if head["alg"] in _DIGESTS else "HS256"
    return sign_bytes(json.dumps(head).encode(), payload, secret.encode(), str(algorithm))


def sign_with(
    key: Key, algorithm: str, claims: Mapping[str, object], header: Mapping[str, object] | None = None
) -> str:
    """Return a token by any key."""
    head = {"alg": algorithm, **(header or {})}
    return jws.serialize_compact(head, json.dumps(claims), key, [algorithm])


@functools.cache
def key_for(algorithm: str, number: int = 0) -> Key:
    """Return a private key for the algorithm, always the same one; `number` tells several apart."""
    if algorithm.startswith("HS"):
        return _secret(number)
    if algorithm.startswith("RS"):
        return _rsa_key(number)
    return ECKey.generate_key(_CURVES[algorithm])


@functools.cache
def _secret(number: int) -> OctKey:
    return OctKey.import_key(f"{SECRET} {number}")


@functools.cache
def _rsa_key(number: int) -> RSAKey:
    return RSAKey.generate_key(2048)


def public(key: Key) -> Key:
    """Return what a verifier has of a key."""
    if isinstance(key, OctKey):
        return key
    assert isinstance(key, RSAKey | ECKey)
    return type(key).import_key(key.as_pem(private=False))


def pem(key: Key, *, private: bool = False) -> bytes:
    """Return a key as a file holds it."""
    assert isinstance(key, RSAKey | ECKey)
    return key.as_pem(private=private)


def entry(key: Key, **more: str) -> dict[str, object]:
    """Return a public key as an entry of a JSON Web Key Set."""
    return {**key.as_dict(private=False), **more}


def key_set(*entries: Mapping[str, object]) -> bytes:
    """Return a JSON Web Key Set."""
    return json.dumps({"keys": entries}).encode()
