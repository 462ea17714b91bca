"""What both clients sign and verify. Does no I/O; cryptography is imported by those who use it only."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from hotshoe.clients.errors import DataLoss
from hotshoe.clients.registry_messages import attach_request
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.registry.signing.keys import PrivateKey
    from hotshoe.registry.signing.policy import Policy
    from hotshoe.registry.signing.verdict import Verdict

# As hotshoe.registry.signing.bundle has them.
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES = 64 << 10
FILE_PATH = "org.cncf.model.filepath"  # of a layer


def sign_request(adapter: registry.Adapter, key: "PrivateKey") -> registry.AttachReferrerRequest:
    """The message that attaches the key's signature to an adapter, by its digest: the tag may move meanwhile."""
    from hotshoe.registry.signing import bundle

    return attach_request(
        f"{adapter.name}@{adapter.digest}",
        bundle.sign(adapter.digest, key),
        artifact_type=bundle.BUNDLE_TYPE,
        file_name=bundle.BUNDLE_FILE,
        annotations=bundle.ANNOTATIONS,
    )


def bundle_digests(adapter: registry.Adapter) -> list[str]:
    """The bundles about an adapter that are small enough to be any."""
    return [
        referrer.document.digest
        for referrer in adapter.referrers
        if referrer.artifact_type == BUNDLE_TYPE and referrer.document.size_bytes <= MAX_BUNDLE_BYTES
    ]


def check_manifest(adapter: registry.Adapter, manifest: bytes) -> None:
    """Raises DataLoss unless a manifest, which has the adapter's digest, names the very files that the server does."""
    try:
        layers = json.loads(manifest)["layers"]
        named = {(layer["annotations"][FILE_PATH], layer["digest"], layer["size"]) for layer in layers}
    except (ValueError, KeyError, TypeError, RecursionError):
        named = None
    if named != {(blob.file_name, blob.digest, blob.size_bytes) for blob in adapter.blobs}:
        raise DataLoss(
            f"{adapter.name}@{adapter.digest}: the server names other files than the manifest",
            status=grpc.StatusCode.DATA_LOSS,
        )


def judge(adapter: registry.Adapter, policy: "Policy", bundles: Sequence[bytes]) -> "Verdict":
    """Holds an adapter's bundles against a policy."""
    from hotshoe.registry.signing import verdict

    return verdict.judge(policy, name=adapter.name, digest=adapter.digest, bundles=bundles)
