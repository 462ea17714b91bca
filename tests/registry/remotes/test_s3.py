"""Adapters to a real S3 server (SeaweedFS) and back; tags that are compared and set."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import Answer, Fault, FaultProxy, endless
from seaweed import Seaweed
from store_adapters import descriptor, lora_files, publish, small_base, upload

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import (
    AdapterNotFound,
    RegistryError,
    RemoteDamaged,
    RemoteRefused,
    RemoteUnavailable,
    TagMoved,
)
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.pull import mirror, pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.registry.remotes.s3 import S3Remote

NOWHERE = f"sha256:{'0' * 64}"
HURRY = Patience(silence_seconds=0.3, exchange_seconds=2.0, attempts=2, backoff_seconds=0.01)
OpenS3 = Callable[[], S3Remote]


def key(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def test_what_is_pushed_comes_back_with_its_documents(registry: Registry, other: Registry, s3: OpenS3) -> None:
    record, _ = publish(registry, "team/a", lora_files(1), tags=["v1"])
    for score in (b"1", b"2"):
        registry.attach(record.digest, score, artifact_type="text/eval", file_name="eval", annotations={})
    push(registry, record, s3(), tags=["v1", "latest"])
    remote = s3()
    assert remote.list_tags("team/a") == ["latest", "v1"] and remote.resolve("team/a", "v1") == record.digest
    pulled = pull(other, remote, "v1", name="team/a", tags=["v1"], base=small_base())
    assert pulled == (record, True)
    assert sorted(other.referrers(record.digest), key=str) == sorted(registry.referrers(record.digest), key=str)
    assert other.fsck().is_clean
    assert not any(created for _, created in mirror(other, remote, "team/a"))


def test_a_large_blob_goes_in_parts_and_comes_from_an_offset(registry: Registry, other: Registry, s3: OpenS3) -> None:
    data = bytes(range(256)) * (70 << 10)  # 17.5 MiB
    blob = descriptor(data, "adapter_model.safetensors")
    upload(registry, {blob.file_name: data})
    remote = s3()
    sent: list[int] = []
    path = registry._blobs.path(blob.digest)
    with path.open("rb") as source:
        remote.put_blob("a", blob, source, sent=sent.append)
    assert sent == sorted(sent) and sent[-1] == len(data) and len(sent) > 10
    assert remote.has_blob("a", blob) and remote.reads_blob("a", blob)
    for offset in (0, 1, 8 << 20, len(data) - 1, len(data)):
        with remote.open_blob("a", blob, offset) as chunks:
            assert b"".join(chunks) == data[offset:]


def test_what_is_not_there_is_not_found(s3: OpenS3) -> None:
    remote = s3()
    for ask in (
        lambda: remote.resolve("nobody", "v1"),
        lambda: remote.read_manifest("nobody", NOWHERE),
        lambda: remote.list_tags("nobody"),
    ):
        with pytest.raises(AdapterNotFound, match="s3://adapters.*nobody"):
            ask()
    assert remote.list_referrers("nobody", NOWHERE) == []
    assert not remote.has_blob("nobody", descriptor(b"x")) and not remote.reads_blob("nobody", descriptor(b"x"))


def test_a_tag_moves_only_from_where_it_was_expected(registry: Registry, s3: OpenS3) -> None:
    remote = s3()
    first, second = (publish(registry, "a", lora_files(seed))[0] for seed in (1, 2))
    push(registry, first, remote, tags=["live"], expected="")
    with pytest.raises(TagMoved, match="s3://.*//a:live points at sha256:"):
        push(registry, second, remote, tags=["live"], expected="")
    with pytest.raises(TagMoved):
        push(registry, second, remote, tags=["live"], expected=NOWHERE)
    assert remote.resolve("a", "live") == first.digest
    push(registry, second, remote, tags=["live"], expected=first.digest)
    assert remote.resolve("a", "live") == second.digest
    push(registry, first, remote, tags=["live"])
    assert remote.resolve("a", "live") == first.digest


def test_of_many_who_move_a_tag_from_one_place_one_wins(s3: OpenS3) -> None:
    manifests = [f'{{"n":{number}}}'.encode() for number in range(8)]
    expected = ""
    for _ in range(5):
        barrier = threading.Barrier(len(manifests))

        def move(manifest: bytes, barrier: threading.Barrier = barrier, expected: str = expected) -> bool:
            remote = s3()
            barrier.wait()
            try:
                remote.set_tag("a", "live", manifest, expected=expected)
            except (TagMoved, RemoteUnavailable):
                return False
            return True

        contenders = [manifest for manifest in manifests if digest_of(manifest) != expected]
        barrier = threading.Barrier(len(contenders))
        with ThreadPoolExecutor(len(contenders)) as pool:
            won = list(pool.map(lambda manifest, barrier=barrier: move(manifest, barrier), contenders))
        assert sum(won) == 1
        expected = digest_of(contenders[won.index(True)])
        assert s3().resolve("a", "live") == expected


def test_a_blob_is_made_once(registry: Registry, s3: OpenS3, seaweed: Seaweed) -> None:
    """An object that lies in a blob's place is not replaced, and not taken for it."""
    remote = s3()
    record, _ = publish(registry, "a", lora_files(1))
    remote._obstore.put(remote._store, key(record.files[0].digest), b"something else")
    with pytest.raises(RemoteDamaged, match="other bytes lie in its place"):
        push(registry, record, remote, tags=["v1"])
    with pytest.raises(AdapterNotFound):
        remote.resolve("a", "v1")
    assert bytes(remote._obstore.get(remote._store, key(record.files[0].digest)).bytes()) == b"something else"


@pytest.mark.parametrize("spoilt", ["weights", "manifest", "tag", "document", "longer", "gone"])
def test_nothing_spoilt_is_kept(spoilt: str, registry: Registry, other: Registry, s3: OpenS3) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    document = registry.attach(record.digest, b"12", artifact_type="text/eval", file_name="eval", annotations={})
    remote = s3()
    push(registry, record, remote, tags=["v1"])
    place = {
        "weights": key(record.files[0].digest),
        "manifest": key(record.digest),
        "tag": "refs/a/v1",
        "document": key(document.document.digest),
    }.get(spoilt, key(record.files[1].digest))
    data = bytearray(bytes(remote._obstore.get(remote._store, place).bytes()))
    data[-1] ^= 1
    if spoilt == "gone":
        remote._obstore.delete(remote._store, place)
    else:
        remote._obstore.put(remote._store, place, bytes(data) + b"more" * (spoilt == "longer"))
    with pytest.raises(RegistryError, match="s3://adapters"):
        pull(other, remote, "v1", name="a", tags=["v1"])
    assert other.list() == ([], "") and other.fsck().is_clean


def test_a_blob_comes_in_spans_of_which_each_ends_in_time(
    registry: Registry, other: Registry, s3: OpenS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotshoe.registry.remotes.s3._SPAN_BYTES", 100)
    record, _ = publish(registry, "a", lora_files(1))
    push(registry, record, s3(), tags=["v1"])
    assert pull(other, s3(), "v1", name="a").record == record and other.fsck().is_clean


def flipped(answer: Answer) -> None:
    answer.write(answer.head() + answer.body[:-1] + bytes([answer.body[-1] ^ 4]))


def longer(answer: Answer) -> None:
    answer.write(answer.head(Content_Length=str(len(answer.body) + 4)) + answer.body + b"more")


def without_end(answer: Answer) -> None:
    answer.write(answer.head(Content_Length="", Transfer_Encoding="chunked"))
    for chunk in endless(b"10000\r\n" + b"x" * 65_536 + b"\r\n"):
        answer.write(chunk)


def stalled(answer: Answer) -> None:
    answer.write(answer.head() + answer.body[:9])
    answer.hold(100)


def redirected(answer: Answer) -> None:
    answer.status = 307
    answer.write(answer.head(Location="http://169.254.169.254/latest/", Content_Length="0"))


FAULTS: dict[str, Fault] = {
    "flipped": flipped,
    "cut": lambda answer: answer.write(answer.head() + answer.body[:9]),
    "longer": longer,
    "without end": without_end,
    "another length": lambda answer: answer.write(answer.head(Content_Length="999999") + answer.body),
    "another range": lambda answer: answer.write(answer.head(Content_Range="bytes 5-9/10") + answer.body),
    "stalled": stalled,
    "dropped": lambda answer: None,
    "redirected": redirected,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_that_is_spoilt_on_the_way_is_kept(
    fault: str, registry: Registry, other: Registry, s3: OpenS3, seaweed: Seaweed
) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    push(registry, record, s3(), tags=["v1"])
    proxy = FaultProxy(f"127.0.0.1:{seaweed.port}")
    weights = key(record.files[0].digest)
    proxy.spoil(lambda method, path: method == "GET" and path.endswith(weights), FAULTS[fault])
    url = RemoteUrl.parse(str(s3().url).replace(seaweed.endpoint, f"http://{proxy.host}"))
    started = time.monotonic()
    with pytest.raises(RegistryError, match="s3://adapters"):
        pull(other, S3Remote(url, patience=HURRY), "v1", name="a", tags=["v1"])
    assert time.monotonic() - started < 100 and proxy.sent_bytes < 256 << 20  # with what lies in sockets' buffers
    assert other.list() == ([], "") and other.fsck().is_clean
    proxy.pass_all()
    patient = s3().patience
    assert pull(other, S3Remote(url, patience=patient), "v1", name="a", tags=["v1"]).record.digest == record.digest
    proxy.close()


def test_a_server_that_is_down_or_wants_another_key_is_told_by_name(
    s3: OpenS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = s3()
    nobody = S3Remote(RemoteUrl.parse("s3://adapters/x?endpoint=http://127.0.0.1:1"), patience=working.patience)
    with pytest.raises(RemoteUnavailable, match="s3://adapters/x"):
        nobody.resolve("a", "v1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a guess")
    with pytest.raises(RemoteRefused, match="s3://adapters/") as caught:
        S3Remote(working.url, patience=working.patience).resolve("a", "v1")
    assert "guess" not in str(caught.value)
