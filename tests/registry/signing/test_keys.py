"""Keys in PEM, and ids that openssl computes, too."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from hotshoe.registry.signing.errors import InvalidKey
from hotshoe.registry.signing.keys import (
    MAX_KEY_FILE_BYTES,
    PrivateKey,
    read_key_file,
    read_private_key,
    read_private_key_file,
    read_public_key,
    read_public_keys,
)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed (apt: openssl)")
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def test_a_key_reads_back_as_it_was_written_and_signs_alike() -> None:
    key = PrivateKey.new()
    again, public = read_private_key(key.pem()), read_public_key(key.public.pem())
    assert again.public == key.public == public
    assert again.sign(b"data") == key.sign(b"data")
    assert public.verifies(key.sign(b"data"), b"data")
    assert not public.verifies(key.sign(b"data"), b"date") and not public.verifies(b"", b"data")
    assert not PrivateKey.new().public.verifies(key.sign(b"data"), b"data")


@needs_openssl
def test_the_id_is_the_sha256_of_the_der_that_openssl_writes(tmp_path: Path) -> None:
    made = subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"], check=True, capture_output=True, timeout=200
    ).stdout
    (tmp_path / "key.pem").write_bytes(made)
    der = ["openssl", "pkey", "-in", str(tmp_path / "key.pem"), "-pubout", "-outform", "DER"]
    written = subprocess.run(der, check=True, capture_output=True, timeout=200).stdout
    assert read_private_key(made).public.key_id == f"sha256:{hashlib.sha256(written).hexdigest()}"


def test_keys_of_another_kind_are_refused() -> None:
    others = (
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    )
    for other in others:
        with pytest.raises(InvalidKey, match="P-256"):
            read_private_key(other.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
        public = other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(InvalidKey, match="P-256"):
            read_public_key(public)


def test_an_encrypted_key_and_swapped_halves_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InvalidKey, match="in PEM, not encrypted$"):
        read_private_key(key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")))
    mine = PrivateKey.new()
    with pytest.raises(InvalidKey, match="private key"):
        read_private_key(mine.public.pem())
    with pytest.raises(InvalidKey, match="public key"):
        read_public_key(mine.pem())


def test_a_file_that_holds_no_private_key_is_named(tmp_path: Path) -> None:
    key = PrivateKey.new()
    (tmp_path / "mine.pem").write_bytes(key.pem())
    assert read_private_key_file(tmp_path / "mine.pem").public == key.public
    (tmp_path / "mine.pem.pub").write_bytes(key.public.pem())
    with pytest.raises(InvalidKey, match=r"mine\.pem\.pub: expected an ECDSA P-256 private key"):
        read_private_key_file(tmp_path / "mine.pem.pub")


@given(st.binary(max_size=200) | st.binary(max_size=90).map(lambda data: PrivateKey.new().public.pem()[:90] + data))
def test_no_bytes_make_a_reader_fail_otherwise(data: bytes) -> None:
    for read in (read_public_key, read_private_key):
        with pytest.raises(InvalidKey):
            read(data)


def test_a_directory_of_keys_names_the_file_that_is_none(tmp_path: Path) -> None:
    first, second = PrivateKey.new().public, PrivateKey.new().public
    (tmp_path / "a.pem").write_bytes(first.pem())
    (tmp_path / "b.pem").write_bytes(second.pem())
    assert read_public_keys(tmp_path.glob("*.pem")) == {first.key_id: first, second.key_id: second}
    (tmp_path / "c.pem").write_bytes(b"nothing")
    with pytest.raises(InvalidKey, match=r"c\.pem"):
        read_public_keys(tmp_path.glob("*.pem"))
    (tmp_path / "d.pem").write_bytes(b"x" * (MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(InvalidKey, match="not more than"):
        read_key_file(tmp_path / "d.pem")


def test_a_private_key_does_not_show_itself() -> None:
    key = PrivateKey.new()
    assert "PRIVATE" not in repr(key) and str(key.pem()) not in repr(key)
