"""Adapters to Debian's docker-registry and back, and what ordinary tools make of them there."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker_registry import DockerRegistry
from signing_policies import rule, write_policy
from store_adapters import ia3_files, lora_files, publish, small_base
from store_children import overwrite

from hotshoe.registry.errors import (
    AdapterNotFound,
    InvalidAdapter,
    RemoteDamaged,
    RemoteRefused,
    RemoteUnavailable,
    SignaturesMissing,
)
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.manifest import INDEX_TYPE, AdapterRecord, FileDescriptor, blob_descriptors
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.oci import OciRemote
from hotshoe.registry.remotes.progress import TransferProgress
from hotshoe.registry.remotes.pull import mirror, pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.signing.bundle import ANNOTATIONS, BUNDLE_FILE, BUNDLE_TYPE, sign
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import PolicyFile
from hotshoe.registry.verification import Verifier

EVAL = "application/vnd.hotshoe.eval.v1+json"
NOWHERE = f"sha256:{'0' * 64}"


def with_documents(registry: Registry, name: str, seed: int = 1) -> AdapterRecord:
    """A published adapter with two documents about it."""
    record, _ = publish(registry, name, lora_files(seed), tags=["v1"])
    for score in (1, 2):
        document = json.dumps({"score": score, "seed": seed}).encode()
        registry.attach(record.digest, document, artifact_type=EVAL, file_name="eval.json", annotations={"by": "me"})
    return record


def bytes_of(registry: Registry, digest: str) -> bytes:
    with registry.read_blob(digest) as file:
        return file.read()


def test_what_is_pushed_comes_back_byte_for_byte_with_its_documents(
    registry: Registry, other: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    record = with_documents(registry, "round/trip")
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1", "latest"])
    assert remote.list_tags("round/trip") == ["latest", "v1"]
    assert remote.resolve("round/trip", "v1") == record.digest
    pulled, created = pull(other, remote, "v1", name="round/trip", tags=["v1"], base=small_base())
    assert created and pulled == record
    assert bytes_of(other, record.digest) == bytes_of(registry, record.digest)
    for file in record.files:
        assert bytes_of(other, file.digest) == bytes_of(registry, file.digest)
    assert other.referrers(record.digest) == registry.referrers(record.digest) and other.fsck().is_clean
    again = pull(other, remote, record.digest, name="round/trip", tags=["v1"])
    assert again == (record, False) and len(other.referrers(record.digest)) == 2


def test_nothing_is_sent_twice_and_blobs_move_between_names(
    registry: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    record = with_documents(registry, "twice")
    remote = oci(docker.host)
    steps: list[TransferProgress] = []
    push(registry, record, remote, tags=["v1"], progress=steps.append)
    by_digest = {step.blob.digest: step.completed_bytes for step in steps}
    sizes = {blob.digest: blob.size_bytes for blob in blob_descriptors(bytes_of(registry, record.digest))}
    assert sizes.items() <= by_digest.items()
    sent: list[str] = []
    put_blob = remote.put_blob
    remote.put_blob = lambda *args, **kwargs: (sent.append(args[1].digest), put_blob(*args, **kwargs))  # type: ignore
    push(registry, record, remote, tags=["v2"])
    assert sent == [] and remote.capabilities.mounts is None
    push(registry, record, remote, name="renamed", tags=["v1"])
    assert sent and remote.capabilities.mounts is True
    assert remote.resolve("renamed", "v1") == record.digest


def test_referrers_lie_under_the_fallback_tag_which_is_no_tag(
    registry: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    record = with_documents(registry, "documents")
    remote = oci(docker.host)
    push(registry, record, remote, tags=["b", "a"])
    push(registry, record, remote, tags=["c"])
    fallback = f"sha256-{record.digest.removeprefix('sha256:')}"
    listed: Any = docker.get("/v2/pre/documents/tags/list").json()
    assert fallback in listed["tags"] and remote.list_tags("documents") == ["a", "b", "c"]
    index: Any = docker.get(f"/v2/pre/documents/manifests/{fallback}", headers={"Accept": INDEX_TYPE}).json()
    digests = [referrer.digest for referrer in reversed(registry.referrers(record.digest))]
    assert (
        [entry["digest"] for entry in index["manifests"]]
        == digests
        == remote.list_referrers("documents", record.digest)
    )
    assert {entry["artifactType"] for entry in index["manifests"]} == {EVAL}
    assert remote.capabilities.referrers is False


def test_what_is_not_there_is_not_found(docker: DockerRegistry, oci: Callable[..., OciRemote]) -> None:
    remote = oci(docker.host)
    for ask in (
        lambda: remote.resolve("nobody", "v1"),
        lambda: remote.read_manifest("nobody", NOWHERE),
        lambda: remote.list_tags("nobody"),
        lambda: remote.open_blob("nobody", FileDescriptor("x", NOWHERE, 1), 0).__enter__(),
    ):
        with pytest.raises(AdapterNotFound, match=f"oci://{docker.host}/pre: no .*nobody"):
            ask()
    assert remote.list_referrers("nobody", NOWHERE) == []
    assert not remote.has_blob("nobody", FileDescriptor("x", NOWHERE, 1))
    assert not remote.reads_blob("nobody", FileDescriptor("x", NOWHERE, 1))


def test_a_mirror_that_answers_500_does_not_have_it(
    registry: Registry,
    other: Registry,
    docker: DockerRegistry,
    own_docker: Callable[..., DockerRegistry],
    oci: Callable[..., OciRemote],
) -> None:
    record = with_documents(registry, "mirrored")
    push(registry, record, oci(docker.host), tags=["v1"])
    through = own_docker(mirrors=docker.url)
    assert through.get(f"/v2/pre/mirrored/manifests/{NOWHERE}").status_code == 500
    remote = oci(through.host)
    with pytest.raises(AdapterNotFound, match="500"):
        remote.read_manifest("mirrored", NOWHERE)
    assert pull(other, remote, "v1", name="mirrored").record.digest == record.digest
    assert other.referrers(record.digest) == registry.referrers(record.digest)
    with pytest.raises(RemoteRefused, match="405"):
        push(registry, publish(registry, "mirrored", lora_files(7))[0], remote)


def test_a_blob_that_the_registry_only_remembers_is_sent_again(
    registry: Registry, own_docker: Callable[..., DockerRegistry], oci: Callable[..., OciRemote], other: Registry
) -> None:
    """The registry's garbage is collected beneath it: HEAD still says that the blob is there."""
    record, _ = publish(registry, "stale", lora_files(1))
    docker = own_docker()
    remote = oci(docker.host)
    blobs = blob_descriptors(bytes_of(registry, record.digest))
    for blob in blobs:
        with registry.read_blob(blob.digest) as source:
            remote.put_blob("stale", blob, source, sent=lambda count: None)
    docker.collect_garbage()
    assert all(remote.has_blob("stale", blob) for blob in blobs)
    assert not any(remote.reads_blob("stale", blob) for blob in blobs)
    push(registry, record, remote, tags=["v1"])
    assert all(remote.reads_blob("stale", blob) for blob in blobs)
    assert pull(other, remote, "v1", name="stale").record.digest == record.digest


def test_a_blob_that_never_comes_back_fails_the_push(
    registry: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "gone", lora_files(1))
    remote = oci(docker.host)
    remote.reads_blob = lambda name, blob: blob.file_name != "adapter_config.json"  # type: ignore[method-assign]
    with pytest.raises(RemoteDamaged, match=r"adapter_config\.json.*does not give it back"):
        push(registry, record, remote, tags=["v1"])
    with pytest.raises(AdapterNotFound):
        remote.resolve("gone", "v1")


def test_mirror_brings_every_tag_and_leaves_ours(
    registry: Registry, other: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    remote = oci(docker.host)
    first, second = with_documents(registry, "many", 1), publish(registry, "many", ia3_files(2))[0]
    push(registry, first, remote, tags=["v1", "old"])
    push(registry, second, remote, tags=["v2", "latest"])
    publish(other, "many", lora_files(3), tags=["mine", "latest"])
    pulled = list(mirror(other, remote, "many"))
    assert [(one.record.digest, one.created) for one in pulled] == [(second.digest, True), (first.digest, True)]
    assert other.resolve("many:latest").digest == second.digest == other.resolve("many:v2").digest
    assert other.resolve("many:old").digest == first.digest
    assert other.resolve("many:mine").digest not in (first.digest, second.digest)
    assert not any(one.created for one in mirror(other, remote, "many"))


def test_a_registry_that_is_down_is_unavailable_by_name(
    registry: Registry, own_docker: Callable[..., DockerRegistry], oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "down", lora_files(1))
    docker = own_docker()
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    docker.stop()
    for use in (lambda: remote.resolve("down", "v1"), lambda: push(registry, record, remote)):
        with pytest.raises(RemoteUnavailable, match=f"oci://{docker.host}/pre: "):
            use()
    docker.start()
    assert remote.resolve("down", "v1") == record.digest


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")
def test_skopeo_reads_what_we_push_and_we_read_what_skopeo_pushes(
    registry: Registry,
    root: Path,
    other: Registry,
    docker: DockerRegistry,
    oci: Callable[..., OciRemote],
    tmp_path: Path,
) -> None:
    record, _ = publish(registry, "tools", lora_files(1), tags=["v1"])
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    there = f"docker://{docker.host}/pre/tools:v1"
    _skopeo("copy", "--src-tls-verify=false", there, f"dir:{tmp_path / 'copy'}")
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == bytes_of(registry, record.digest)
    _skopeo("copy", "--dest-tls-verify=false", f"oci:{root}:tools:v1", f"docker://{docker.host}/pre/by-skopeo:v1")
    assert pull(other, remote, "v1", name="by-skopeo").record.digest == record.digest


def _skopeo(*arguments: str) -> None:
    subprocess.run(["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True, timeout=200)


def test_a_transfer_that_nobody_waits_for_ends_and_goes_on_the_next_time(
    registry: Registry, other: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    readme = bytes(range(256)) * 3600
    record, _ = publish(registry, "given-up", {**lora_files(1), "README.md": readme})
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])

    class Enough(Exception):
        pass

    def give_up(step: TransferProgress) -> None:
        if step.blob.file_name == "README.md" and step.completed_bytes > 200_000:
            raise Enough(step.completed_bytes)

    with pytest.raises(Enough) as given_up:
        pull(other, remote, "v1", name="given-up", progress=give_up)
    assert other.list() == ([], "")
    [blob] = [file for file in record.files if file.file_name == "README.md"]
    with other.open_upload(blob) as upload:
        assert upload.committed_bytes == given_up.value.args[0]  # a fast machine reads the whole file at once
    assert pull(other, remote, "v1", name="given-up").created and other.fsck().is_clean
    with pytest.raises(Enough):
        push(registry, record, remote, name="given-up/too", progress=give_up)
    push(registry, record, remote, name="given-up/too", tags=["v1"])


def test_another_hotshoe_is_a_registry_with_an_api_for_referrers(
    registry: Registry, other: Registry, oci: Callable[..., OciRemote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotshoe.registry.remotes.oci._TAGS_A_PAGE", 1)
    record = with_documents(registry, "team/peer")
    registry.update_tag("team/peer", "live", record.digest, "")
    server = registry_http_server("127.0.0.1", 0, Distribution(registry))
    server.start()
    try:
        remote = oci(f"oci://127.0.0.1:{server.port}")
        assert remote.list_tags("team/peer") == ["live", "v1"]
        assert [one.record.tags for one in mirror(other, remote, "team/peer", base=small_base())] == [("live", "v1")]
        assert remote.capabilities.referrers is True
        assert other.referrers(record.digest) == registry.referrers(record.digest) and other.fsck().is_clean
        with pytest.raises(RemoteRefused):
            push(other, publish(other, "team/peer", lora_files(9))[0], remote)
        with pytest.raises(AdapterNotFound):
            pull(other, remote, NOWHERE, name="team/peer")
    finally:
        server.stop()


def test_signatures_come_with_what_they_vouch_for(
    registry: Registry, other: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote], tmp_path: Path
) -> None:
    record, _ = publish(registry, "prod/a", lora_files(1))
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    pull(other, remote, "v1", name="prod/a")
    key = PrivateKey.new()
    verifier = Verifier(other, PolicyFile(write_policy(tmp_path / "policy", rule("*", "require"), key)))
    with pytest.raises(SignaturesMissing):
        verifier.check("prod/a", record.digest)
    bundle = sign(record.digest, key)
    registry.attach(record.digest, bundle, artifact_type=BUNDLE_TYPE, file_name=BUNDLE_FILE, annotations=ANNOTATIONS)
    push(registry, record, remote)
    pull(other, remote, "v1", name="prod/a")
    assert verifier.check("prod/a", record.digest).key_ids == (key.public.key_id,)


@pytest.mark.parametrize("damage", ["flipped", "gone", "empty"])
def test_what_rots_here_is_healed_by_pulling_it_again(
    damage: str,
    registry: Registry,
    other: Registry,
    docker: DockerRegistry,
    oci: Callable[..., OciRemote],
    tmp_path: Path,
) -> None:
    record, _ = publish(registry, "rot", lora_files(1))
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    pull(other, remote, "v1", name="rot", tags=["v1"])
    blob = tmp_path / "other" / "blobs" / "sha256" / record.files[0].digest.removeprefix("sha256:")
    if damage == "gone":
        blob.unlink()
    else:
        overwrite(blob, blob.read_bytes()[:-1] + b"?" if damage == "flipped" else b"")
    pull(other, remote, "v1", name="rot")  # which finds the damage, too
    assert other.adapter_files(record.digest) and other.fsck().is_clean


def test_what_is_larger_than_the_store_takes_is_refused_by_name(
    registry: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote], tmp_path: Path
) -> None:
    record, _ = publish(registry, "large", lora_files(1))
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    small = Registry(tmp_path / "small", max_blob_bytes=500)
    with pytest.raises(InvalidAdapter, match=f"adapter_model.safetensors: .*expected 0 to 500 .*oci://{docker.host}"):
        pull(small, remote, "v1", name="large")
    assert small.list() == ([], "")
    small.close()


def test_other_tools_tags_are_passed_over(
    registry: Registry, other: Registry, docker: DockerRegistry, oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "mixed", lora_files(1))
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    manifest = bytes_of(registry, record.digest)
    for tag in ("under__score", f"sha256-{'0' * 64}.sig"):
        remote.set_tag("mixed", tag, manifest)
    assert remote.list_tags("mixed") == ["under__score", "v1"]
    assert [one.record.tags for one in mirror(other, remote, "mixed")] == [("v1",)]
