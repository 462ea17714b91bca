import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tokens import KEY, claims, token

from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.server.errors import Unauthenticated
from hotshoe.server.services.callers import Caller, Scope
from hotshoe.server.services.tokens import MAX_KEYS_FILE_BYTES, InvalidKeys, TokenVerifier

OTHER = PrivateKey.new()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "auth.pem.pub"
    path.write_bytes(KEY.public.pem())
    return path


def verifier(keys: Path, **settings: str) -> TokenVerifier:
    return TokenVerifier(keys, **{"issuer": "hotshoe", "audience": "hotshoe"} | settings)


def caller(keys: Path, text: str, **settings: str) -> Caller:
    return verifier(keys, **settings).caller([("authorization", f"Bearer {text}")])


def rewritten(text: str, part: int, **changes: Any) -> str:
    """A token of which the header (0) or the claims (1) were changed after it was signed."""
    parts = text.split(".")
    data = json.loads(base64.urlsafe_b64decode(parts[part] + "==")) | changes
    parts[part] = base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()
    return ".".join(parts)


def test_a_token_says_who_calls_and_what_they_may_do(keys: Path) -> None:
    found = caller(keys, token(scope="read publish:team/* openid publish: generate"))
    assert found == Caller("ada", "ada", (Scope("read"), Scope("publish", "team/*"), Scope("generate")))
    assert caller(keys, token(tenant="gold")).tenant == "gold"
    assert caller(keys, token(org="red"), tenant_claim="org").tenant == "red"
    assert caller(keys, token(aud=["elsewhere", "hotshoe"], scope=None)).scopes == ()
    assert caller(keys, token(iss="https://id"), issuer="https://id").subject == "ada"


def soon(seconds: int) -> int:
    """So many seconds from now: not from when this file was read, which in a run of all tests is long ago."""
    return int(time.time()) + seconds


FORGED = {
    "nobody's": lambda: token(OTHER),
    "another key under our key's name": lambda: token(OTHER, {"kid": KEY.public.key_id}),
    "unsigned": lambda: jwt.encode(claims(), None, "none", {"kid": KEY.public.key_id}),
    "signature left out": lambda: token().rpartition(".")[0] + ".",
    "symmetric, with the public key": lambda: jwt.api_jws.PyJWS().encode(
        json.dumps(claims()).encode(), b"0" * 32, "HS256", {"kid": KEY.public.key_id}
    ),
    "claims changed": lambda: rewritten(token(), 1, sub="eve"),
    "header changed": lambda: rewritten(token(), 0, alg="none"),
    "key in the header": lambda: token(
        OTHER, {"jwk": {"kty": "EC"}, "jku": "https://evil/keys", "x5u": "https://evil"}
    ),
    "extensions": lambda: token(header={"crit": ["exp"]}),
    "over": lambda: token(iat=soon(-700), exp=soon(-60)),
    "not yet": lambda: token(nbf=soon(600)),
    "of tomorrow": lambda: token(iat=soon(600), exp=soon(900)),
    "for two days": lambda: token(exp=soon(2 * 86_400)),
    "for ever": lambda: token(exp=None),
    "no issue date": lambda: token(iat=None),
    "infinite": lambda: token(exp=1e308),
    "exp in words": lambda: token(exp=str(soon(60))),
    "other issuer": lambda: token(iss="else"),
    "no issuer": lambda: token(iss=None),
    "other audience": lambda: token(aud="else"),
    "no audience": lambda: token(aud=None),
    "no subject": lambda: token(sub=None),
    "empty subject": lambda: token(sub=""),
    "control characters": lambda: token(sub="ada\n"),
    "tenant that is no text": lambda: token(tenant=["gold"]),
    "garbage": lambda: "not.a.token",
    "one part": lambda: "token",
    "deep": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.e30",
    "long": lambda: token(note="x" * 8000),
}


@pytest.mark.parametrize("sort", FORGED)
def test_no_forged_token_counts(keys: Path, sort: str) -> None:
    with pytest.raises(Unauthenticated) as error:
        caller(keys, FORGED[sort]())
    assert "token" in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {token()}")],
        [("authorization", f"Bearer {token()}"), ("authorization", f"Bearer {token()}")],
        [("authorization-bin", token().encode())],
    ],
)
def test_a_call_carries_one_bearer_token(keys: Path, metadata: list[tuple[str, Any]]) -> None:
    with pytest.raises(Unauthenticated):
        verifier(keys).caller(metadata)


def test_each_key_is_for_one_algorithm(tmp_path: Path) -> None:
    private = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    pem, jwks = tmp_path / "keys.pem", tmp_path / "keys.json"
    pem.write_bytes(
        b"".join(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in private.values()
        )
    )
    entries = [
        jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True) | {"kid": name}
        for name, key in private.items()
    ]
    jwks.write_text(json.dumps({"keys": [*entries, {"use": "enc", "kty": "?"}]}))
    for name, key in private.items():
        assert caller(jwks, jwt.encode(claims(), key, name, {"kid": name})).subject == "ada"
        for other in private.keys() - {name}:
            with pytest.raises(Unauthenticated):
                caller(jwks, jwt.encode(claims(), key, name, {"kid": other}))
        with pytest.raises(Unauthenticated, match="none of the keys"):
            caller(pem, jwt.encode(claims(), key, name, {"kid": name}))
    with pytest.raises(Unauthenticated):
        caller(jwks, jwt.encode(claims(), private["RS256"], "RS512", {"kid": "RS256"}))
    with pytest.raises(Unauthenticated, match="none of the keys"):
        caller(jwks, jwt.encode(claims(), private["ES256"], "ES256"))  # whose of three?


def _jwks(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


SECRET = base64.urlsafe_b64encode(os.urandom(32)).decode()
GOOD_JWK = jwt.get_algorithm_by_name("EdDSA").to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected public keys in PEM, or a JSON Web Key Set"),
        (b"[]", "expected public keys in PEM, or"),
        (_jwks(), "expected one public key or more"),
        (_jwks(GOOD_JWK), "key 1: kid: expected a name"),
        (_jwks(*[GOOD_JWK | {"kid": "a"}] * 2), "key 2: kid: expected a name that no other key has"),
        (_jwks({"kty": "oct", "kid": "a", "k": SECRET}), "key 1: expected a public key"),
        (_jwks({"kty": "EC", "kid": "a", "d": SECRET}), "key 1: not a JSON Web Key"),
        (KEY.pem(), "expected public keys in PEM, or"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "key 1: not a public key"),
        (
            rsa.generate_private_key(65537, 1024)
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "RSA of 2048 bits or more",
        ),
        (
            ec.generate_private_key(ec.SECP384R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "P-256",
        ),
        (b"x" * (MAX_KEYS_FILE_BYTES + 1), "at most"),
    ],
)
def test_a_file_that_holds_no_such_keys_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(data)
    with pytest.raises(InvalidKeys, match=problem) as error:
        verifier(path)
    assert str(path) in str(error.value) and SECRET not in str(error.value)


def test_a_private_key_among_the_public_ones_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    private = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(_jwks(jwt.get_algorithm_by_name("EdDSA").to_jwk(private, as_dict=True) | {"kid": "a"}))
    with pytest.raises(InvalidKeys, match="expected a public key"):
        verifier(path)


def test_the_file_is_followed(keys: Path) -> None:
    asked = verifier(keys)
    ours, theirs = ([("authorization", f"Bearer {token(key)}")] for key in (KEY, OTHER))
    assert asked.caller(ours).subject == "ada"
    _replace(keys, OTHER.public.pem())
    assert asked.caller(theirs).subject == "ada"
    with pytest.raises(Unauthenticated):
        asked.caller(ours)  # though it was remembered
    _replace(keys, b"nothing")
    with pytest.raises(Unauthenticated):
        asked.caller(theirs)
    _replace(keys, KEY.public.pem())
    assert asked.caller(ours).subject == "ada"


def _replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def test_what_is_remembered_ends_with_the_token(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, metadata = verifier(keys), [("authorization", f"Bearer {token(exp=int(time.time()) + 20)}")]
    assert asked.caller(metadata).subject == "ada"
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    clock = __import__("datetime").datetime
    moved = type("moved", (clock,), {"now": classmethod(lambda cls, tz=None: clock.fromtimestamp(later, tz))})
    monkeypatch.setattr("jwt.api_jwt.datetime", moved)
    with pytest.raises(Unauthenticated, match="expired"):
        asked.caller(metadata)
