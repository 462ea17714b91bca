"""The clients against a real server: what they send is what it understands."""

import asyncio
import hashlib
import shutil
import time
from pathlib import Path

import grpc
import pytest

from hotshoe.clients import (
    Aborted,
    AdapterSelection,
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TransferProgress,
    aio_transfers,
    transfers,
)
from hotshoe.clients.adapter_files import CHUNK_BYTES, scan_directory
from hotshoe.clients.blob_messages import LateNames, upload_probe
from hotshoe.clients.local_server import LocalServer, ServerDidNotStart
from hotshoe.protos.v1 import generation_pb2, registry_pb2, registry_pb2_grpc, residency_pb2

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: LocalServer):
    with Client(server.grpc) as connected:
        yield connected


def publish(client: Client, adapters: dict[str, Path], source: str, name: str, *tags: str) -> registry_pb2.Adapter:
    return client.publish_directory(adapters[source], name, tags=tags or ("latest",)).adapter


def test_what_is_published_can_be_found_listed_and_pulled(client: Client, adapters, tmp_path: Path) -> None:
    adapter = publish(client, adapters, "amber", "found", "one", "two")
    assert (adapter.name, adapter.kind, adapter.rank, set(adapter.tags)) == ("found", "LORA", 4, {"one", "two"})
    for reference in ("found:one", "found:two", f"found@{adapter.digest}"):
        assert client.get_adapter(reference).digest == adapter.digest
    assert [one.digest for one in client.list_adapters(name_contains="found", page_size=1)] == [adapter.digest]
    assert not client.publish_directory(adapters["amber"], "found", tags=["one"]).created
    client.pull("found:one", tmp_path / "pulled")
    for file in scan_directory(adapters["amber"]):
        assert (tmp_path / "pulled" / file.file_name).read_bytes() == file.path.read_bytes()


@pytest.fixture
def hashed_late(monkeypatch: pytest.MonkeyPatch) -> list[registry_pb2.UploadBlobRequest]:
    """Adapters of any size are sent while they are hashed; these are the messages that such uploads began with."""
    for module in (aio_transfers, transfers):
        monkeypatch.setattr(module, "LARGE_BYTES", 0)
    begun: list[registry_pb2.UploadBlobRequest] = []
    begin = LateNames.begin
    monkeypatch.setattr(LateNames, "begin", lambda names: begun.append(begin(names)) or begun[-1])
    return begun


def varied(adapters: dict[str, Path], directory: Path, word: str) -> Path:
    """An adapter whose weights nobody else publishes."""
    shutil.copytree(adapters["amber"], directory)
    weights = directory / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-8] + hashlib.sha256(word.encode()).digest()[:3] + b"\x3c" + data[-4:])
    return directory


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_weights_are_sent_while_they_are_hashed(
    hashed_late, server: LocalServer, client: Client, adapters, tmp_path: Path, kind: str
) -> None:
    directory = varied(adapters, tmp_path / "varied", kind)
    steps: list[TransferProgress] = []

    def publish_it() -> registry_pb2.PublishAdapterResponse:
        if kind == "blocking":
            return client.publish_directory(directory, "late", progress=steps.append)

        async def publish() -> registry_pb2.PublishAdapterResponse:
            async with AsyncClient(server.grpc) as other:
                return await other.publish_directory(directory, "late", progress=steps.append)

        return asyncio.run(publish())

    first = publish_it()
    assert [(one.blob.digest, one.blob.size_bytes > 0) for one in hashed_late] == [("", True)]
    assert first.created and {step.stage for step in steps} == {"hash", "upload"}
    assert [(blob.digest, blob.size_bytes) for blob in first.adapter.blobs[:2]] == [
        (file.digest, file.size_bytes) for file in scan_directory(directory)[:2]
    ]
    again = publish_it()  # which is told that it is there
    assert not again.created and again.adapter.digest == first.adapter.digest
    client.pull("late", tmp_path / "pulled")
    assert (tmp_path / "pulled" / "adapter_model.safetensors").read_bytes() == (
        directory / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_what_hashing_raises_reaches_the_caller(
    hashed_late, server: LocalServer, client: Client, adapters, kind: str
) -> None:
    def progress(step: TransferProgress) -> None:
        if step.stage == "hash":
            raise ValueError("enough of that")

    async def publish() -> None:
        async with AsyncClient(server.grpc) as other:
            await other.publish_directory(adapters["amber"], "late-failed", progress=progress)

    with pytest.raises(ValueError, match="enough of that"):
        if kind == "asyncio":
            asyncio.run(publish())
        client.publish_directory(adapters["amber"], "late-failed", progress=progress)
    with pytest.raises(NotFound):
        client.get_adapter("late-failed")


def test_what_breaks_while_it_is_hashed_is_sent_as_ever(hashed_late, client: Client, adapters, tmp_path: Path) -> None:
    upload, calls = client._registry.UploadBlob, []

    def broken(requests):
        yield next(requests)
        raise ConnectionError("the line is dead")

    def broken_once(requests, timeout: float | None = None):
        calls.append(timeout)
        return upload(broken(requests) if len(calls) == 1 else requests, timeout=timeout)

    client._registry.UploadBlob = broken_once
    published = client.publish_directory(varied(adapters, tmp_path / "broken", "broken"), "late-broken")
    assert published.created and len(calls) > 2


def test_an_answer_comes_from_the_digest_that_was_published(client: Client, adapters) -> None:
    digests = {name: publish(client, adapters, name, f"answers-{name}").digest for name in ("amber", "cedar", "delta")}
    base = client.generate(CHAT, max_new_tokens=8)
    assert list(base.adapters) == []
    for name, digest in digests.items():
        response = client.generate(CHAT, adapters=[f"answers-{name}"], max_new_tokens=8)
        assert [adapter.digest for adapter in response.adapters] == [digest]
        with client.stream(CHAT, adapters=f"answers-{name}", max_new_tokens=8) as stream:
            tokens = [token.token_id for delta in stream for token in delta.tokens]
        assert tokens == [token.token_id for token in response.completions[0].tokens]
        assert stream.final.usage.completion_tokens == len(tokens)
        assert [adapter.digest for adapter in stream.final.adapters] == [digest]


def test_prompts_in_all_their_forms_are_understood(client: Client) -> None:
    ids = client.tokenize("hello").token_ids
    by_text = client.generate("hello", max_new_tokens=6, ignore_eos=True)
    by_ids = client.generate(ids, max_new_tokens=6, ignore_eos=True)
    assert by_text.completions[0].tokens == by_ids.completions[0].tokens
    assert client.generate(CHAT, max_new_tokens=6).usage.prompt_tokens > len(client.tokenize("hi").token_ids)


def test_options_reach_the_sampler(client: Client) -> None:
    def ask(**options) -> generation_pb2.GenerateResponse:
        return client.generate("hello", max_new_tokens=12, ignore_eos=True, **options)

    assert ask(temperature=1.0, seed=7).completions[0].text == ask(temperature=1.0, seed=7).completions[0].text
    assert {token.token_id for token in ask(logit_bias={42: 1000.0}).completions[0].tokens} == {42}
    assert len(ask(temperature=1.5, n=3).completions) == 3
    assert len(ask(logprobs=4).completions[0].tokens[0].alternatives) == 4
    stopped = client.generate("hello", max_new_tokens=12, logit_bias={42: 1000.0}, stop_token_ids=[42])
    assert stopped.completions[0].finish_reason == generation_pb2.FINISH_REASON_STOP


def test_scores_come_in_the_order_asked(client: Client) -> None:
    response = client.score("hello", ["a", "bc", "def"], length_normalized=True)
    assert [choice.text for choice in response.choices] == ["a", "bc", "def"]
    assert sum(choice.probability for choice in response.choices) == pytest.approx(1.0)


def test_a_stack_resolves_each_adapter_and_keeps_its_weight(client: Client, adapters) -> None:
    digests = [publish(client, adapters, name, f"stack-{name}").digest for name in ("amber", "birch")]
    stack = [AdapterSelection("stack-amber", 0.25), ("stack-birch", 2.0)]
    response = client.generate(CHAT, adapters=stack, max_new_tokens=4)
    assert [(one.digest, one.weight) for one in response.adapters] == [(digests[0], 0.25), (digests[1], 2.0)]


def test_a_tag_moves_by_compare_and_set_and_goes(client: Client, adapters) -> None:
    old = publish(client, adapters, "amber", "moving").digest
    new = publish(client, adapters, "birch", "moving", "next").digest
    assert client.update_tag("moving", "latest", new, expected_digest=old).digest == new
    with pytest.raises(Aborted) as caught:
        client.update_tag("moving", "latest", old, expected_digest=old)
    assert caught.value.metadata["actual_digest"] == new
    with pytest.raises(Aborted):
        client.update_tag("moving", "latest", old, expected_digest="")
    client.delete_tag("moving", "latest")
    with pytest.raises(NotFound):
        client.get_adapter("moving")
    assert client.get_adapter(f"moving@{new}").digest == new


def test_a_half_sent_file_is_taken_up_where_it_broke(server: LocalServer, client: Client, tmp_path: Path) -> None:
    from model_directories import tiny_model
    from peft_adapters import write_lora
    from tiny_models import TARGETS

    directory = write_lora(tmp_path / "big", tiny_model(), rank=256, targets=TARGETS)
    weights = scan_directory(directory)[0]
    with grpc.insecure_channel(server.grpc) as channel:
        [blob] = upload_probe(weights)
        chunks = [registry_pb2.UploadBlobRequest(data=data, offset=at) for at, data in weights.chunks(0)]
        assert len(chunks) > 2
        # one chunk and the next half, then the sender is gone
        half = registry_pb2.UploadBlobRequest(data=chunks[1].data[: CHUNK_BYTES // 2], offset=CHUNK_BYTES)
        registry_pb2_grpc.RegistryServiceStub(channel).UploadBlob(iter([blob, chunks[0], half]))
    steps: list[TransferProgress] = []
    adapter = client.publish_directory(directory, "resumed", progress=steps.append).adapter
    assert weights.digest in {blob.digest for blob in adapter.blobs}
    uploads = [step.completed_bytes for step in steps if step.stage == "upload" and step.file_name == weights.file_name]
    begun = CHUNK_BYTES + CHUNK_BYTES // 2
    assert (
        min(uploads) == begun + CHUNK_BYTES and max(uploads) == weights.size_bytes
    )  # what was there was not sent again


def test_refusals_have_their_class_and_name_the_field(client: Client, adapters, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        client.get_adapter("nowhere")
    with pytest.raises(NotFound):
        client.generate(CHAT, adapters=["nowhere"])
    with pytest.raises(InvalidArgument) as caught:
        client.generate(CHAT, top_p=3.0)
    assert [violation.field for violation in caught.value.field_violations] == ["sampling.top_p"]
    broken = shutil.copytree(adapters["amber"], tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InvalidArgument) as caught:
        client.publish_directory(broken, "broken")
    assert caught.value.reason == "INVALID_ADAPTER"
    with pytest.raises(NotFound):
        client.get_adapter("broken")


def test_an_adapter_of_another_shape_is_a_failed_precondition(client: Client, tmp_path: Path) -> None:
    from model_directories import tiny_model
    from peft_adapters import write_lora

    wider = write_lora(tmp_path / "wider", tiny_model(hidden_size=128))
    with pytest.raises((FailedPrecondition, InvalidArgument)):
        client.publish_directory(wider, "wider")


def test_loading_pinning_and_unloading_are_seen_in_what_is_resident(client: Client, adapters) -> None:
    digest = publish(client, adapters, "birch", "resident").digest
    stages = []
    loaded = client.load("resident", pin=True, progress=lambda step: stages.append(step.stage))
    assert (loaded.digest, loaded.pinned, loaded.tier) == (digest, True, residency_pb2.TIER_DEVICE)
    assert stages[-1] == residency_pb2.LoadAdapterResponse.STAGE_READY
    assert digest in {adapter.digest for adapter in client.list_resident()}
    with client.watch_status(interval_seconds=0.1) as frames:
        first, second = next(frames), next(frames)
    assert digest in {adapter.digest for adapter in first.adapters} and second.max_resident_adapters > 0
    client.unload("resident")
    deadline = time.monotonic() + 100
    while any(adapter.digest == digest for adapter in client.list_resident()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_server_says_that_it_is_well(client: Client) -> None:
    assert client.health() == client.health("hotshoe.v1.GenerationService") == "SERVING"
    with pytest.raises(NotFound):
        client.health("no.such.Service")
    info = client.model_info()
    assert info.base_digest.startswith("sha256:") and "LORA" in info.adapter_kinds


def test_the_asyncio_client_does_all_of_it_too(server: LocalServer, adapters, tmp_path: Path) -> None:
    async def everything() -> None:
        async with AsyncClient(server.grpc) as client:
            adapter = (await client.publish_directory(adapters["cedar"], "async")).adapter
            assert (await client.get_adapter("async")).digest == adapter.digest
            assert [one.digest async for one in client.list_adapters(name_contains="async")] == [adapter.digest]
            await client.pull("async", tmp_path)
            assert (tmp_path / "adapter_config.json").exists()
            async with client.stream(CHAT, adapters="async", max_new_tokens=5, ignore_eos=True) as stream:
                tokens = [token async for delta in stream for token in delta.tokens]
            assert len(tokens) == stream.final.usage.completion_tokens == 5
            whole = await asyncio.gather(*(client.generate(CHAT, adapters="async", max_new_tokens=5) for _ in range(4)))
            assert {response.adapters[0].digest for response in whole} == {adapter.digest}
            assert len((await client.score("a", ["b", "c"])).choices) == 2
            assert (await client.tokenize("a")).token_ids and (await client.model_info()).base_model
            assert (await client.load("async")).digest == adapter.digest
            assert await client.list_resident()
            async with client.watch_status(interval_seconds=0.1) as frames:
                assert (await anext(frames)).max_resident_adapters
            await client.unload("async")
            await client.update_tag("async", "other", adapter.digest, expected_digest="")
            await client.delete_tag("async", "other")
            assert await client.health() == "SERVING"

    asyncio.run(everything())


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    nothing = ["--base", str(tmp_path / "nothing"), "--registry", str(tmp_path / "r"), "--listen", "127.0.0.1:0"]
    with pytest.raises(ServerDidNotStart, match="nothing"), LocalServer([*nothing, "--http", ""], tmp_path / "log"):
        pass
