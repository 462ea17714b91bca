"""Bundles: accepted by verifiers that are not ours, refused by ours after any change, whatever the change."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from hotshoe.registry.signing.bundle import (
    BUNDLE_TYPE,
    MAX_BUNDLE_BYTES,
    PAYLOAD_TYPE,
    pre_authentication_encoding,
    read_bundle,
    sign,
    verify,
)
from hotshoe.registry.signing.errors import InvalidBundle
from hotshoe.registry.signing.keys import PrivateKey

DIGEST, OTHER = f"sha256:{'a1' * 32}", f"sha256:{'b2' * 32}"
KEY, STRANGER = PrivateKey.new(), PrivateKey.new()
KEYS = {KEY.public.key_id: KEY.public}
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed (apt: openssl)")


def signed(statement: Any, *, key: PrivateKey = KEY, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """A bundle around any statement, rightly signed."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    bundle = json.loads(sign(DIGEST, key))
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    bundle["dsseEnvelope"] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(bundle).encode()


def statement_of(bundle: bytes) -> Any:
    return json.loads(read_bundle(bundle).payload)


def changed(path: tuple[str | int, ...], value: Any, document: bytes | None = None) -> bytes:
    """A bundle in which one field is another."""
    bundle = json.loads(document or sign(DIGEST, KEY))
    at = bundle
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(bundle).encode()


def test_a_bundle_is_what_sigstore_and_cosign_say() -> None:
    bundle = json.loads(sign(DIGEST, KEY))
    assert bundle["mediaType"] == BUNDLE_TYPE == "application/vnd.dev.sigstore.bundle.v0.3+json"
    hint = base64.b64decode(bundle["verificationMaterial"]["publicKey"]["hint"])
    assert KEY.public.key_id == f"sha256:{hint.hex()}"
    assert statement_of(sign(DIGEST, KEY)) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": "a1" * 32}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    assert verify(sign(DIGEST, KEY), DIGEST, KEYS) == KEY.public.key_id
    assert sign(DIGEST, KEY) == sign(DIGEST, KEY) != sign(OTHER, KEY)


@needs_openssl
def test_openssl_verifies_the_envelope(tmp_path: Path) -> None:
    envelope = json.loads(sign(DIGEST, KEY))["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    # Written out here once more, as DSSE's protocol.md has it.
    signed_bytes = b" ".join([b"DSSEv1", b"28", b"application/vnd.in-toto+json", str(len(payload)).encode(), payload])
    (tmp_path / "key.pem").write_bytes(KEY.public.pem())
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = [
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        str(tmp_path / "key.pem"),
        "-signature",
        str(tmp_path / "signature"),
    ]
    for data, verdict in ((signed_bytes, 0), (signed_bytes + b" ", 1)):
        assert subprocess.run(command, input=data, capture_output=True, timeout=200).returncode == verdict


def test_securesystemslib_verifies_the_envelope() -> None:
    value = json.loads(sign(DIGEST, KEY))["dsseEnvelope"]
    # Its reader wants a key id beside each signature, which Sigstore's bundles leave out.
    envelope = Envelope.from_dict({**value, "signatures": [{**value["signatures"][0], "keyid": KEY.public.key_id}]})
    key = SSlibKey(KEY.public.key_id, "ecdsa", "ecdsa-sha2-nistp256", {"public": KEY.public.pem().decode()})
    assert envelope.verify([key], 1) == {KEY.public.key_id: key}


@pytest.mark.parametrize(
    ("why", "bundle"),
    [
        ("its subject is not", sign(OTHER, KEY)),
        ("its subject is not", signed({**statement_of(sign(DIGEST, KEY)), "subject": []})),
        ("no known key", sign(DIGEST, STRANGER)),
        ("predicateType", signed({**statement_of(sign(DIGEST, KEY)), "predicateType": "https://slsa.dev/provenance/v1"})),
        ("of type", signed({**statement_of(sign(DIGEST, KEY)), "_type": "https://in-toto.io/Statement/v0.1"})),
        ("payloadType", signed(statement_of(sign(DIGEST, KEY)), payload_type="application/json")),
        ("mediaType", changed(("mediaType",), "application/vnd.dev.sigstore.bundle.v0.2+json")),
        ("which it names", changed(("dsseEnvelope", "signatures", 0, "sig"), base64.b64encode(KEY.sign(b"")).decode())),
        ("no bundle", changed(("dsseEnvelope", "signatures"), [])),
        ("no bundle", changed(("dsseEnvelope", "signatures"), [{"sig": ""}] * 2)),
        ("no bundle", changed(("verificationMaterial",), {"certificate": {"rawBytes": "AAAA"}})),
        ("no bundle", changed(("dsseEnvelope", "payload"), "!")),
        ("no bundle", signed(b"[" * 40_000)),
        ("no bundle", b"[" * MAX_BUNDLE_BYTES),
        ("no bundle", b"9" * MAX_BUNDLE_BYTES),
        ("no bundle", b""),
        ("at most", sign(DIGEST, KEY) + b" " * MAX_BUNDLE_BYTES),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_what_does_not_sign_the_digest_is_refused_with_the_reason(why: str, bundle: bytes) -> None:
    with pytest.raises(InvalidBundle, match=why):
        verify(bundle, DIGEST, KEYS)


def test_another_payload_is_refused_under_a_signature_that_was_right() -> None:
    """The payload of one bundle beside the signature of another."""
    for mine, theirs in ((sign(DIGEST, KEY), sign(OTHER, KEY)), (sign(OTHER, KEY), sign(DIGEST, KEY))):
        payload = json.loads(theirs)["dsseEnvelope"]["payload"]
        for digest in (DIGEST, OTHER):
            with pytest.raises(InvalidBundle):
                verify(changed(("dsseEnvelope", "payload"), payload, mine), digest, KEYS)


def test_a_hint_is_no_more_than_that() -> None:
    both = {STRANGER.public.key_id: STRANGER.public, **KEYS}
    for hint in ("", "nobody", 7, None):
        bundle = changed(("verificationMaterial", "publicKey", "hint"), hint)
        assert verify(bundle, DIGEST, both) == KEY.public.key_id
    lie = changed(
        ("verificationMaterial", "publicKey", "hint"),
        json.loads(sign(DIGEST, STRANGER))["verificationMaterial"]["publicKey"]["hint"],
    )
    with pytest.raises(InvalidBundle, match="which it names"):
        verify(lie, DIGEST, both)


@given(st.integers(0, len(sign(DIGEST, KEY)) - 1))
def test_a_cut_bundle_is_refused(length: int) -> None:
    with pytest.raises(InvalidBundle):
        verify(sign(DIGEST, KEY)[:length], DIGEST, KEYS)


@given(st.integers(0, len(sign(DIGEST, KEY)) - 1), st.integers(1, 255))
def test_a_changed_byte_never_makes_it_say_something_else(at: int, flip: int) -> None:
    bundle = bytearray(sign(DIGEST, KEY))
    bundle[at] ^= flip
    try:
        assert verify(bytes(bundle), DIGEST, KEYS) == KEY.public.key_id  # the hint, or base64's unused bits
        assert read_bundle(bytes(bundle)).payload == read_bundle(sign(DIGEST, KEY)).payload
    except InvalidBundle:
        pass
    with pytest.raises(InvalidBundle):
        verify(bytes(bundle), OTHER, KEYS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = (
    ("mediaType",), ("dsseEnvelope",), ("dsseEnvelope", "payload"), ("dsseEnvelope", "payloadType"),
    ("dsseEnvelope", "signatures"), ("dsseEnvelope", "signatures", 0), ("dsseEnvelope", "signatures", 0, "sig"),
    ("verificationMaterial",), ("verificationMaterial", "publicKey"), ("verificationMaterial", "publicKey", "hint"),
)  # fmt: skip
STATEMENT_PATHS = (
    ("_type",), ("predicateType",), ("subject",), ("subject", 0), ("subject", 0, "digest"),
    ("subject", 0, "digest", "sha256"),
)  # fmt: skip


def assert_refused_or_mine(bundle: bytes) -> None:
    """Nothing but our own exception leaves, and nobody else's word is taken for the key's."""
    try:
        assert verify(bundle, DIGEST, KEYS) == KEY.public.key_id
        assert DIGEST in read_bundle(bundle).subjects
    except InvalidBundle as error:
        str(error).encode()  # a message that can be printed
    with pytest.raises(InvalidBundle):
        verify(bundle, OTHER, KEYS)


@given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=64))
def test_any_document_is_read_or_refused(document: bytes) -> None:
    with pytest.raises(InvalidBundle):
        verify(document, DIGEST, KEYS)


@given(st.sampled_from(PATHS), JSON)
def test_a_field_of_any_type_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    assert_refused_or_mine(changed(path, value))


@given(st.sampled_from(STATEMENT_PATHS), JSON)
def test_a_signed_statement_of_any_form_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    statement = json.dumps(statement_of(sign(DIGEST, KEY))).encode()
    assert_refused_or_mine(signed(changed(path, value, statement)))


def test_without_keys_nothing_is_verified() -> None:
    with pytest.raises(InvalidBundle, match="no known key"):
        verify(sign(DIGEST, KEY), DIGEST, {})
