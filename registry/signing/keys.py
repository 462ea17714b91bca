"""ECDSA P-256 keys in PEM. A key's id is the sha256 of its SubjectPublicKeyInfo in DER, as "sha256:<hex>"."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hotshoe.registry.signing.errors import InvalidKey

MAX_KEY_FILE_BYTES = 64 << 10
# Signatures by RFC 6979: signing again gives the same bytes, and needs no good source of randomness.
_SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_VERIFY = ec.ECDSA(hashes.SHA256())
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What a signature is checked with."""

    key_id: str
    der: bytes  # SubjectPublicKeyInfo

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is this key's over `data`."""
        key = serialization.load_der_public_key(self.der)
        assert isinstance(key, ec.EllipticCurvePublicKey), "checked when it was read"
        try:
            key.verify(signature, data, _VERIFY)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        key = serialization.load_der_public_key(self.der)
        return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """What a signature is made with. Its repr does not tell it."""

    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls) -> "PrivateKey":
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> PublicKey:
        return _public(self._key.public_key())

    def sign(self, data: bytes) -> bytes:
        """The DER-encoded signature over `data`; equal data gives an equal one."""
        return self._key.sign(data, _SIGN)

    def pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def read_public_key(pem: bytes) -> PublicKey:
    """Reads a "PUBLIC KEY" in PEM.

    Raises:
        InvalidKey: it is something else, or of another curve.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except _UNREADABLE:
        raise InvalidKey("expected an ECDSA P-256 public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidKey("expected an ECDSA P-256 public key, not one of another kind")
    return _public(key)


def read_private_key(pem: bytes) -> PrivateKey:
    """Reads a "PRIVATE KEY" in PEM that is not encrypted.

    Raises:
        InvalidKey: it is something else, or of another curve.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _UNREADABLE:
        raise InvalidKey("expected an ECDSA P-256 private key in PEM, not encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidKey("expected an ECDSA P-256 private key, not one of another kind")
    return PrivateKey(key)


def read_public_keys(paths: Iterable[Path]) -> dict[str, PublicKey]:
    """The public keys of PEM files, one in each, by key id.

    Raises:
        InvalidKey: one is none; the message names the file.
        OSError: one cannot be read.
    """
    keys = {}
    for path in paths:
        try:
            key = read_public_key(read_key_file(path))
        except InvalidKey as error:
            raise InvalidKey(f"{path}: {error}") from None
        keys[key.key_id] = key
    return keys


def read_private_key_file(path: Path) -> PrivateKey:
    """The private key of a PEM file. Raises InvalidKey, which names the file, or OSError."""
    data = read_key_file(path)
    try:
        return read_private_key(data)
    except InvalidKey as error:
        raise InvalidKey(f"{path}: {error}") from None


def read_key_file(path: Path) -> bytes:
    """The bytes of a file that is as small as a key's is. Raises InvalidKey or OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InvalidKey(f"{path}: expected a key in PEM, not more than {MAX_KEY_FILE_BYTES} bytes")
    return data


def _public(key: ec.EllipticCurvePublicKey) -> PublicKey:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(f"sha256:{hashlib.sha256(der).hexdigest()}", der)
