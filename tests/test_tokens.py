"""Tokens: which are accepted, where keys come from, and what a client may do with one, over real sockets.

What each setting of a room allows is in `test_permissions`, the command line in `test_token_cli`.
"""

import contextlib
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OctKey, RSAKey
from structlog.testing import capture_logs

from hubbub.auth import keys as keys_module
from hubbub.auth.access import Access
from hubbub.auth.keys import KeyRing
from hubbub.auth.tokens import ALGORITHMS, TokenError, TokenFault, Verifier
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.model.errors import StartError
from peers import Closed, HandshakeRefused, open_peer
from servers import Server, open_daemon, open_server
from signing import SECRET, encode, entry, in_seconds, key_for, key_set, pem, public, sign, sign_bytes, sign_with
from structured import Client, Refused, open_structured
from test_reload import open_reloadable

NOW = 1_800_000_000.0
LOOKS = {"pong_seconds_max": 0.2}
"""The heartbeat looks at everyone ten times as often."""


class Keys:
    """The keys of a test; counts how often newer ones are wanted."""

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        self.wanted = 0

    def want_newer(self) -> None:
        """Count."""
        self.wanted += 1


def verifier(*keys: Key, **settings: object) -> Verifier:
    """A verifier at NOW, by default with the secret."""
    given_keys = keys or (OctKey.import_key(SECRET),)
    return Verifier(Settings(**settings), Keys(*given_keys), lambda: NOW)  # type: ignore[arg-type]


def fault_of(reader: Verifier, token: str) -> TokenFault | None:
    """What is wrong with the token; the text says nothing of it, nor of the key."""
    try:
        reader.read(token)
    except TokenError as error:
        text = str(error)
        assert "\n" not in text
        assert SECRET not in text
        assert not token or len(token) < 20 or token[:20] not in text
        return error.fault
    return None


# -- the signature


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_is_accepted_with_its_key(algorithm: str) -> None:
    """Nine of them."""
    key = key_for(algorithm)
    assert verifier(public(key)).read(sign_with(key, algorithm, {"sub": "ann"})).sub == "ann"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_is_refused_with_every_other_key(algorithm: str) -> None:
    """The key decides; a token that no key fits makes the ring look for newer ones."""
    token = sign_with(key_for(algorithm), algorithm, {"sub": "ann"})
    own = key_for(algorithm)
    others = [public(key) for key in map(key_for, ("HS256", "RS256", "ES256", "ES384", "ES512")) if key is not own]
    assert len(others) == 4
    for key in others:
        keys = Keys(key)
        assert fault_of(Verifier(Settings(), keys, lambda: NOW), token) is TokenFault.INVALID
        assert keys.wanted == 1
    assert fault_of(verifier(*others), token) is TokenFault.INVALID
    assert fault_of(verifier(*others, public(key_for(algorithm))), token) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_key_of_the_same_kind(algorithm: str) -> None:
    """Its signature doesn't fit."""
    token = sign_with(key_for(algorithm, 1), algorithm, {"sub": "ann"})
    assert fault_of(verifier(public(key_for(algorithm))), token) is TokenFault.INVALID


@pytest.mark.parametrize("said", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("signed", ["HS256", "HS384", "HS512"])
def test_algorithm_that_the_header_says_is_the_one_that_counts(said: str, signed: str) -> None:
    """Within one family, too."""
    header = json.dumps({"alg": said}).encode()
    token = sign_bytes(header, b'{"sub":"ann"}', algorithm=signed)
    assert fault_of(verifier(), token) is (None if said == signed else TokenFault.INVALID)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "NONE"},
        {"alg": ""},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": 256},
        {},
        {"alg": "hs256"},
        {"alg": "PS256"},
        {"alg": "EdDSA"},
        {"alg": "ES256K"},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": ["hubbub"], "hubbub": 1},
        {"alg": "HS256", "crit": "alg"},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "kid": 5},
        {"alg": "HS256", "typ": {}},
    ],
    ids=str,
)
def test_header_that_is_refused(header: dict[str, object]) -> None:
    """With a signature that would fit, and without any."""
    head, payload = json.dumps(header).encode(), b'{"sub":"ann"}'
    unsigned = (encode(head) + b"." + encode(payload) + b".").decode()
    for token in (unsigned, sign_bytes(head, payload)):
        for reader in (verifier(), verifier(public(key_for("RS256"))), verifier(public(key_for("ES256")))):
            assert fault_of(reader, token) is TokenFault.INVALID


def test_public_key_taken_for_a_secret() -> None:
    """The classic: HS256, with the PEM of the RSA key, which everybody has."""
    for algorithm in ("RS256", "ES256"):
        key = key_for(algorithm)
        for secret in (pem(key), pem(key).strip(), pem(key).replace(b"\n", b""), b""):
            token = sign_bytes(b'{"alg":"HS256"}', b'{"sub":"ann"}', secret)
            assert fault_of(verifier(public(key)), token) is TokenFault.INVALID
            assert fault_of(verifier(public(key), OctKey.import_key(SECRET)), token) is TokenFault.INVALID


def test_key_that_a_token_brings_along() -> None:
    """`jwk`, `jku` and `x5u` are nobody's business."""
    key = key_for("ES256", 7)
    for extra in ({"jwk": entry(key)}, {"jku": "http://localhost/keys"}, {"x5u": "http://localhost/keys"}):
        token = sign_with(key, "ES256", {"sub": "ann"}, extra)
        assert fault_of(verifier(public(key_for("ES256"))), token) is TokenFault.INVALID
        assert fault_of(verifier(public(key)), token) is None


def test_parameter_that_nobody_knows_is_ignored() -> None:
    """RFC 7515 section 4."""
    assert verifier().read(sign(sub="ann", header={"typ": "JWT", "nonce": "x", "ver": 2})).sub == "ann"


def test_key_names() -> None:
    """A name picks its key among many; a wrong one fits none; without a name each that fits is tried."""
    several = [key_for("ES256", number) for number in range(3)]
    named = [ECKey.import_key(entry(key, kid=f"k{number}")) for number, key in enumerate(several)]  # type: ignore[arg-type]
    reader = verifier(*named)
    for number, key in enumerate(several):
        claims = {"sub": f"user {number}"}
        assert reader.read(sign_with(key, "ES256", claims, {"kid": f"k{number}"})).sub == f"user {number}"
        assert reader.read(sign_with(key, "ES256", claims)).sub == f"user {number}"
        assert fault_of(reader, sign_with(key, "ES256", claims, {"kid": f"k{(number + 1) % 3}"})) is TokenFault.INVALID
        assert fault_of(reader, sign_with(key, "ES256", claims, {"kid": "k9"})) is TokenFault.INVALID


def test_token_with_an_unknown_name_wants_newer_keys() -> None:
    """One with a known name doesn't, whatever else is wrong."""
    key = key_for("ES256")
    keys = Keys(ECKey.import_key(entry(key, kid="known")))  # type: ignore[arg-type]
    reader = Verifier(Settings(), keys, lambda: NOW)
    fault_of(reader, sign_with(key, "ES256", {}, {"kid": "known"}))
    fault_of(reader, sign_with(key_for("ES256", 1), "ES256", {}, {"kid": "known"}))
    assert keys.wanted == 0
    fault_of(reader, sign_with(key, "ES256", {}, {"kid": "unknown"}))
    assert keys.wanted == 1


def test_name_is_nothing_to_a_key_without_one() -> None:
    """A back end may name a secret as it likes."""
    assert fault_of(verifier(), sign(sub="ann", header={"kid": "mine"})) is None


def test_previous_secret() -> None:
    """Both are accepted while a new one gets around; a third isn't."""
    settings = Settings(token_hmac_secret="the new secret, which is long", token_hmac_secret_previous=SECRET)
    ring = KeyRing(settings)
    ring.load(settings)
    reader = Verifier(settings, ring, time.time)
    assert reader.read(sign(sub="ann", secret="the new secret, which is long")).sub == "ann"
    assert reader.read(sign(sub="ann")).sub == "ann"
    assert fault_of(reader, sign(sub="ann", secret="the one before that, long ago")) is TokenFault.INVALID


# -- the claims


@pytest.mark.parametrize(
    ("claims", "fault"),
    [
        ({}, None),
        ({"exp": NOW + 1}, None),
        ({"exp": NOW + 0.5}, None),
        ({"exp": NOW - 9}, None),
        ({"exp": NOW - 10}, TokenFault.EXPIRED),
        ({"exp": NOW - 11}, TokenFault.EXPIRED),
        ({"exp": 0}, TokenFault.EXPIRED),
        ({"exp": -1e300}, TokenFault.EXPIRED),
        ({"exp": 1e300}, None),
        ({"exp": 2**63}, None),
        ({"exp": 10**30}, None),
        ({"nbf": NOW}, None),
        ({"nbf": NOW + 10}, None),
        ({"nbf": NOW + 11}, TokenFault.INVALID),
        ({"nbf": 10**30}, TokenFault.INVALID),
        ({"iat": NOW + 10}, None),
        ({"iat": NOW + 11}, TokenFault.INVALID),
        ({"iat": NOW + 11, "exp": NOW - 11}, TokenFault.INVALID),
        ({"jti": "x", "unknown": {"a": [1]}, "meta": None, "b64info": "e30="}, None),
        ({"expire_at": NOW - 100}, None),
        ({"expire_at": "soon"}, TokenFault.INVALID),
    ],
    ids=str,
)
def test_claims(claims: dict[str, object], fault: TokenFault | None) -> None:
    """At NOW, with the default leeway of ten seconds."""
    assert fault_of(verifier(), sign(claims)) is fault


WRONG_TYPES: dict[str, list[object]] = {
    **{name: ["1", "", True, None, []] for name in ("exp", "nbf", "iat")},
    **{name: [1, None, {}] for name in ("sub", "channel", "iss", "jti")},
    "aud": [1, None, {}, [1]],
    "expire_at": ["soon", [], True],
    "channels": ["room", 1, {}, [1], [None]],
    "subs": ["room", 1, [], ["room"]],
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_claim_of_a_wrong_type(name: str) -> None:
    """It isn't taken for absent."""
    for value in WRONG_TYPES[name]:
        assert fault_of(verifier(), sign({name: value})) is TokenFault.INVALID, value


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1" * 400, b"0x1", b"01", b"\xff"])
def test_numbers_that_are_none(value: bytes) -> None:
    """Whatever a library on the other side makes of them."""
    for name in (b"exp", b"nbf", b"iat", b"expire_at"):
        token = sign_bytes(b'{"alg":"HS256"}', b'{"%s":%s}' % (name, value))
        assert fault_of(verifier(), token) in (TokenFault.INVALID, TokenFault.EXPIRED)


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'"ann"', b"5", b"{", b"{} {}", b'{"info":"\xff"}', b"[" * 3000, b'{"sub":"\\ud800"}'],
)
def test_payload_that_is_no_object(payload: bytes) -> None:
    """Signed all the same."""
    assert fault_of(verifier(), sign_bytes(b'{"alg":"HS256"}', payload)) is TokenFault.INVALID


@pytest.mark.parametrize(
    "header", [b"", b"null", b'["alg"]', b'"alg"', b"5", b"{", b"\xff", b"[" * 300, b'{"alg":"HS256"']
)
def test_header_that_is_no_object(header: bytes) -> None:
    """Likewise."""
    assert fault_of(verifier(), sign_bytes(header, b"{}")) is TokenFault.INVALID


def test_what_claims_are_read() -> None:
    """And what they mean for the end."""
    claims = verifier().read(sign(sub="ann", exp=NOW + 5, info={"a": 1}, channels=["x"], subs={"y": {"info": 1}}))
    assert (claims.sub, claims.room, claims.ends_at) == ("ann", "", NOW + 5)
    assert json.loads(bytes(claims.info)) == {"a": 1}
    assert (claims.channels, list(claims.subs)) == (["x"], ["y"])
    assert verifier().read(sign(exp=NOW + 5, expire_at=NOW + 9)).ends_at == NOW + 9
    assert verifier().read(sign(exp=NOW + 5, expire_at=0)).ends_at is None
    nobody = verifier().read(sign())
    assert (nobody.sub, nobody.ends_at, bytes(nobody.info)) == ("", None, b"")


@pytest.mark.parametrize("leeway", [0.0, 1.0, 3600.0])
def test_leeway(leeway: float) -> None:
    """How much clocks may differ, either way."""
    reader = verifier(token_leeway_seconds=leeway)
    assert fault_of(reader, sign(exp=NOW - leeway + 1)) is None
    assert fault_of(reader, sign(exp=NOW - leeway)) is TokenFault.EXPIRED
    assert fault_of(reader, sign(nbf=NOW + leeway)) is None
    assert fault_of(reader, sign(nbf=NOW + leeway + 1)) is TokenFault.INVALID


@pytest.mark.parametrize(
    ("settings", "claims", "accepted"),
    [
        ({}, {"iss": "anybody", "aud": "anything"}, True),
        ({"token_issuer": "us"}, {"iss": "us"}, True),
        ({"token_issuer": "us"}, {"iss": "them"}, False),
        ({"token_issuer": "us"}, {"iss": ""}, False),
        ({"token_issuer": "us"}, {"iss": ["us"]}, False),
        ({"token_issuer": "us"}, {}, False),
        ({"token_audience": "chat"}, {"aud": "chat"}, True),
        ({"token_audience": "chat"}, {"aud": ["mail", "chat"]}, True),
        ({"token_audience": "chat"}, {"aud": ["mail"]}, False),
        ({"token_audience": "chat"}, {"aud": []}, False),
        ({"token_audience": "chat"}, {"aud": "mail"}, False),
        ({"token_audience": "chat"}, {"aud": "chatter"}, False),
        ({"token_audience": "chat"}, {}, False),
        ({"token_issuer": "us", "token_audience": "chat"}, {"iss": "us", "aud": "chat"}, True),
        ({"token_issuer": "us", "token_audience": "chat"}, {"iss": "us"}, False),
    ],
    ids=str,
)
def test_issuer_and_audience(settings: dict[str, str], claims: dict[str, object], accepted: bool) -> None:
    """Where they are configured, they must be there."""
    assert fault_of(verifier(**settings), sign(claims)) is (None if accepted else TokenFault.INVALID)


def test_size() -> None:
    """Nothing longer is looked at."""
    token = sign(sub="x" * 300)
    assert fault_of(verifier(token_bytes_max=len(token)), token) is None
    assert fault_of(verifier(token_bytes_max=len(token) - 1), token) is TokenFault.INVALID
    assert fault_of(verifier(), "." * 10_000_000) is TokenFault.INVALID


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "x"]), JSON)
CLAIMS = st.dictionaries(
    st.sampled_from(
        ["sub", "exp", "nbf", "iat", "iss", "aud", "expire_at", "channel", "info", "channels", "subs", "jti"]
    ),
    JSON,
)
READER = verifier(token_issuer="us")


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")) | st.from_regex(r"[\w=-]*\.[\w=-]*\.[\w=-]*"))
def test_garbage(token: str) -> None:
    """It is never more than an invalid token."""
    assert fault_of(READER, token) is TokenFault.INVALID


@given(header=st.one_of(JSON, HEADERS, HEADERS.map(lambda header: {**header, "alg": "HS256"})), claims=CLAIMS | JSON)
def test_signed_garbage(header: object, claims: object) -> None:
    """Also where a back end has signed it."""
    token = sign_bytes(json.dumps(header).encode(), json.dumps(claims).encode())
    assert fault_of(READER, token) in (None, TokenFault.INVALID, TokenFault.EXPIRED)


@given(JSON, st.integers(-300, 300).map(lambda power: 10.0**power), st.floats(0, 1e18))
def test_accepted_claims_can_be_told(info: object, exp: float, now: float) -> None:
    """What is accepted becomes a time that every client can hold, and one line of JSON."""
    payload = json.dumps({"sub": "ann", "info": info, "exp": exp}, indent=2).encode()
    settings = Settings(token_hmac_secret=SECRET)
    keys = Keys(OctKey.import_key(SECRET))
    access = Access(settings, Verifier(settings, keys, lambda: now), lambda: 5.0, lambda: now)
    with contextlib.suppress(TokenError):
        who = access.connect(sign_bytes(b'{"alg":"HS256"}', payload))
        assert who.ends_at is not None
        assert 1 <= access.seconds_left(who.ends_at) < 2**31
        assert b"\n" not in who.info
        assert msgspec.json.decode(who.info) == msgspec.json.decode(json.dumps(info))


# -- where keys come from


def ring_of(**settings: object) -> KeyRing:
    """A ring that has loaded its keys."""
    made = Settings(**settings)  # type: ignore[arg-type]
    ring = KeyRing(made)
    ring.load(made)
    return ring


def test_public_keys_in_files(tmp_path: Path) -> None:
    """PEM: public keys, a private one's public half, any order."""
    settings = Settings()
    for number, algorithm in enumerate(("RS256", "ES256", "ES384", "ES512")):
        file = tmp_path / f"{number}.pem"
        file.write_bytes(pem(key_for(algorithm), private=algorithm == "ES384"))
        settings.token_public_keys.append(str(file))
    ring = KeyRing(settings)
    ring.load(settings)
    reader = Verifier(settings, ring, time.time)
    for algorithm in ("RS256", "RS512", "ES256", "ES384", "ES512"):
        assert reader.read(sign_with(key_for(algorithm), algorithm, {"sub": algorithm})).sub == algorithm
    assert fault_of(reader, sign(sub="ann")) is TokenFault.INVALID


def brainpool() -> bytes:
    """A public key of a curve that none of our algorithms has."""
    return (
        ec.generate_private_key(ec.BrainpoolP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def edwards() -> bytes:
    """Likewise."""
    return (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def locked() -> bytes:
    """A private key with a password."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


BAD_PEMS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no key",
    "broken": lambda: pem(key_for("RS256"))[:100],
    "binary": lambda: bytes(range(256)),
    "secp256k1": lambda: pem(key_for("ES256K")),
    "brainpool": brainpool,
    "Ed25519": edwards,
    "locked": locked,
}


@pytest.mark.parametrize("name", BAD_PEMS)
def test_file_that_holds_no_usable_key(name: str, tmp_path: Path) -> None:
    """One line, with its name."""
    file = tmp_path / "key.pem"
    file.write_bytes(BAD_PEMS[name]())
    with pytest.raises(StartError) as error:
        ring_of(token_public_keys=[str(file)])
    assert str(error.value).startswith(f"token_public_keys {file}: allowed: PEM of an RSA key")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.pem", ".", "a\0b"])
def test_file_that_cannot_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For both settings."""
    monkeypatch.chdir(tmp_path)
    for settings in ({"token_public_keys": [name]}, {"token_jwks": name}):
        with pytest.raises(StartError, match=r"^can't read '[^\n]*$"):
            ring_of(**settings)


def test_secret_that_is_none() -> None:
    """A public key as a secret would let everyone sign; it is refused without being shown."""
    for name in ("token_hmac_secret", "token_hmac_secret_previous"):
        for secret in (pem(key_for("RS256")).decode(), pem(key_for("ES256")).decode()):
            with pytest.raises(StartError) as error:
                ring_of(**{name: secret})
            assert str(error.value) == f"{name}: allowed: text that nobody else knows, not a public key"


def test_short_secret_is_the_operators_decision() -> None:
    """It works, without a word on stderr that isn't the log's."""
    settings = Settings(token_hmac_secret="short")
    assert (
        Verifier(settings, ring_of(token_hmac_secret="short"), time.time).read(sign(sub="a", secret="short")).sub == "a"
    )


def test_key_set_in_a_file(tmp_path: Path) -> None:
    """What can't be used is left out: other kinds, other uses, broken entries (RFC 7517 section 5)."""
    rsa, elliptic, encryption = key_for("RS256"), key_for("ES384"), key_for("ES256")
    file = tmp_path / "keys.json"
    file.write_bytes(
        key_set(
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            {"kty": "post-quantum"},
            {"kty": "EC", "crv": "brainpoolP256r1", "x": "AA", "y": "AA"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "RSA", "n": 5, "e": "AQAB"},
            {},
            entry(encryption, use="enc", kid="encryption"),
            entry(rsa, kid="rsa", use="sig"),
            entry(elliptic, kid="elliptic"),
        )
    )
    settings = Settings(token_jwks=str(file))
    reader = Verifier(settings, ring_of(token_jwks=str(file)), time.time)
    assert reader.read(sign_with(rsa, "RS256", {"sub": "r"}, {"kid": "rsa"})).sub == "r"
    assert reader.read(sign_with(elliptic, "ES384", {"sub": "e"}, {"kid": "elliptic"})).sub == "e"
    assert fault_of(reader, sign_with(encryption, "ES256", {}, {"kid": "encryption"})) is TokenFault.INVALID


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"keys":5}',
        b'{"keys":null}',
        b'{"keys":[]}',
        b'{"keys":[null,[],"x"]}',
        b'{"keys":[{"kty":"post-quantum"}]}',
        b'{"keys":{"kty":"EC"}}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_file_that_holds_no_key_set(content: bytes, tmp_path: Path) -> None:
    """One line, with its name."""
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(StartError, match=f"^token_jwks {file}: n[^\n]*$"):
        ring_of(token_jwks=str(file))


@pytest.mark.parametrize("url", ["http://", "https:///keys", "http://\0/", "http://xn--/", "http://a:x/"])
def test_url_that_is_none(url: str) -> None:
    """It is found at the start, not by the task that reads it."""
    with pytest.raises(StartError, match=r"^token_jwks: allowed: [^\n]*$"):
        ring_of(token_jwks=url)


def test_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The keys of before are still those."""
    ring = ring_of(token_hmac_secret=SECRET)
    with pytest.raises(StartError):
        ring.load(Settings(token_hmac_secret="another one, of some length", token_public_keys=[str(tmp_path / "none")]))
    assert Verifier(Settings(), ring, time.time).read(sign(sub="ann")).sub == "ann"


class KeyServer:
    """An HTTP server that answers whatever its test wants."""

    def __init__(self) -> None:
        self.answer = b""
        self.requests = 0
        self.hangs = False
        self.port = 0

    @property
    def url(self) -> str:
        """Where its key set is."""
        return f"http://127.0.0.1:{self.port}/keys"

    def give(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        """Answer like this from now on."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        self.answer, self.hangs = head.encode() + body, False

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one request."""
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(65536)
            self.requests += 1
            if self.hangs:
                await trio.sleep_forever()
            await stream.send_all(self.answer)

    async def until_asked(self, times: int = 2) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self.requests + times
        with trio.fail_after(5):
            while self.requests < wanted:
                await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def open_key_server() -> AsyncIterator[KeyServer]:
    """Serve on a free port of loopback."""
    server = KeyServer()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key sets are read again at once."""
    monkeypatch.setattr(keys_module, "REFETCH_SECONDS", 0.02)


BAD_ANSWERS: dict[str, tuple[bytes, str, str, str]] = {
    "down": (b"", "503 Service Unavailable", "", "it answers 503"),
    "gone": (b"", "404 Not Found", "", "it answers 404"),
    "garbage": (b"<html>", "200 OK", "", "not a JSON Web Key Set"),
    "no keys": (key_set(), "200 OK", "", "no key for any of our algorithms"),
    "too large": (b" " * (keys_module.JWKS_BYTES_MAX + 1), "200 OK", "", "over 1048576 bytes"),
    "packed, unasked": (
        gzip.compress(b" " * 3_000_000),
        "200 OK",
        "Content-Encoding: gzip\r\n",
        "not a JSON Web Key Set",
    ),
    "elsewhere": (b"", "302 Found", "Location: http://[/\r\n", "Error"),
    "elsewhere, and not HTTP": (b"", "302 Found", "Location: ftp://localhost/\r\n", "UnsupportedProtocol"),
    "round and round": (b"", "302 Found", "Location: /keys\r\n", "TooManyRedirects"),
    "not HTTP": (b"", "\x00\x01", "", "RemoteProtocolError"),
}


@pytest.mark.usefixtures("quickly")
async def test_key_set_at_a_url() -> None:
    """It is read at the start and again; whatever goes wrong, the last good set is kept, and the log says why."""
    key = key_for("ES256")
    async with open_key_server() as server, trio.open_nursery() as nursery:
        server.give(b"nothing yet")
        settings = Settings(
            token_jwks=server.url.replace("//", "//name:password@") + "?key=secret", token_jwks_seconds=0.001
        )
        ring = KeyRing(settings)
        ring.load(settings)
        reader = Verifier(settings, ring, time.time)
        token = sign_with(key, "ES256", {"sub": "ann"}, {"kid": "one"})
        assert fault_of(reader, token) is TokenFault.INVALID
        with capture_logs() as entries:
            nursery.start_soon(ring.run)
            await server.until_asked()
        assert {line["event"] for line in entries} == {"key set not read; there is none yet, and it is tried again"}
        server.give(key_set(entry(key, kid="one")))
        await server.until_asked()
        assert fault_of(reader, token) is None
        for name, (body, status, headers, why) in BAD_ANSWERS.items():
            with capture_logs() as entries:
                server.give(body, status, headers)
                await server.until_asked(25 if name == "round and round" else 3)
            assert fault_of(reader, token) is None, name
            assert {line["event"] for line in entries} == {"key set not read; the last good one is kept"}
            assert {line["url"] for line in entries} == {server.url}
            assert any(why in line["why"] for line in entries), (name, entries)
            assert "password" not in str(entries)
            assert "secret" not in str(entries)
        other = key_for("ES256", 1)
        server.give(key_set(entry(other, kid="two")))
        await server.until_asked()
        assert fault_of(reader, token) is TokenFault.INVALID
        assert fault_of(reader, sign_with(other, "ES256", {}, {"kid": "two"})) is None
        nursery.cancel_scope.cancel()


async def test_key_server_that_hangs() -> None:
    """Nobody waits for it: others come in meanwhile."""
    async with open_key_server() as keys:
        keys.hangs = True
        async with open_server(insecure=False, token_hmac_secret=SECRET, token_jwks=keys.url) as server:
            await keys.until_asked(1)
            async with open_structured(server.port, connected=False) as client:
                await client.connect(token=sign(sub="ann"))


@pytest.mark.usefixtures("quickly")
async def test_key_server_that_is_not_there_or_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again and again; until it answers, its tokens are wrong."""
    monkeypatch.setattr(keys_module, "FETCH_SECONDS_MAX", 0.3)
    async with open_key_server() as keys:
        keys.hangs = True
        with capture_logs() as entries:
            async with open_server(insecure=False, token_jwks=keys.url, token_jwks_seconds=0.001):
                await keys.until_asked(2)
        assert "no answer in time" in [line["why"] for line in entries if "url" in line]
        url = keys.url
    with capture_logs() as entries:
        async with open_server(insecure=False, token_jwks=url, token_jwks_seconds=0.001) as server:
            with trio.fail_after(5):
                while len([line for line in entries if "url" in line]) < 2:
                    await trio.sleep(0.01)
            assert (await end_after(server.port, {"connect": {"token": sign(sub="ann")}})).code == 3500
    assert "ConnectError" in {line["why"] for line in entries if "url" in line}


async def test_unknown_key_is_looked_for_but_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new key is there soon after its first token, which is refused; whoever invents names gets no more than that."""
    monkeypatch.setattr(keys_module, "REFETCH_SECONDS", 0.1)
    old, new = key_for("ES256"), key_for("ES256", 1)
    async with open_key_server() as server, trio.open_nursery() as nursery:
        server.give(key_set(entry(old, kid="old")))
        settings = Settings(token_jwks=server.url)
        ring = KeyRing(settings)
        ring.load(settings)
        reader = Verifier(settings, ring, time.time)
        nursery.start_soon(ring.run)
        await server.until_asked(1)
        await trio.sleep(0.25)
        assert server.requests == 1
        server.give(key_set(entry(old, kid="old"), entry(new, kid="new")))
        token = sign_with(new, "ES256", {}, {"kid": "new"})
        assert fault_of(reader, token) is TokenFault.INVALID
        with trio.fail_after(5):
            while fault_of(reader, token):
                await trio.sleep(0.01)
        assert server.requests == 2
        began = trio.current_time()
        invented = sign_with(new, "ES256", {}, {"kid": "invented"})
        while trio.current_time() - began < 0.45:
            assert fault_of(reader, invented) is TokenFault.INVALID
            await trio.sleep(0.001)
        assert 3 <= server.requests <= 7
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("quickly")
async def test_another_url_after_a_reload() -> None:
    """It is read soon, not when the old one would have been."""
    key = key_for("ES256")
    async with open_key_server() as one, open_key_server() as two, trio.open_nursery() as nursery:
        one.give(key_set(entry(key, kid="one")))
        two.give(key_set(entry(key, kid="two")))
        settings = Settings(token_jwks=one.url)
        ring = KeyRing(settings)
        ring.load(settings)
        nursery.start_soon(ring.run)
        await one.until_asked(1)
        settings.token_jwks = two.url
        ring.load(settings)
        await two.until_asked(1)
        nursery.cancel_scope.cancel()


# -- connections


def wire_settings(**settings: object) -> dict[str, Any]:
    """A server with a secret, whose clock is as good as ours."""
    return {"insecure": False, "token_hmac_secret": SECRET, "token_leeway_seconds": 0.0, **LOOKS, **settings}


async def end_after(port: int, *commands: dict[str, Any]) -> Closed:
    """How a connection ends that says this."""
    async with open_structured(port, connected=False) as client:
        await client.send(*(client.number(command) for command in commands))
        return await client.ended()


async def refusal_of(asking: Any) -> int:
    """The error that a command gets."""
    with pytest.raises(Refused) as refused:
        await asking
    return refused.value.code


@contextlib.asynccontextmanager
async def open_user(server: Server, user: str = "ann", **claims: object) -> AsyncIterator[Client]:
    """Come with a good token."""
    async with open_structured(server.port, connected=False) as client:
        await client.connect(token=sign({"sub": user, **claims}))
        yield client


async def test_who_may_connect() -> None:
    """With keys, and without `anonymous`: users, by a good token."""
    async with open_server(**wire_settings()) as server:
        for token, code, reason in (
            (None, 3501, "bad request: a token is needed"),
            ("", 3501, "bad request: a token is needed"),
            ("x.y.z", 3500, "invalid token: it isn't a JSON Web Token"),
            (sign(sub="ann", secret="somebody else's, quite long"), 3500, "invalid token: its signature doesn't fit"),
            (sign(sub="ann", channel="room"), 3500, "invalid token: it is a subscription's, not a connection's"),
            (sign(sub=""), 3507, "permission denied: it names no user, and strangers aren't admitted"),
            (sign(), 3507, "permission denied: it names no user, and strangers aren't admitted"),
        ):
            closed = await end_after(server.port, {"connect": {"token": token}})
            assert (closed.code, closed.reason) == (code, reason)
        async with open_structured(server.port, connected=False) as client:
            result = await client.connect(token=sign(sub="ann", exp=in_seconds(3600)))
            assert (result["expires"], result["ttl"] in (3599, 3600)) == (True, True)
        async with open_structured(server.port, connected=False) as client:
            result = await client.connect(token=sign(sub="ann"))
            assert not {"expires", "ttl", "subs"} & set(result)


async def test_strangers_where_they_are_welcome() -> None:
    """Without a token, and with one that names nobody; a wrong one is refused all the same."""
    async with open_server(**wire_settings(anonymous=True)) as server:
        for token, expires in ((None, False), ("", False), (sign(), False), (sign(sub="", exp=in_seconds(9)), True)):
            async with open_structured(server.port, connected=False) as client:
                assert ("ttl" in await client.connect(token=token)) == expires
                await client.ask("subscribe", channel="room")
                await client.ask("publish", channel="room", data=1)
                info = (await client.publication("room"))["info"]
                assert info == {"user": "", "client": client.client}
        assert (await end_after(server.port, {"connect": {"token": "x"}})).code == 3500


async def test_without_keys_on_loopback() -> None:
    """Everyone may come; a token can't be checked, so it is wrong."""
    async with open_server() as server:
        async with open_structured(server.port) as client:
            await client.goes_on()
        assert (await end_after(server.port, {"connect": {"token": sign(sub="ann")}})).code == 3500


async def test_expired_token_at_connect() -> None:
    """Error 109; what came along isn't carried out, nor what comes after; if it doesn't leave, 3502."""
    async with open_server(**wire_settings(stale_seconds_max=0.3)) as server:
        async with open_structured(server.port, connected=False) as client:
            connect = client.number({"connect": {"token": sign(sub="ann", exp=in_seconds(-1))}})
            await client.send(connect, client.number({"subscribe": {"channel": "room"}}))
            reply = await client.reply(connect["id"])
            assert reply["error"] == {"code": 109, "message": "token expired"}
            await client.send(client.number({"connect": {"token": sign(sub="ann")}}), "no JSON")
            closed = await client.ended()
            assert (closed.code, len(client.frames)) == (3502, 1)
        assert server.node.hub.statistics().rooms == 0


async def test_refresh() -> None:
    """A new token for the same user goes on from there."""
    async with open_server(**wire_settings()) as server:
        async with open_user(server, exp=in_seconds(60)) as client:
            result = await client.ask("refresh", token=sign(sub="ann", exp=in_seconds(3600)))
            assert result["client"] == client.client
            assert (result["expires"], result["ttl"] in (3599, 3600)) == (True, True)
            assert "ttl" not in await client.ask("refresh", token=sign(sub="ann"))
            with pytest.raises(Refused) as refused:
                await client.ask("refresh", token=sign(sub="ann", exp=in_seconds(-1)))
            assert (refused.value.code, refused.value.temporary) == (109, True)  # or the SDKs would leave for good
            await client.goes_on()
        for body, code in (
            ({"token": sign(sub="bob")}, 3500),
            ({"token": sign(sub="ann", secret="somebody else's, quite long")}, 3500),
            ({"token": sign(sub="ann", channel="room")}, 3500),
            ({"token": sign()}, 3507),
            ({"token": ""}, 3501),
            ({}, 3501),
        ):
            async with open_user(server) as client:
                await client.say("refresh", **body)
                assert (await client.ended()).code == code


async def test_expiry_of_a_connection() -> None:
    """After a grace it is over: 3005. Who brings a new token in time goes on, and again."""
    async with open_server(**wire_settings(token_grace_seconds_max=1.0)) as server, trio.open_nursery() as nursery:

        async def idle() -> None:
            began = time.time()
            async with open_user(server, exp=in_seconds(0.5)) as client:
                closed = await client.ended()
                assert (closed.code, closed.reason) == (3005, "connection expired")
                assert time.time() - began >= 1.4

        async def refreshing(**claims: object) -> None:
            async with open_user(server, exp=in_seconds(0.5)) as client:
                await trio.sleep(0.8)  # it has expired
                await client.ask("refresh", token=sign({"sub": "ann", **claims}))
                await trio.sleep(1.0)
                await client.goes_on()

        async def never() -> None:
            async with open_user(server, exp=in_seconds(0.5), expire_at=0) as client:
                await trio.sleep(1.8)
                await client.goes_on()

        async def earlier() -> None:
            async with open_user(server, exp=in_seconds(100), expire_at=in_seconds(0.1)) as client:
                assert (await client.ended()).code == 3005

        nursery.start_soon(idle)
        nursery.start_soon(partial(refreshing, exp=in_seconds(100)))
        nursery.start_soon(refreshing)
        nursery.start_soon(never)
        nursery.start_soon(earlier)


# -- subscriptions


async def test_subscription_token() -> None:
    """For that room and that user, or it is refused; a private room needs one."""
    async with open_server(**wire_settings()) as server, open_user(server) as client:
        result = await client.ask("subscribe", channel="a", token=sign(sub="ann", channel="a", exp=in_seconds(60)))
        assert (result["expires"], result["ttl"] in (59, 60)) == (True, True)
        assert "ttl" not in await client.ask("subscribe", channel="b", token=sign(sub="ann", channel="b"))
        forged = sign(sub="ann", channel="$c", secret="somebody else's, quite long")
        assert await refusal_of(client.ask("subscribe", channel="$c", token=forged)) == 103
        assert await refusal_of(client.ask("subscribe", channel="c", token="x")) == 103
        expired = sign(sub="ann", channel="$c", exp=in_seconds(-1))
        assert await refusal_of(client.ask("subscribe", channel="$c", token=expired)) == 109
        assert await refusal_of(client.ask("subscribe", channel="$c")) == 103
        await client.ask("subscribe", channel="$c", token=sign(sub="ann", channel="$c"))
        assert (await client.ask("presence_stats", channel="$c")) == {"num_clients": 1, "num_users": 1}
        for token in (
            sign(sub="ann", channel="other"),
            sign(sub="bob", channel="d"),
            sign(channel="d"),
            sign(sub="ann"),
        ):
            async with open_user(server) as other:
                await other.say("subscribe", channel="d", token=token)
                closed = await other.ended()
                assert (closed.code, closed.reason) == (
                    3500,
                    "invalid token: it is for another room or another user",
                )


async def test_expiry_of_a_subscription() -> None:
    """After a grace the connection ends: 3006. A new token extends it, an unsubscribe ends the matter."""
    async with open_server(**wire_settings(token_grace_seconds_max=0.8)) as server:

        def token(seconds: float, user: str = "ann", room: str = "$r") -> str:
            return sign(sub=user, channel=room, exp=in_seconds(seconds))

        async def idle() -> None:
            async with open_user(server) as client:
                await client.ask("subscribe", channel="$r", token=token(0.3))
                closed = await client.ended()
                assert (closed.code, closed.reason) == (3006, "subscription expired")

        async def refreshing() -> None:
            async with open_user(server) as client:
                await client.ask("subscribe", channel="$r", token=token(0.3))
                await trio.sleep(0.5)  # it has expired
                result = await client.ask("sub_refresh", channel="$r", token=token(60))
                assert result == {"expires": True, "ttl": 60}
                await trio.sleep(0.9)
                assert await client.ask("sub_refresh", channel="$r", token=sign(sub="ann", channel="$r")) == {}
                await client.goes_on()

        async def leaving() -> None:
            async with open_user(server) as client:
                await client.ask("subscribe", channel="$r", token=token(0.3))
                await client.ask("unsubscribe", channel="$r")
                # and all at once:
                said = {"channel": "$q", "token": token(0.3, room="$q")}
                leave = client.number({"unsubscribe": {"channel": "$q"}})
                await client.send(client.number({"subscribe": said}), leave)
                await client.reply(leave["id"])
                await trio.sleep(1.4)
                await client.goes_on()

        async def mistaken() -> None:
            async with open_user(server) as client:
                await client.ask("subscribe", channel="$r", token=token(60))
                with pytest.raises(Refused) as refused:
                    await client.ask("sub_refresh", channel="$r", token=token(-1))
                assert (refused.value.code, refused.value.temporary) == (109, True)
                assert await refusal_of(client.ask("sub_refresh", channel="$r", token="x")) == 103
                assert await refusal_of(client.ask("sub_refresh", channel="s", token=token(60, room="s"))) == 103
                await client.say("sub_refresh", channel="$r", token=token(60, user="bob"))
                assert (await client.ended()).code == 3500
            async with open_user(server) as client:
                await client.say("sub_refresh", channel="$r")
                assert (await client.ended()).code == 3501

        async with trio.open_nursery() as nursery:
            for test in (idle, refreshing, leaving, mistaken):
                nursery.start_soon(test)


async def test_lost_room_does_not_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that has ended by an internal error takes its deadline with it."""
    async with open_server(**wire_settings(token_grace_seconds_max=0.2)) as server, open_user(server) as client:
        await client.ask("subscribe", channel="r", token=sign(sub="ann", channel="r", exp=in_seconds(0.2)))
        with monkeypatch.context() as patch:
            patch.setattr(server.node.engine, "append", None)
            assert await refusal_of(client.ask("publish", channel="r", data=1)) == 100
        assert (await client.push())["unsubscribe"]["code"] == 2502
        await trio.sleep(0.6)
        await client.goes_on()


async def test_personal_rooms() -> None:
    """Only for that user: not for others, not for strangers, and a token for it is no way in."""
    async with open_server(**wire_settings(anonymous=True)) as server, open_user(server) as ann:
        await ann.ask("subscribe", channel="#ann")
        assert await refusal_of(ann.ask("subscribe", channel="#bob")) == 103
        assert await refusal_of(ann.ask("subscribe", channel="#")) == 103
        assert await refusal_of(ann.ask("subscribe", channel="#bob", token=sign(sub="ann", channel="#bob"))) == 103
        assert await refusal_of(ann.ask("subscribe", channel="#ann:x")) == 102
        async with open_structured(server.port) as stranger:
            for room in ("#", "#ann"):
                assert await refusal_of(stranger.ask("subscribe", channel=room)) == 103


# -- rooms that the server subscribes a connection to


async def test_server_side_subscriptions() -> None:
    """The reply to connect tells of them; then they are like any other, and can be recovered."""
    async with open_server(**wire_settings(allow_subscribe="nobody", allow_publish="users")) as server:
        claims = {"channels": ["a"], "subs": {"#else": {"info": 1}, "$b": {}, "a": {}}}
        async with open_user(server, "bob") as bob, open_structured(server.port, connected=False) as ann:
            result = await ann.connect(token=sign({"sub": "ann", **claims}))
            assert set(result["subs"]) == {"a", "#else", "$b"}
            epoch = result["subs"]["a"]["epoch"]
            assert result["subs"]["a"] == {"recoverable": True, "positioned": True, "epoch": epoch, "offset": 0}
            await bob.ask("publish", channel="a", data="one")
            assert (await ann.publication("a"))["data"] == "one"
            assert await refusal_of(bob.ask("subscribe", channel="a")) == 103
            await ann.ask("publish", channel="$b", data="two")
            assert (await ann.publication("$b"))["data"] == "two"
            await bob.ask("publish", channel="a", data="three")
            async with open_structured(server.port, connected=False) as again:
                subs = {"a": {"recover": True, "epoch": epoch, "offset": 1}, "stranger": {"recover": True}}
                result = await again.connect(token=sign({"sub": "ann", **claims}), subs=subs)
                assert set(result["subs"]) == {"a", "#else", "$b"}
                (missed,) = result["subs"]["a"]["publications"]
                assert (missed["data"], missed["offset"]) == ("three", 2)
                assert result["subs"]["a"]["recovered"] is True
                assert "recovered" not in result["subs"]["$b"]
                await bob.ask("publish", channel="a", data="four")
                assert (await again.publication("a"))["offset"] == 3
            async with open_structured(server.port, connected=False) as lost:
                subs = {"a": {"recover": True, "epoch": "another", "offset": 1}}
                result = await lost.connect(token=sign({"sub": "ann", **claims}), subs=subs)
                assert "recovered" not in result["subs"]["a"]
                assert result["subs"]["a"]["was_recovering"] is True


@pytest.mark.parametrize(
    ("rooms", "code"),
    [(["good", "nowhere:x"], 102), ([f"r{number}" for number in range(129)], 106)],
    ids=["unknown namespace", "too many"],
)
async def test_server_side_subscription_that_is_impossible(rooms: list[str], code: int) -> None:
    """Then connect fails: nothing is left of the others, and nobody has heard of them."""
    good = Namespace(join_leave=True, force_join_leave=True)
    async with (
        open_server(**wire_settings(namespaces={"loud": good}, stale_seconds_max=0.4)) as server,
        open_user(server, "bob") as bob,
    ):
        await bob.ask("subscribe", channel="loud:x")
        assert "join" in await bob.push()
        async with open_structured(server.port, connected=False) as client:
            assert await refusal_of(client.connect(token=sign(sub="ann", channels=["loud:x", *rooms]))) == code
            assert server.node.hub.statistics().subscriptions == 1
            await bob.ask("publish", channel="loud:x", data=1)
            assert "pub" in await bob.push()
            assert (await client.ended()).code == 3502
            assert len(client.frames) == 1
        assert not bob.pushes


@pytest.mark.parametrize("room", ["", "x" * 256, "new\nline"])
async def test_server_side_subscription_without_a_good_name(room: str) -> None:
    """Such a token is wrong, in either list."""
    async with open_server(**wire_settings()) as server:
        for token in (sign(sub="ann", channels=["good", room]), sign(sub="ann", subs={room: {}})):
            closed = await end_after(server.port, {"connect": {"token": token}})
            assert (closed.code, "its rooms: room name h" in closed.reason) == (3500, True)


# -- what others see


async def test_info() -> None:
    """The token's `info` is in publications, joins and presence; however it was written, on one line."""
    loud = Namespace(join_leave=True, force_join_leave=True)
    async with open_server(**wire_settings(namespaces={"loud": loud})) as server, open_user(server, "bob") as bob:
        await bob.ask("subscribe", channel="loud:x")
        seen = (await bob.push())["join"]["info"]
        assert seen == {"user": "bob", "client": bob.client}
        payload = b'{"sub": "ann",\n "info": {\n  "name": "An\\nn",\r\n\t"a": [1,\n 2]}}'
        async with open_structured(server.port, connected=False) as ann:
            await ann.connect(token=sign_bytes(b'{"alg":"HS256"}', payload))
            await ann.ask("subscribe", channel="loud:x")
            expected = {"user": "ann", "client": ann.client, "conn_info": {"name": "An\nn", "a": [1, 2]}}
            assert (await bob.push())["join"]["info"] == expected
            await ann.ask("publish", channel="loud:x", data=1)
            assert (await bob.push())["pub"]["info"] == expected
            presence = (await bob.ask("presence", channel="loud:x"))["presence"]
            assert presence == {ann.client: expected, bob.client: {"user": "bob", "client": bob.client}}
            (past,) = (await bob.ask("history", channel="loud:x", limit=-1))["publications"]
            assert past["info"] == expected
        assert (await bob.push())["leave"]["info"] == expected


async def test_one_user_with_two_connections() -> None:
    """Two members, one user; plain ones count as well."""
    async with open_server(**wire_settings()) as server, open_user(server) as one, open_user(server) as two:
        for client in (one, two):
            await client.ask("subscribe", channel="room")
        assert set((await one.ask("presence", channel="room"))["presence"]) == {one.client, two.client}
        assert await two.ask("presence_stats", channel="room") == {"num_clients": 2, "num_users": 1}
        async with open_peer(server.port, f"/chat/room?token={sign(sub='ann')}"):
            assert await two.ask("presence_stats", channel="room") == {"num_clients": 3, "num_users": 1}


# -- plain clients


async def status_of(port: int, path: str) -> int:
    """What a plain handshake is answered with."""
    try:
        async with open_peer(port, path):
            return 101
    except HandshakeRefused as refused:
        return refused.status


async def test_plain_client_with_a_token() -> None:
    """It is in the target, and what is wrong is an HTTP status."""
    async with open_server(**wire_settings()) as server:
        wrong = sign(sub="ann", secret="somebody else's, quite long")
        expired, stranger, ann = sign(sub="ann", exp=in_seconds(-1)), sign(), sign(sub="ann")
        for path, status in {
            f"/chat/room?token={ann}": 101,
            f"/chat?history=5&token={ann}": 101,
            f"/chat/room?token={wrong}": 401,
            f"/chat/room?token={expired}": 401,
            f"/chat/room?token={sign(sub='ann', channel='room')}": 401,
            f"/chat/room?token={ann}&token={ann}": 401,
            "/chat/room?token=": 401,
            "/chat/room": 401,
            f"/chat/room?token={stranger}": 403,
            f"/chat/$room?token={ann}": 403,
            f"/chat/%23bob?token={ann}": 403,
            f"/chat/%23ann?token={ann}": 101,
            f"/chat/nowhere:x?token={ann}": 404,
        }.items():
            assert await status_of(server.port, path) == status, path


async def test_what_plain_clients_are_told_holds_no_token() -> None:
    """Nor anything of it."""
    async with open_server(**wire_settings()) as server:
        token = sign(sub="ann", secret="somebody else's, quite long")
        with pytest.raises(HandshakeRefused) as refused:
            async with open_peer(server.port, f"/chat/room?token={token}"):
                pass
        assert b"\r\n\r\n401 Unauthorized: token: its signature doesn't fit\n" in refused.value.response
        assert token.encode() not in refused.value.response


async def test_plain_client_as_others_see_it() -> None:
    """User and info of its token."""
    async with open_server(**wire_settings()) as server, open_user(server, "bob") as bob:
        await bob.ask("subscribe", channel="room")
        async with open_peer(server.port, f"/chat/room?token={sign(sub='ann', info={'n': 1})}") as ann:
            await ann.send("hello")
            info = (await bob.publication("room"))["info"]
            assert (info["user"], info["conn_info"]) == ("ann", {"n": 1})


async def test_plain_strangers_where_they_are_welcome() -> None:
    """Without a token; `$` and `#` are not for them."""
    async with open_server(**wire_settings(anonymous=True)) as server:
        for path, status in {
            "/chat/room": 101,
            f"/chat/room?token={sign()}": 101,
            "/chat/room?token=x": 401,
            "/chat/$room": 403,
            "/chat/%23": 403,
            "/chat/%23ann": 403,
        }.items():
            assert await status_of(server.port, path) == status, path


async def test_plain_token_that_expires() -> None:
    """It can't be renewed, so there is no grace: Close 1008."""
    async with open_server(**wire_settings()) as server:
        async with open_peer(server.port, f"/chat?token={sign(sub='ann', exp=in_seconds(0.7))}") as peer:
            await peer.send("hello")
            messages, closed = await peer.receive_until_closed()
        assert (messages, closed.code, closed.reason) == (["hello"], 1008, "the token has expired")


async def test_without_plain() -> None:
    """There is nothing at /chat, and no hint of it."""
    async with open_server(plain=False) as server:
        with pytest.raises(HandshakeRefused) as refused:
            async with open_peer(server.port):
                pass
        assert refused.value.status == 404
        assert b"/chat" not in refused.value.response
        async with open_structured(server.port) as client:
            await client.goes_on()


# -- the daemon


async def test_reload_of_a_secret(tmp_path: Path) -> None:
    """The old one is refused, the new one accepted, whoever is connected stays; a mistake changes nothing."""
    other = "the next secret, as long as it takes"
    with open_reloadable(tmp_path, f'token_hmac_secret = "{SECRET}"') as server:
        port = server.daemon.port

        async def accepted() -> list[bool]:
            found = []
            for secret in (SECRET, other):
                async with open_structured(port, connected=False) as client:
                    with contextlib.suppress(Closed):
                        await client.connect(token=sign(sub="ann", secret=secret))
                    found.append(bool(client.client))
            return found

        async with open_structured(port, connected=False) as old:
            await old.connect(token=sign(sub="ann"))
            assert await accepted() == [True, False]
            changed = f'token_hmac_secret = "{other}"\n'
            entry = await server.reload(
                changed + 'token_public_keys = ["none.pem"]', "reload failed; nothing is changed"
            )
            assert entry["why"] == ["can't read 'none.pem': No such file or directory"]
            assert await accepted() == [True, False]
            entry = await server.reload(changed)
            assert entry["changed"] == ["token_hmac_secret"]
            assert await accepted() == [False, True]
            await server.reload(f'{changed}token_hmac_secret_previous = "{SECRET}"')
            assert await accepted() == [True, True]
            await old.goes_on()
            assert SECRET not in str(entry)


async def test_reload_does_not_open_the_server(tmp_path: Path) -> None:
    """What a start refuses, a reload refuses."""
    with open_reloadable(tmp_path, f'token_hmac_secret = "{SECRET}"', "--host", "0.0.0.0") as server:
        entry = await server.reload("", "reload failed; nothing is changed")
        assert entry["why"] == [
            "whoever reaches 0.0.0.0 could chat: configure tokens (token_hmac_secret, token_public_keys or "
            "token_jwks) or hook_connect_url, or say that strangers are welcome: anonymous = true, or --open"
        ]
        assert await status_of(server.daemon.port, "/chat") == 401
        await server.reload("anonymous = true")
        assert await status_of(server.daemon.port, "/chat") == 101


async def test_secrets_are_in_neither_log_nor_metrics() -> None:
    """Whatever comes: tokens good and bad, at the most talkative level."""
    lines: list[str] = []

    def read(stream: Iterator[str]) -> None:
        lines.extend(stream)

    bad = sign(sub="ann", secret="somebody else's, quite long")
    with open_daemon(token_hmac_secret=SECRET, log_level="debug") as daemon:
        assert daemon.process.stderr is not None
        reader = threading.Thread(target=read, args=(daemon.process.stderr,))
        for token in (sign(sub="ann"), bad):
            await status_of(daemon.port, f"/chat?token={token}")
            async with open_structured(daemon.port, connected=False) as client:
                with contextlib.suppress(Closed):
                    await client.connect(token=token)
                    await client.ask("subscribe", channel="x", token=sign(sub="ann", channel="x"))
        metrics = str(daemon.metrics())
        daemon.process.terminate()
        reader.start()
        await trio.to_thread.run_sync(reader.join)
    text = "".join(lines) + metrics
    assert "connection ended" in text
    assert SECRET not in text
    assert bad[-20:] not in text
    assert sign(sub="ann")[-20:] not in text


def test_rsa_keys_of_the_tests_are_not_toys() -> None:
    """Their sizes are those of real ones."""
    key = key_for("RS256")
    assert isinstance(key, RSAKey)
    assert key.raw_value.key_size == 2048
