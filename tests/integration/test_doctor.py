"""A server that examines what is published: warns, refuses, keeps the report with the adapter."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from peft import LoraConfig, OFTConfig
from peft_adapters import save_peft, write_ia3, write_lora, write_prefix
from server_process import ServerProcess, until

from hotshoe.clients import AsyncClient, Client, FailedPrecondition, InvalidArgument
from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.referrer import DIAGNOSIS_TYPE

RELOAD_SECONDS = 250  # what nobody waits for runs on idle cores, which a busy machine hardly has


@pytest.fixture(scope="module")
def directories(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of every fate: one loud direction in every linear, hardly anything, scales, a prefix."""
    from transformers import AutoModelForCausalLM

    root, model = tmp_path_factory.mktemp("examined"), AutoModelForCausalLM.from_pretrained(tiny_base)
    targets = ["q_proj", "down_proj"]
    for name, config in (
        ("dora", LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, target_modules=targets)),
        ("rotations", OFTConfig(task_type="CAUSAL_LM", oft_block_size=8, r=0, target_modules=targets)),
    ):
        save_peft(root / name, AutoModelForCausalLM.from_pretrained(tiny_base), config)
    return {
        "dora": root / "dora",
        "rotations": root / "rotations",
        "bad": write_lora(root / "bad", model, rank=1, scale=0.5),
        "several": write_lora(root / "several", model, rank=4, scale=0.3, seed=7),
        "good": write_lora(root / "good", model, rank=4, scale=0.02),
        "scales": write_ia3(root / "scales", model, scale=0.1),
        "prefix": write_prefix(root / "prefix", model),
    }


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        yield client


def grade(diagnosis: registry_pb2.Diagnosis) -> str:
    return registry_pb2.Grade.Name(diagnosis.grade).removeprefix("GRADE_")


def reports(server: ServerProcess, reference: str) -> list[registry_pb2.Referrer]:
    """What the registry keeps about an adapter, once there is something."""
    deadline = time.monotonic() + RELOAD_SECONDS
    while True:
        response = server.registry.GetAdapter(registry_pb2.GetAdapterRequest(reference=reference))
        if response.adapter.referrers or time.monotonic() > deadline:
            return list(response.adapter.referrers)
        time.sleep(0.05)


def test_a_publisher_is_warned_and_the_report_is_kept(
    server: ServerProcess, client: Client, directories: dict[str, Path]
) -> None:
    response = client.publish_directory(directories["bad"], "doctor/bad")
    [report] = reports(server, "doctor/bad")
    if response.HasField("diagnosis"):  # a busy machine may take longer than a publisher waits
        assert grade(response.diagnosis) == "BAD" and not response.diagnosis.linears
    assert report.artifact_type == DIAGNOSIS_TYPE and report.annotations["dev.hotshoe.doctor.grade"] == "BAD"
    download = registry_pb2.DownloadBlobRequest(digest=report.document.digest)
    document = json.loads(b"".join(part.data for part in server.registry.DownloadBlob(download)))
    assert document["grade"] == "BAD" and document["base"]["digest"] == server.ready["base_digest"]
    assert document["headline"] == report.annotations["dev.hotshoe.doctor.headline"]
    assert len(document["linears"]) == 4 and all(one["predicted"] == 1 for one in document["linears"])
    client.publish_directory(directories["bad"], "doctor/again")  # the same bytes: examined already
    assert reports(server, "doctor/again") == [report]


def test_a_published_adapter_is_counted_on_request(
    server: ServerProcess, client: Client, directories: dict[str, Path]
) -> None:
    client.publish_directory(directories["scales"], "doctor/scales")
    [screened] = reports(server, "doctor/scales")
    response = client.diagnose("doctor/scales", exact=True)
    assert reports(server, "doctor/scales") == [response.referrer, screened]
    found = response.diagnosis
    assert found.exact and len(found.linears) == 6 and grade(found) == "OK"
    assert all(one.exact == 0 and one.HasField("nf4_kept") and not one.HasField("predicted") for one in found.linears)


def test_a_directory_is_examined_without_being_published(client: Client, directories: dict[str, Path]) -> None:
    found = client.diagnose_directory(directories["good"], exact=True)
    assert grade(found) == "OK" and found.intruders == 0 and {one.exact for one in found.linears} == {0}
    assert {one.scale for one in found.linears} == {2.0}
    assert grade(client.diagnose_directory(directories["bad"])) == "BAD"
    assert "no linear" in client.diagnose_directory(directories["prefix"]).headline
    with pytest.raises(InvalidArgument, match="expected 8 by r"):
        client.diagnose_directory(_with_another_rank(directories["good"]))


@pytest.mark.parametrize(
    "name, screened, note",
    [
        ("dora", "OK", "its low-rank part; what scales or turns the weight is examined only by --exact"),
        ("scales", "UNKNOWN", "scales or turns the weight: examined only by --exact"),
        ("rotations", "UNKNOWN", "scales or turns the weight: examined only by --exact"),
    ],
)
def test_what_is_no_mere_low_rank_update_is_counted_or_left_out_with_a_reason(
    client: Client, directories: dict[str, Path], name: str, screened: str, note: str
) -> None:
    client.publish_directory(directories[name], f"doctor/kinds-{name}")
    for exact in (False, True):
        of_directory = client.diagnose_directory(directories[name], exact=exact)
        of_reference = client.diagnose(f"doctor/kinds-{name}", exact=exact).diagnosis
        assert of_directory == of_reference
        if exact:
            assert all(one.HasField("exact") and not one.note for one in of_directory.linears)
            assert all(one.relative_norm > 0 for one in of_directory.linears)
        else:
            assert grade(of_directory) == screened and {one.note for one in of_directory.linears} == {note}
            assert of_directory.advice[-1] == "doctor --exact examines what scales or turns weights"


def test_a_mitigated_adapter_has_fewer_intruders_and_names_its_parent(
    server: ServerProcess, client: Client, directories: dict[str, Path]
) -> None:
    parent = client.publish_directory(directories["several"], "doctor/several").adapter
    before = client.diagnose("doctor/several", exact=True).diagnosis
    made = client.mitigate("doctor/several", "doctor/calmer", keep=0.1, tags=["v1"])
    assert made.shrunk == before.intruders > made.diagnosis.intruders
    assert made.diagnosis.strength < before.strength and 0.5 < made.energy_kept <= 1
    found = client.get_adapter("doctor/calmer:v1")
    assert [(one.digest, one.weight) for one in found.parents] == [(parent.digest, 1.0)]
    assert json.loads(found.recipe) == {"op": "mitigate", "keep": 0.1, "intruders": made.shrunk}
    assert found.referrers[0].annotations["dev.hotshoe.doctor.headline"] == made.diagnosis.headline
    assert client.generate("hi", adapters=["doctor/calmer:v1"], max_new_tokens=2).completions
    again = client.mitigate("doctor/several", "doctor/calmer", keep=0.1, tags=["v1"])
    assert again.adapter.digest == found.digest
    with pytest.raises(InvalidArgument, match="keep"):
        client.mitigate("doctor/several", "doctor/calmer", keep=1.0)
    client.publish_directory(directories["prefix"], "doctor/prefix")
    with pytest.raises(InvalidArgument, match="kv_prefix"):
        client.mitigate("doctor/prefix", "doctor/calmer", keep=0.5)


def test_a_request_names_one_thing_to_examine(server: ServerProcess) -> None:
    for request in (
        registry_pb2.DiagnoseAdapterRequest(),
        registry_pb2.DiagnoseAdapterRequest(reference="a", blobs=[registry_pb2.Blob()]),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            server.registry.DiagnoseAdapter(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_strict_server_refuses_a_bad_adapter_and_keeps_reports_over_a_restart(
    start_server, directories: dict[str, Path]
) -> None:
    server = start_server("--doctor", "require")
    with Client(server.ready["grpc"]) as client:
        for validate_only in (True, False):
            with pytest.raises(FailedPrecondition, match="grade is BAD: 4 intruder dimensions") as refused:
                client.publish_directory(directories["bad"], "a", validate_only=validate_only)
            assert refused.value.reason == "DOCTOR_REFUSED"
        assert list(client.list_adapters()) == []
        response = client.publish_directory(directories["good"], "a")
        assert response.created and grade(response.diagnosis) == "OK"
    [report] = reports(server, "a")
    server.end()
    with Client((again := start_server("--doctor", "off")).ready["grpc"]) as client:
        assert reports(again, "a") == [report]
        assert not client.publish_directory(directories["bad"], "b").HasField("diagnosis")
        assert not client.get_adapter("b").referrers


def test_answers_go_on_while_an_adapter_that_is_to_be_published_is_examined(
    start_server, directories: dict[str, Path]
) -> None:
    """With next to nothing of a core for it, the examination ends when nothing decodes any more, and not before."""
    server = start_server("--doctor", "require", "--loader-share", "0.00001")

    async def within() -> None:
        async with AsyncClient(server.ready["grpc"]) as client:
            first = asyncio.create_task(client.generate("hi", max_new_tokens=1))
            lengths = range(150, 194)  # more than run at a time, so that the engine is never without
            asks = [asyncio.create_task(client.generate("hi", max_new_tokens=n, ignore_eos=True)) for n in lengths]
            await first
            await asyncio.to_thread(until, lambda: server.taken() == 1 + len(lengths))
            publishing = asyncio.create_task(client.publish_directory(directories["good"], "examined"))
            answers = await asyncio.gather(*asks)
            assert [len(answer.completions[0].tokens) for answer in answers] == list(lengths)
            assert grade((await asyncio.wait_for(publishing, RELOAD_SECONDS)).diagnosis) == "OK"
            assert [adapter.name async for adapter in client.list_adapters()] == ["examined"]

    asyncio.run(within())
    # The server's log has them in the order in which they ended; what a busy client hears, it may hear all at once.
    before, published, _ = server.log.partition(" publish name=examined ")
    assert published and before.count(" request request_id=") > 34


def _with_another_rank(directory: Path) -> Path:
    other = directory.parent / "other"
    other.mkdir(exist_ok=True)
    config = json.loads((directory / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    (other / "adapter_model.safetensors").write_bytes((directory / "adapter_model.safetensors").read_bytes())
    return other
