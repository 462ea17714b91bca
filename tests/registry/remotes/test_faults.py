"""A registry that lies, breaks, stalls or leads astray: nothing of it is kept, and all of it ends in time, by name.

Every variant spoils one kind of answer in one way, each time that it is asked for.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from docker_registry import DockerRegistry
from fault_proxy import Answer, Fault, FaultProxy
from remote_faults import BODY_FAULTS, BOUND_SECONDS, HEAD_FAULTS, REFERRERS_FAULTS, WAITING, redirect, status
from store_adapters import lora_files, publish, small_base

from hotshoe.registry.errors import AdapterNotFound, RegistryError, RemoteDamaged, RemoteError
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.manifest import AdapterRecord, blob_descriptors
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes import connections
from hotshoe.registry.remotes.oci import OciRemote
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote import parse_remote

NAME = "victim"
HURRY = Patience(
    connect_seconds=0.5,
    silence_seconds=0.15,
    exchange_seconds=0.4,
    slowest_bytes_per_second=1 << 20,
    attempts=2,
    backoff_seconds=0.01,
)
BOUND_BYTES = 16 << 20  # of what a remote reads: a manifest's bound, and what comes at once, in both attempts


@pytest.fixture(scope="module")
def proxy(docker: DockerRegistry) -> Iterator[FaultProxy]:
    proxy = FaultProxy(docker.host)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def answers(docker: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the parts of a pull ask for, by what they are; the adapter lies in the registry."""
    registry = Registry(tmp_path_factory.mktemp("victim") / "store")
    record, _ = publish(registry, NAME, lora_files(1))
    document = registry.attach(
        record.digest, b'{"score": 1}' * 20, artifact_type="text/eval", file_name="eval.json", annotations={}
    )
    url = f"oci://{docker.host}/pre"
    push(registry, record, parse_remote(url), tags=["v1"])
    with registry.read_blob(record.digest) as file:
        blobs = {blob.file_name: blob.digest for blob in blob_descriptors(file.read())}
    registry.close()
    return {
        "digest": record.digest,
        "tag": "HEAD manifests/v1",
        "manifest": f"GET manifests/{record.digest.replace(':', '%3A')}",
        "config": f"GET blobs/{blobs['config']}",
        "weights": f"GET blobs/{blobs['adapter_model.safetensors']}",
        "adapter_config": f"GET blobs/{blobs['adapter_config.json']}",
        "card": f"GET blobs/{blobs['adapter.card.json']}",
        "referrers": f"GET manifests/sha256-{record.digest.removeprefix('sha256:')}",
        "referrer": f"GET manifests/{document.digest.replace(':', '%3A')}",
        "document": f"GET blobs/{document.document.digest}",
    }


BODIES = ("manifest", "weights", "referrers", "document")
# What has a blob's size, and what has none; the tag is asked for by HEAD.
VARIANTS = [
    *((body, fault) for body in BODIES for fault in BODY_FAULTS),
    *((body, fault) for body in ("config", "adapter_config", "card", "referrer") for fault in list(BODY_FAULTS)[:6]),
    *((answer, fault) for answer in ("tag", "weights") for fault in HEAD_FAULTS),
]
# An answer of no length, or of no status that matters, to a HEAD is an answer; a registry may have no referrers.
HARMLESS = {("tag", "Content-Length 999999999999999"), ("tag", "Content-Length 3")}


def spoiled(proxy: FaultProxy, request: str, fault: Fault) -> None:
    method, _, tail = request.partition(" ")
    proxy.spoil(lambda asked, path: asked == method and path.partition("?")[0].endswith(tail), fault)


def patience_for(fault: str) -> Patience | None:
    return HURRY if fault.startswith(WAITING) else None


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a remote's connections gave: what the proxy sends may lie in sockets' buffers."""
    read, counts = connections._Stream.read, []

    def counted(stream: Any, max_bytes: int, timeout: float | None = None) -> bytes:
        data = read(stream, max_bytes, timeout)
        counts.append(len(data))
        return data

    monkeypatch.setattr(connections._Stream, "read", counted)
    return counts


@pytest.mark.parametrize(("answer", "fault"), [one for one in VARIANTS if one not in HARMLESS])
def test_nothing_spoilt_is_kept(
    answer: str,
    fault: str,
    proxy: FaultProxy,
    answers: dict[str, str],
    registry: Registry,
    oci: Callable[..., OciRemote],
    taken: list[int],
) -> None:
    is_damage = answer != "referrers" and fault.startswith(("flipped", "replaced", "lengthened", "chunks without end"))
    remote = oci(proxy.host, patience=patience_for(fault))
    spoiled(proxy, answers[answer], {**BODY_FAULTS, **HEAD_FAULTS}[fault])
    started = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        pull(registry, remote, "v1", name=NAME, tags=["v1"], base=small_base())
    assert time.monotonic() - started < BOUND_SECONDS
    assert isinstance(caught.value, RemoteError | AdapterNotFound)
    if is_damage:
        assert isinstance(caught.value, RemoteDamaged)
    assert f"oci://{proxy.host}/pre" in str(caught.value) and str(caught.value).isprintable()
    assert sum(taken) < BOUND_BYTES
    assert registry.list() == ([], "") and registry.fsck().is_clean
    if answers[answer].startswith("GET blobs/"):
        assert registry.missing_blobs([answers[answer].rpartition("/")[2]])
    if fault in HEAD_FAULTS:
        return
    proxy.pass_all()  # and what was left behind harms nothing
    assert pull(registry, oci(proxy.host), "v1", name=NAME, tags=["v1"]).record.digest == answers["digest"]
    assert registry.fsck().is_clean


def test_there_are_enough_variants() -> None:
    assert len(set(VARIANTS) - HARMLESS) >= 140


QUICK_FAULTS = [name for name in BODY_FAULTS if not name.startswith(WAITING)]


@pytest.mark.parametrize("fault", [*QUICK_FAULTS, *REFERRERS_FAULTS])
def test_nothing_spoilt_comes_from_another_hotshoe(
    fault: str, registry: Registry, other: Registry, oci: Callable[..., OciRemote], taken: list[int]
) -> None:
    """Its port has an API for referrers, which the registry of the other variants lacks."""
    record, _ = publish(registry, NAME, lora_files(1), tags=["v1"])
    registry.attach(record.digest, b"{}", artifact_type="text/eval", file_name="eval.json", annotations={})
    server = registry_http_server("127.0.0.1", 0, Distribution(registry))
    server.start()
    proxy = FaultProxy(f"127.0.0.1:{server.port}")
    if fault in BODY_FAULTS:
        proxy.spoil(lambda method, path: path.endswith(f"/blobs/{record.files[0].digest}"), BODY_FAULTS[fault])
    else:
        proxy.spoil(lambda method, path: "/referrers/" in path, REFERRERS_FAULTS[fault])
    try:
        with pytest.raises(RegistryError, match=f"oci://{proxy.host}: "):
            pull(other, oci(f"oci://{proxy.host}"), "v1", name=NAME, tags=["v1"], base=small_base())
        assert other.list() == ([], "") and other.fsck().is_clean and sum(taken) < BOUND_BYTES
        proxy.pass_all()
        assert (
            pull(other, oci(f"oci://{proxy.host}"), "v1", name=NAME, base=small_base()).record.digest == record.digest
        )
        assert other.referrers(record.digest) == registry.referrers(record.digest)
    finally:
        proxy.close()
        server.stop()


START, SEND, COMMIT, CHECK = "POST blobs/uploads", "PUT blobs/uploads", "PUT manifests", "GET blobs"
PUSH_VARIANTS: dict[tuple[str, str], Fault] = {
    **{(START, name): HEAD_FAULTS[name] for name in ("dropped", "silent", "garbled", "status 401", "status 503")},
    **{(SEND, name): HEAD_FAULTS[name] for name in ("dropped", "silent", "garbled", "status 400", "status 503")},
    **{(COMMIT, name): HEAD_FAULTS[name] for name in ("dropped", "silent", "garbled", "status 403", "status 503")},
    **{(CHECK, name): BODY_FAULTS[name] for name in ("cut at the first byte", "stalled at the first byte")},
    (START, "goes on elsewhere"): status(202, Location="http://127.0.0.1:1/v2/x/blobs/uploads/1"),
    (START, "goes on at another host"): status(202, Location="//registry.example/v2/x/blobs/uploads/1"),
    (START, "goes on in a file"): status(202, Location="file:///v2/x"),
    (START, "goes on nowhere"): status(202),
    (START, "goes on at nonsense"): status(202, Location="http://[::bad"),
    (SEND, "redirected"): redirect("http://127.0.0.1:1/v2/"),
    (COMMIT, "stored as another"): status(201, Docker_Content_Digest=f"sha256:{'0' * 64}"),
}


@pytest.mark.parametrize(("answer", "fault"), PUSH_VARIANTS)
def test_a_push_that_is_spoilt_fails_and_moves_no_tag(
    answer: str,
    fault: str,
    proxy: FaultProxy,
    docker: DockerRegistry,
    registry: Registry,
    oci: Callable[..., OciRemote],
) -> None:
    name = f"pushed/{list(PUSH_VARIANTS).index((answer, fault))}"
    record, _ = publish(registry, name, lora_files(1))
    remote = oci(proxy.host, patience=patience_for(fault))
    method, _, part = answer.partition(" ")
    proxy.spoil(lambda asked, path: asked == method and part in path, PUSH_VARIANTS[answer, fault])
    started = time.monotonic()
    with pytest.raises(RemoteError, match=f"oci://{proxy.host}/pre: ") as caught:
        push(registry, record, remote, tags=["v1"])
    assert time.monotonic() - started < 2 * BOUND_SECONDS and str(caught.value).isprintable()
    with pytest.raises(AdapterNotFound):
        oci(docker.host).resolve(name, "v1")
    proxy.pass_all()
    push(registry, record, oci(proxy.host), tags=["v1"])
    assert oci(docker.host).resolve(name, "v1") == record.digest


LINKS = {
    "elsewhere": "<http://169.254.169.254/latest>",
    "in a file": "<file:///etc/passwd>",
    "at another host": "<//registry.example/v2/>",
    "at nonsense": "<http://[::bad>",
    "at itself, without end": "<?again>",
}


@pytest.mark.parametrize("link", LINKS)
def test_a_list_of_tags_that_leads_astray_is_left(
    link: str, proxy: FaultProxy, answers: dict[str, str], oci: Callable[..., OciRemote]
) -> None:
    def more(answer: Answer) -> None:
        answer.write(answer.head(Link=f'{LINKS[link]}; rel="next"') + answer.body)

    proxy.spoil(lambda method, path: "/tags/list" in path, more)
    with pytest.raises(RemoteError, match=f"oci://{proxy.host}/pre: tags of {NAME}"):
        oci(proxy.host).list_tags(NAME)
    proxy.pass_all()
    assert oci(proxy.host).list_tags(NAME) == ["v1"]


def test_a_registry_that_does_not_tell_a_tags_digest_is_asked_for_the_manifest(
    proxy: FaultProxy, answers: dict[str, str], oci: Callable[..., OciRemote]
) -> None:
    def silent_head(answer: Answer) -> None:
        answer.write(answer.head(Docker_Content_Digest=""))

    spoiled(proxy, answers["tag"], silent_head)
    assert oci(proxy.host).resolve(NAME, "v1") == answers["digest"]
    proxy.pass_all()


def test_a_broken_blob_goes_on_where_it_broke(
    proxy: FaultProxy, registry: Registry, other: Registry, oci: Callable[..., OciRemote]
) -> None:
    """Each answer brings at most 200 bytes more and is then cut."""
    record, _ = publish(registry, "resumed", lora_files(3, rank=8))
    remote = oci(proxy.host, patience=Patience(attempts=20, backoff_seconds=0.0))
    push(registry, record, remote, tags=["v1"])
    weights = record.files[0]
    proxy.requests.clear()
    proxy.headers.clear()
    proxy.spoil(
        lambda method, path: method == "GET" and path.endswith(weights.digest),
        lambda answer: answer.write(answer.head() + answer.body[:200]),
    )
    assert pull(other, remote, "v1", name="resumed").record.digest == record.digest
    proxy.pass_all()
    ranges = [headers.get("Range") for line, headers in proxy.headers if line.endswith(weights.digest)]
    assert ranges == [None, *(f"bytes={start}-" for start in range(200, weights.size_bytes, 200))]
    assert remote.capabilities.ranges is True and other.fsck().is_clean


def test_a_registry_without_ranges_sends_what_is_here_again(
    proxy: FaultProxy, registry: Registry, other: Registry, oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "whole", lora_files(4))
    remote = oci(proxy.host)
    push(registry, record, remote, tags=["v1"])
    weights = record.files[0]
    with registry.read_blob(weights.digest) as file, other.open_upload(weights) as upload:
        data = file.read()
        upload.write(0, data[:300])

    def whole(answer: Answer) -> None:
        answer.status = 200
        answer.write(answer.head(Content_Length=str(len(data)), Content_Range="") + data)

    proxy.spoil(lambda method, path: method == "GET" and path.endswith(weights.digest), whole)
    assert pull(other, remote, "v1", name="whole").record.digest == record.digest
    proxy.pass_all()
    assert remote.capabilities.ranges is False and other.fsck().is_clean


def test_a_wrong_beginning_that_was_left_here_is_fetched_again(
    docker: DockerRegistry, registry: Registry, other: Registry, oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "poisoned", lora_files(5))
    remote = oci(docker.host)
    push(registry, record, remote, tags=["v1"])
    with other.open_upload(record.files[0]) as upload:
        upload.write(0, b"?" * 100)
    assert pull(other, remote, "v1", name="poisoned").record.digest == record.digest
    assert other.fsck().is_clean


def test_a_herd_fetches_each_blob_once(
    proxy: FaultProxy, registry: Registry, other: Registry, oci: Callable[..., OciRemote]
) -> None:
    record, _ = publish(registry, "herd", lora_files(6))
    remote = oci(proxy.host)
    push(registry, record, remote, tags=["v1"])
    proxy.requests.clear()
    barrier = threading.Barrier(16)

    def fetch(_: int) -> tuple[AdapterRecord, bool]:
        barrier.wait()
        return pull(other, remote, "v1", name="herd")

    with ThreadPoolExecutor(16) as pool:
        pulled = list(pool.map(fetch, range(16)))
    assert {one.digest for one, _ in pulled} == {record.digest} and sum(created for _, created in pulled) == 1
    fetched = {line: n for line, n in proxy.requests.items() if line.startswith("GET /v2/pre/herd/blobs/")}
    assert len(fetched) == 4 and set(fetched.values()) == {1}
