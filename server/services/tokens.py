"""JSON Web Tokens (RFC 7519) as bearer tokens (RFC 6750): whose they are, checked with keys of a file.

The file holds a JSON Web Key Set (RFC 7517), as OpenID Connect issuers publish theirs, or public keys in PEM. It is
followed while the server runs; a file that is gone or wrong lets nobody in until it is right again. What a token's
header says of keys is not followed, and only its key says which algorithm is meant.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hotshoe.registry.file_stamp import file_stamp
from hotshoe.server.errors import Unauthenticated
from hotshoe.server.logs import log_event
from hotshoe.server.services.callers import Caller, Scope
from hotshoe.server.services.rpc import Metadata

MAX_TOKEN_CHARS = 8192
MAX_LIFETIME_SECONDS = 86_400  # a token cannot be taken back, so it must not last
LEEWAY_SECONDS = 30
MAX_KEYS_FILE_BYTES = 1 << 20
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
_MIN_RSA_BITS = 2048
_REMEMBER_SECONDS = 60.0
_MAX_REMEMBERED = 1024
_MAX_NAME_CHARS = 256
_PEM_END = b"-----END PUBLIC KEY-----"

# What decoding a token raises that was made to harm.
_MALFORMED = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class InvalidKeys(Exception):
    """A file of keys that is not one; the message says why."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, and the one algorithm that it is for."""

    public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
    algorithm: str


class TokenVerifier:
    """Tells whose a token is. Any thread.

    Args:
        keys: the file.
        issuer, audience: what a token's `iss` must be, and its `aud` name.
        tenant_claim: the claim that names a caller's tenant; its subject is, where there is none.

    Raises:
        InvalidKeys, OSError: the file is none, or cannot be read.
    """

    def __init__(self, keys: Path, *, issuer: str, audience: str, tenant_claim: str = "tenant") -> None:
        self._path = keys
        self._issuer = issuer
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._stamp = file_stamp(keys)
        self._keys = _read(keys)
        self._remembered: dict[bytes, tuple[float, Caller]] = {}  # by the token's hash: until when, and whose
        self._mutex = threading.Lock()

    def caller(self, metadata: Metadata) -> Caller:
        """Who sent an RPC with that metadata.

        Raises:
            Unauthenticated: there is no token, or none that counts; the message says what is wrong, not what is in it.
        """
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1 or not isinstance(values[0], str):
            raise Unauthenticated("expected one token, as metadata authorization: Bearer TOKEN")
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("authorization: expected Bearer TOKEN")
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated(f"token: expected at most {MAX_TOKEN_CHARS} characters")
        return self._remember(token)

    def _remember(self, token: str) -> Caller:
        keys = self._current()
        ticket = sha256(token.encode()).digest()
        until, caller = self._remembered.get(ticket, (0.0, None))
        if caller is not None and time.time() < until:
            return caller
        claims = self._claims(token, keys)
        caller = self._caller(claims)
        with self._mutex:
            while len(self._remembered) >= _MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            if keys is self._keys:  # else its key may be gone
                self._remembered[ticket] = (min(claims["exp"], time.time() + _REMEMBER_SECONDS), caller)
        return caller

    def _claims(self, token: str, keys: Mapping[str, _Key]) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:
                raise jwt.InvalidTokenError("its header asks for extensions")
            key = _key_of(header, keys)
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
            lifetime = claims["exp"] - claims["iat"]
        except _MALFORMED as error:
            raise Unauthenticated(f"token: {error}") from None
        if not 0 < lifetime <= MAX_LIFETIME_SECONDS:
            raise Unauthenticated(f"token: expected a lifetime of at most {MAX_LIFETIME_SECONDS} seconds")
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims["sub"]
        tenant = claims.get(self._tenant_claim, subject)
        for name, value in (("sub", subject), (self._tenant_claim, tenant)):
            if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS or not value.isprintable():
                raise Unauthenticated(f"token: {name}: expected 1 to {_MAX_NAME_CHARS} printable characters")
        return Caller(subject, tenant, tuple(_scopes(claims.get("scope", ""))))

    def _current(self) -> Mapping[str, _Key]:
        with self._mutex:
            stamp = file_stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._remembered.clear()
                try:
                    self._keys = _read(self._path)
                    log_event(logging.WARNING, "auth_keys_changed", keys=len(self._keys))
                except (InvalidKeys, OSError) as error:
                    self._keys = {}
                    log_event(logging.ERROR, "auth_keys_unusable", reason=str(error))
            return self._keys


def _key_of(header: Mapping[str, Any], keys: Mapping[str, _Key]) -> _Key:
    name = header.get("kid")
    if name is None and len(keys) == 1:
        return next(iter(keys.values()))
    if not isinstance(name, str) or name not in keys:
        raise jwt.InvalidTokenError("signed with none of the keys that this server knows")
    return keys[name]


def _scopes(claim: object) -> list[Scope]:
    """A `scope` claim (RFC 8693): words with spaces between them. Those of other services grant nothing here."""
    scopes = []
    for word in claim.split(" ") if isinstance(claim, str) else ():
        try:
            scopes.append(Scope.parse(word))
        except ValueError:
            continue
    return scopes


def _read(path: Path) -> dict[str, _Key]:
    with path.open("rb") as file:
        data = file.read(MAX_KEYS_FILE_BYTES + 1)
    if len(data) > MAX_KEYS_FILE_BYTES:
        raise InvalidKeys(f"{path}: expected at most {MAX_KEYS_FILE_BYTES} bytes")
    keys = _pem_keys(path, data) if _PEM_END in data else _jwks_keys(path, data)
    if not keys:
        raise InvalidKeys(f"{path}: expected one public key or more, in PEM or as a JSON Web Key Set")
    return keys


def _pem_keys(path: Path, data: bytes) -> dict[str, _Key]:
    """Named as `hotshoe key show` names them: by the sha256 of the key in DER."""
    keys = {}
    for number, part in enumerate(data.split(_PEM_END)[:-1], 1):
        try:
            key = serialization.load_pem_public_key(part + _PEM_END)
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidKeys(f"{path}: key {number}: not a public key in PEM") from None
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        keys[f"sha256:{sha256(der).hexdigest()}"] = _usable(f"{path}: key {number}", key)
    return keys


def _jwks_keys(path: Path, data: bytes) -> dict[str, _Key]:
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidKeys(f"{path}: expected public keys in PEM, or a JSON Web Key Set") from None
    keys: dict[str, _Key] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
        where = f"{path}: key {number}"
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue  # of another use
        name = entry.get("kid")
        if not isinstance(name, str) or not name or name in keys:
            raise InvalidKeys(f"{where}: kid: expected a name that no other key has")
        try:
            public = jwt.PyJWK({field: entry[field] for field in entry if field != "alg"}).key
        except _MALFORMED:  # whose message would tell a private key
            raise InvalidKeys(f"{where}: not a JSON Web Key of a kind that is known") from None
        keys[name] = _usable(where, public)
    return keys


def _usable(where: str, key: object) -> _Key:
    """Raises InvalidKeys for a key that can also make tokens, or is too weak."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return _Key(key, "ES256")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _Key(key, "EdDSA")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return _Key(key, "RS256")
    raise InvalidKeys(f"{where}: expected a public key: P-256, Ed25519, or RSA of {_MIN_RSA_BITS} bits or more")
