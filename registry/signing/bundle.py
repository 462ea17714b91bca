"""Sigstore bundles v0.3: a DSSE envelope around an in-toto statement whose subject is an adapter's manifest.

    {"mediaType": …bundle.v0.3+json,
     "verificationMaterial": {"publicKey": {"hint": <base64 of the key id's bytes>}, "tlogEntries": []},
     "dsseEnvelope": {"payloadType": "application/vnd.in-toto+json", "payload": <base64 of the statement>,
                      "signatures": [{"sig": <base64 of ECDSA over the payload's pre-authentication encoding>}]}}

As cosign attaches them (its BUNDLE_SPEC), signed with a key and entered in no log.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotshoe.registry.signing.errors import InvalidBundle
from hotshoe.registry.signing.keys import PrivateKey, PublicKey

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLE_FILE = "signature.sigstore.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://sigstore.dev/cosign/sign/v1"
MAX_BUNDLE_BYTES = 64 << 10
# Of the referrer's manifest.
ANNOTATIONS: Mapping[str, str] = {
    "dev.sigstore.bundle.content": "dsse-envelope",
    "dev.sigstore.bundle.predicateType": PREDICATE_TYPE,
}

# What reading a JSON document of the wrong form raises.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One signature, not yet checked. Everything in it may be a lie."""

    payload: bytes
    signature: bytes
    hint: str  # which key made it
    predicate_type: str
    subjects: frozenset[str]  # digests, "sha256:<hex>"

    def check_is_about(self, digest: str) -> None:
        """Raises InvalidBundle unless the statement signs the manifest `digest`."""
        if digest not in self.subjects:
            raise InvalidBundle(f"its subject is not {digest}")
        if self.predicate_type != PREDICATE_TYPE:
            raise InvalidBundle(f"its predicateType is {_shown(self.predicate_type)}, not {PREDICATE_TYPE}")


def sign(digest: str, key: PrivateKey) -> bytes:
    """The bundle in which `key` signs the manifest `digest`, "sha256:<hex>"; equal arguments give equal bytes."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {},
    }
    payload = _compact(statement)
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public.key_id)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    return _compact(bundle)


def verify(document: bytes, digest: str, keys: Mapping[str, PublicKey]) -> str:
    """The id of the one of `keys` that signs the manifest `digest` in a bundle.

    Raises:
        InvalidBundle: none does; the message says why.
    """
    bundle = read_bundle(document)
    bundle.check_is_about(digest)
    data = pre_authentication_encoding(PAYLOAD_TYPE, bundle.payload)
    hinted = [key for key in keys.values() if bundle.hint == _hint(key.key_id)]
    # A hint is only that: where it says nothing that we know, every key is tried.
    for key in hinted or keys.values():
        if key.verifies(bundle.signature, data):
            return key.key_id
    if hinted:
        raise InvalidBundle(f"its signature is not that of key {hinted[0].key_id}, which it names")
    raise InvalidBundle("its signature is of no known key")


def read_bundle(document: bytes) -> Bundle:
    """Reads a bundle; checks its form, not its signature.

    Raises:
        InvalidBundle: it is not one in which a key signs an in-toto statement.
    """
    if len(document) > MAX_BUNDLE_BYTES:
        raise InvalidBundle(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes, not {len(document)}")
    try:
        fields = json.loads(document)
        if fields["mediaType"] != BUNDLE_TYPE:
            raise InvalidBundle(f"its mediaType is {_shown(fields['mediaType'])}, not {BUNDLE_TYPE}")
        envelope = fields["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise InvalidBundle(f"its payloadType is {_shown(envelope['payloadType'])}, not {PAYLOAD_TYPE}")
        [signature] = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        if statement["_type"] != STATEMENT_TYPE:
            raise InvalidBundle(f"its statement is of type {_shown(statement['_type'])}, not {STATEMENT_TYPE}")
        return Bundle(
            payload=payload,
            signature=base64.b64decode(signature["sig"], validate=True),
            hint=str(fields["verificationMaterial"]["publicKey"].get("hint", "")),
            predicate_type=str(statement["predicateType"]),
            subjects=frozenset(f"sha256:{subject['digest']['sha256']}" for subject in statement["subject"]),
        )
    except InvalidBundle:
        raise
    except _MALFORMED as error:
        raise InvalidBundle(f"it is no bundle of a key's signature ({type(error).__name__})") from None


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's: what is signed. "DSSEv1", then each with its length before it."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _hint(key_id: str) -> str:
    """As sigstore-go has it: the base64 of the sha256 that the key id writes in hex."""
    return base64.b64encode(bytes.fromhex(key_id.removeprefix("sha256:"))).decode()


def _compact(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _shown(value: Any) -> str:
    """Something from outside, fit for a message."""
    return ascii(value)[:80] if isinstance(value, str) else f"a {type(value).__name__}"
