"""A store's adapters and a policy: who may be served, what is remembered, and what a change of policy undoes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from signing_policies import rule, write_policy
from store_adapters import lora_files, publish
from store_children import overwrite

from hotshoe.registry.errors import InvalidDocument, SignaturesMissing
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing import policy as policies
from hotshoe.registry.signing import verdict
from hotshoe.registry.signing.bundle import ANNOTATIONS, BUNDLE_FILE, BUNDLE_TYPE, MAX_BUNDLE_BYTES, sign
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import PolicyFile
from hotshoe.registry.verification import Verifier

FIRST, SECOND, STRANGER = PrivateKey.new(), PrivateKey.new(), PrivateKey.new()
TEXT = rule("prod/*", "require", threshold=2) + rule("test/*", "warn") + rule("*", "off")


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the policy; a verifier sees it at once."""
    monkeypatch.setattr(policies, "RELOAD_SECONDS", 0.0)
    return lambda text=TEXT, *keys: write_policy(tmp_path / "policy", text, *(keys or (FIRST, SECOND)))


def attach(registry: Registry, digest: str, document: bytes) -> None:
    registry.attach(digest, document, artifact_type=BUNDLE_TYPE, file_name=BUNDLE_FILE, annotations=ANNOTATIONS)


def test_an_adapter_is_refused_until_enough_keys_have_signed(registry: Registry, policy: Callable[..., Path]) -> None:
    digest = publish(registry, "prod/a", lora_files(1))[0].digest
    verifier = Verifier(registry, PolicyFile(policy()))
    for key, have in ((None, "none there"), (FIRST, "1 there"), (FIRST, "1 there"), (STRANGER, "1 there")):
        if key is not None:
            attach(registry, digest, sign(digest, key))
        with pytest.raises(SignaturesMissing, match=have) as caught:
            verifier.check("prod/a", digest)
    assert "no known key" in str(caught.value)
    attach(registry, digest, sign(digest, SECOND))
    assert set(verifier.check("prod/a", digest).key_ids) == {FIRST.public.key_id, SECOND.public.key_id}


def test_the_name_decides_not_the_bytes(registry: Registry, policy: Callable[..., Path]) -> None:
    digests = {publish(registry, name, lora_files(1))[0].digest for name in ("prod/a", "test/a", "dev/a")}
    [digest] = digests
    assert registry.adapter_names(digest) == ["dev/a", "prod/a", "test/a"]
    verifier = Verifier(registry, PolicyFile(policy()))
    assert verifier.check("dev/a", digest).is_met and verifier.check("dev/a", digest).problem == ""
    assert not verifier.check("test/a", digest).is_met  # warned of, and served
    with pytest.raises(SignaturesMissing, match="prod/a"):
        verifier.check("prod/a", digest)


def test_a_signature_is_no_other_adapters(registry: Registry, policy: Callable[..., Path]) -> None:
    mine, other = (publish(registry, "prod/a", lora_files(seed))[0].digest for seed in (1, 2))
    for key in (FIRST, SECOND):
        attach(registry, mine, sign(mine, key))
        with pytest.raises(InvalidDocument, match="subject"):
            attach(registry, other, sign(mine, key))
    verifier = Verifier(registry, PolicyFile(policy()))
    assert verifier.check("prod/a", mine).is_met
    with pytest.raises(SignaturesMissing):
        verifier.check("prod/a", other)


def test_a_revoked_key_counts_no_more_though_it_did(registry: Registry, policy: Callable[..., Path]) -> None:
    digest = publish(registry, "prod/a", lora_files(1))[0].digest
    for key in (FIRST, SECOND):
        attach(registry, digest, sign(digest, key))
    verifier = Verifier(registry, PolicyFile(policy()))
    assert verifier.check("prod/a", digest).is_met
    policy(f'revoked = ["{FIRST.public.key_id}"]\n{TEXT}')
    with pytest.raises(SignaturesMissing, match="is revoked"):
        verifier.check("prod/a", digest)
    policy()
    assert verifier.check("prod/a", digest).is_met


def test_no_signature_is_computed_twice(
    registry: Registry, policy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish(registry, "prod/a", lora_files(1))[0].digest
    attach(registry, digest, sign(digest, FIRST))
    verifier = Verifier(registry, PolicyFile(policy()))
    computed, verify = [], verdict.verify
    monkeypatch.setattr(verdict, "verify", lambda *arguments: computed.append(arguments[0]) or verify(*arguments))
    reads = []
    monkeypatch.setattr(
        registry, "referrers", lambda *arguments: reads.append(1) or Registry.referrers(registry, *arguments)
    )
    for _ in range(3):
        with pytest.raises(SignaturesMissing):
            verifier.check("prod/a", digest)
    assert len(computed) == 1 and len(reads) == 3
    attach(registry, digest, sign(digest, SECOND))
    for _ in range(3):
        verifier.check("prod/a", digest)
    assert len(computed) == 2 and len(reads) == 4


def test_a_lost_or_rotten_bundle_counts_for_nothing_and_can_be_healed(
    registry: Registry, root: Path, policy: Callable[..., Path]
) -> None:
    digest = publish(registry, "prod/a", lora_files(1))[0].digest
    attach(registry, digest, sign(digest, FIRST))
    attach(registry, digest, sign(digest, SECOND))
    verifier = Verifier(registry, PolicyFile(policy()))
    lost, rotten = registry.referrers(digest, BUNDLE_TYPE)
    (root / "blobs" / "sha256" / lost.document.digest.removeprefix("sha256:")).unlink()
    overwrite(root / "blobs" / "sha256" / rotten.document.digest.removeprefix("sha256:"), sign(digest, STRANGER))
    with pytest.raises(SignaturesMissing, match="none there; one does not count: blob"):
        verifier.check("prod/a", digest)
    for key in (FIRST, SECOND):
        attach(registry, digest, sign(digest, key))
    assert verifier.check("prod/a", digest).is_met


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("artifact_type", {"artifact_type": ""}),
        ("artifact_type", {"artifact_type": "text"}),
        ("artifact_type", {"artifact_type": "text/a b"}),
        ("file_name", {"file_name": "../x"}),
        ("file_name", {"file_name": ".x"}),
        ("file_name", {"file_name": ""}),
        ("document", {"document": b""}),
        ("document", {"document": b"x" * ((1 << 20) + 1)}),
        ("document", {"artifact_type": BUNDLE_TYPE}),
        ("document", {"artifact_type": BUNDLE_TYPE, "document": b" " * (MAX_BUNDLE_BYTES + 1)}),
        ("annotations", {"annotations": {"a": "x" * 5000}}),
        (r"annotations\[a b\]", {"annotations": {"a b": "x"}}),
        (r"annotations\[a\]", {"annotations": {"a": "x\n"}}),
    ],
)
def test_what_may_not_be_attached_is_refused_with_its_field(registry: Registry, field: str, change: dict) -> None:
    digest = publish(registry, "a", lora_files(1))[0].digest
    right = {"document": b"x" * (1 << 20), "artifact_type": "text/x", "file_name": "x", "annotations": {"a": "b"}}
    registry.attach(digest, **right)
    with pytest.raises(InvalidDocument, match=field):
        registry.attach(digest, **(right | change))
