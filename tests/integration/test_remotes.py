"""Servers that copy adapters to a registry and from it, and fetch from it what requests name by digest."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import docker_registry
import pytest
from docker_registry import DockerRegistry
from fault_proxy import Answer, FaultProxy
from model_directories import tiny_model
from peft_adapters import write_ia3, write_lora
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, command, launch, until
from typer.testing import CliRunner

from hotshoe.clients import (
    NO_RETRY,
    AsyncClient,
    Client,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TransferProgress,
    Unavailable,
)
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import registry_pb2, residency_pb2

NOWHERE = f"sha256:{'0' * 64}"
PROMPT = "The quick brown fox"


@dataclass
class Fleet:
    """A server that publishes, one that fetches and has nothing, and what lies between them and the registry."""

    publisher: ServerProcess
    edge: ServerProcess
    proxy: FaultProxy
    docker: DockerRegistry
    remote: str

    def client(self, server: ServerProcess) -> Client:
        return Client(server.ready["grpc"], retry=NO_RETRY)


@pytest.fixture(scope="module")
def fleet(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if docker_registry.is_missing():
        pytest.skip("docker-registry is not installed (apt: docker-registry)")
    root = tmp_path_factory.mktemp("fleet")
    docker = DockerRegistry(root / "docker")
    docker.start()
    proxy = FaultProxy(docker.host)
    remote = f"oci://{proxy.host}/fleet"
    cache = tmp_path_factory.getbasetemp() / "bases"
    servers: list[ServerProcess] = []
    try:
        for name, more in (("publisher", ["--doctor", "off"]), ("edge", ["--doctor", "require"])):
            arguments = ["--base-cache", str(cache), "--remote", remote, "--remote", f"dir://{root / 'stick'}", *more]
            servers.append(launch(root, command(tiny_base, root / name, *arguments)))
        yield Fleet(servers[0], servers[1], proxy, docker, remote)
    finally:
        for server in servers:
            server.end()
        proxy.close()
        docker.stop()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, model = tmp_path_factory.mktemp("directories"), tiny_model()
    writers = {
        f"lora{seed}": lambda path, seed=seed: write_lora(path, model, seed=seed, scale=0.02) for seed in range(7)
    }
    made = {name: write(root / name) for name, write in writers.items()}
    made["ia3"] = write_ia3(root / "ia3", model, seed=9, scale=0.1)
    made["cold"] = write_lora(root / "cold", model, seed=77, scale=0.02)
    made["loud"] = write_lora(root / "loud", model, rank=1, scale=0.5)
    return made


def publish(fleet: Fleet, directory: Path, name: str, *, push: bool = True) -> str:
    """Publishes, perhaps pushes, and returns "name@digest"."""
    with fleet.client(fleet.publisher) as client:
        adapter = client.publish_directory(directory, name).adapter
        if push:
            client.push_to(fleet.remote, name)
    return f"{name}@{adapter.digest}"


def tokens(fleet: Fleet, server: ServerProcess, reference: str) -> list[int]:
    with fleet.client(server) as client:
        answer = client.generate(PROMPT, adapters=reference, max_new_tokens=8, ignore_eos=True)
    return [token.token_id for token in answer.completions[0].tokens]


def test_what_one_server_pushes_another_pulls_and_answers_alike(fleet: Fleet, directories: dict[str, Path]) -> None:
    steps: list[TransferProgress] = []
    with fleet.client(fleet.publisher) as client:
        published = client.publish_directory(directories["lora0"], "team/poet", tags=["v1"]).adapter
        pushed = client.push_to(fleet.remote, "team/poet:v1", progress=steps.append)
        assert pushed.digest == published.digest and steps[-1].completed_bytes == steps[-1].total_bytes > 0
        client.push_to(f"{fleet.remote}/below", "team/poet:v1", name="renamed", tags=["a", "b"])
    with fleet.client(fleet.edge) as client:
        pulled = client.pull_from(fleet.remote, "team/poet:v1", progress=steps.append)
        assert pulled.created and pulled.adapter.digest == published.digest and list(pulled.adapter.tags) == ["v1"]
        assert list(pulled.adapter.blobs) == list(published.blobs)
        assert not client.pull_from(fleet.remote, "team/poet:v1").created
        mirrored = client.mirror_from(f"{fleet.remote}/below", "renamed", as_name="here")
        assert [(one.adapter.name, sorted(one.adapter.tags)) for one in mirrored] == [("here", ["a", "b"])]
    assert tokens(fleet, fleet.publisher, "team/poet:v1") == tokens(fleet, fleet.edge, "team/poet:v1")
    assert f"remote={fleet.remote}" in fleet.publisher.log and " pull name=team/poet " in fleet.edge.log


def test_a_request_by_digest_is_answered_by_a_server_that_had_nothing(
    fleet: Fleet, directories: dict[str, Path]
) -> None:
    reference = publish(fleet, directories["lora1"], "through/one")
    fleet.proxy.requests.clear()
    expected = tokens(fleet, fleet.publisher, reference)
    barrier = threading.Barrier(24)

    def ask(_: int) -> list[int]:
        barrier.wait()
        return tokens(fleet, fleet.edge, reference)

    with ThreadPoolExecutor(24) as pool:
        assert set(map(tuple, pool.map(ask, range(24)))) == {tuple(expected)}
    fetched = {line: count for line, count in fleet.proxy.requests.items() if line.startswith("GET")}
    assert fetched and set(fetched.values()) == {1}
    fleet.proxy.requests.clear()
    assert tokens(fleet, fleet.edge, reference) == expected and not fleet.proxy.requests
    with fleet.client(fleet.edge) as client, pytest.raises(NotFound):  # tags are not fetched, but by a pull
        client.generate(PROMPT, adapters="through/one", max_new_tokens=1)


def test_a_load_tells_what_it_fetches(fleet: Fleet, directories: dict[str, Path]) -> None:
    reference = publish(fleet, directories["lora2"], "through/loaded")
    request = residency_pb2.LoadAdapterRequest(reference=reference)
    steps = list(fleet.edge.residency.LoadAdapter(request))
    stages = [step.stage for step in steps]
    downloading = residency_pb2.LoadAdapterResponse.STAGE_DOWNLOADING
    assert downloading in stages and stages == sorted(stages)
    assert stages[-1] == residency_pb2.LoadAdapterResponse.STAGE_READY
    last = [step for step in steps if step.stage == downloading][-1]
    assert last.completed_bytes == last.total_bytes > 0
    again = list(fleet.edge.residency.LoadAdapter(request))
    assert downloading not in [step.stage for step in again]


def test_a_registry_that_is_down_harms_nothing_that_is_here(fleet: Fleet, directories: dict[str, Path]) -> None:
    here = publish(fleet, directories["lora3"], "down/here")
    expected = tokens(fleet, fleet.edge, here)
    fleet.docker.stop()
    try:
        assert tokens(fleet, fleet.edge, here) == expected
        started = time.monotonic()
        with fleet.client(fleet.edge) as client:
            with pytest.raises(Unavailable) as caught:
                client.generate(PROMPT, adapters=f"down/cold@{NOWHERE}", max_new_tokens=1)
            assert caught.value.reason == "REMOTE_UNAVAILABLE" and caught.value.metadata["remote"] == fleet.remote
            with pytest.raises(Unavailable):  # remembered for a while: a dead registry is not asked by each request
                client.load(f"down/cold@{NOWHERE}")
            with pytest.raises(Unavailable):
                client.push_to(fleet.remote, here)
        assert time.monotonic() - started < 100
    finally:
        fleet.docker.start()


def test_others_are_answered_while_a_fetch_stands_still(fleet: Fleet, directories: dict[str, Path]) -> None:
    here = publish(fleet, directories["lora3"], "slow/here")
    expected = tokens(fleet, fleet.edge, here)
    slow = publish(fleet, directories["lora4"], "slow/cold")
    held, release = threading.Event(), threading.Event()

    def hold(answer: Answer) -> None:
        held.set()
        release.wait(200)
        answer.write(answer.head() + answer.body)

    fleet.proxy.spoil(lambda method, path: method == "GET" and "/slow/cold/blobs/" in path, hold)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(tokens, fleet, fleet.edge, slow) for _ in range(8)]
        assert held.wait(100)
        for _ in range(4):
            assert tokens(fleet, fleet.edge, here) == expected
        assert not any(one.done() for one in waiting)
        fleet.proxy.pass_all()
        release.set()
        assert {tuple(one.result()) for one in waiting} == {tuple(tokens(fleet, fleet.publisher, slow))}


def test_a_pull_that_is_cancelled_ends_and_keeps_nothing_but_bytes(fleet: Fleet, directories: dict[str, Path]) -> None:
    publish(fleet, directories["lora6"], "cancelled")
    release = threading.Event()

    def hold(answer: Answer) -> None:
        release.wait(200)
        answer.write(answer.head() + answer.body)

    fleet.proxy.spoil(lambda method, path: method == "GET" and "/cancelled/blobs/" in path, hold)
    request = registry_pb2.PullAdapterRequest(remote=fleet.remote, reference="cancelled", name="cancelled/here")
    call = fleet.edge.registry.PullAdapter(request)
    step = next(call).progress
    assert step.completed_bytes == 0 < step.total_bytes
    call.cancel()
    until(lambda: fleet.edge.metric("grpc_server_handled_total", "PullAdapter", "CANCELLED"))
    fleet.proxy.pass_all()
    release.set()
    until(lambda: fleet.edge.metric("hotshoe_remote_copies_total", "pull", "TransferEnded"))
    with fleet.client(fleet.edge) as client:
        with pytest.raises(NotFound):
            client.get_adapter("cancelled/here")
        assert client.pull_from(fleet.remote, "cancelled", name="cancelled/here").created


def test_damaged_bytes_are_refused_and_not_kept(fleet: Fleet, directories: dict[str, Path]) -> None:
    reference = publish(fleet, directories["lora5"], "damaged")

    def flip(answer: Answer) -> None:
        answer.write(answer.head() + answer.body[:-1] + bytes([answer.body[-1] ^ 1]))

    fleet.proxy.spoil(lambda method, path: method == "GET" and "/damaged/blobs/" in path, flip)
    with fleet.client(fleet.edge) as client:
        with pytest.raises(DataLoss, match="digest"):
            client.generate(PROMPT, adapters=reference, max_new_tokens=1)
        with pytest.raises(DataLoss):
            client.pull_from(fleet.remote, "damaged")
        fleet.proxy.pass_all()
        with pytest.raises(NotFound):
            client.get_adapter(reference)
        assert client.pull_from(fleet.remote, "damaged").created


def test_copies_are_in_the_metrics_by_what_became_of_them(fleet: Fleet, directories: dict[str, Path]) -> None:
    def counted(server: ServerProcess) -> dict[str, float]:
        families = text_string_to_metric_families(server.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for sample in samples
            if sample.name.startswith(("hotshoe_remote_", "hotshoe_pull_through_")) and "le" not in sample.labels
        }

    def grown(server: ServerProcess, before: dict[str, float]) -> dict[str, float]:
        after = counted(server)
        return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}

    publisher, edge = counted(fleet.publisher), counted(fleet.edge)
    reference = publish(fleet, directories["lora6"], "metered")
    with fleet.client(fleet.edge) as client:
        size = client.pull_from(fleet.remote, "metered").adapter.size_bytes
        for _ in range(2):
            client.generate(PROMPT, adapters=reference, max_new_tokens=1)
        with pytest.raises(NotFound):
            client.generate(PROMPT, adapters=f"metered@{NOWHERE}", max_new_tokens=1)
        with pytest.raises(FailedPrecondition):
            client.pull_from("oci://registry.example", "metered")
    pushed, pulled = grown(fleet.publisher, publisher), grown(fleet.edge, edge)
    assert pushed["hotshoe_remote_copies_total push oci ok"] == 1
    assert pulled["hotshoe_remote_copies_total pull oci ok"] == 1
    assert pulled["hotshoe_remote_copies_total pull oci RemoteRefused"] == 1
    assert pulled["hotshoe_remote_copies_total pull_through oci AdapterNotFound"] == 1
    assert pulled["hotshoe_remote_copies_total pull_through dir AdapterNotFound"] == 1
    assert pulled["hotshoe_pull_through_total hit"] == 2 and pulled["hotshoe_pull_through_total failure"] == 1
    assert 0 < pushed["hotshoe_remote_copy_seconds_sum push oci"] < 600
    # The adapter's files may be here of other tests; its manifest's config and card are not in its size.
    assert pushed.get("hotshoe_remote_bytes_total push oci", 0) <= size + 8192

    edge = counted(fleet.edge)
    cold = publish(fleet, directories["cold"], "metered/cold")
    tokens(fleet, fleet.edge, cold)
    fetched = grown(fleet.edge, edge)
    assert fetched["hotshoe_pull_through_total miss"] == 1
    assert fetched["hotshoe_remote_copies_total pull_through oci ok"] == 1
    weights = (directories["cold"] / "adapter_model.safetensors").stat().st_size
    assert weights < fetched["hotshoe_remote_bytes_total pull_through oci"] < weights + 8192


def test_what_the_doctor_refuses_does_not_come_in_from_elsewhere(fleet: Fleet, directories: dict[str, Path]) -> None:
    reference = publish(fleet, directories["loud"], "loud")
    with fleet.client(fleet.edge) as client:
        with pytest.raises(FailedPrecondition) as caught:
            client.pull_from(fleet.remote, "loud")
        assert caught.value.reason == "DOCTOR_REFUSED"
        with pytest.raises(FailedPrecondition):
            client.generate(PROMPT, adapters=reference, max_new_tokens=1)
        with pytest.raises(NotFound):
            client.get_adapter(reference)


def test_a_server_goes_to_no_other_remotes_than_its_own(
    fleet: Fleet, directories: dict[str, Path], tmp_path: Path
) -> None:
    reference = publish(fleet, directories["ia3"], "mine", push=False)
    others = (
        f"oci://{fleet.docker.host}/fleet",
        f"oci://{fleet.proxy.host}/fleets",
        f"dir://{tmp_path}",
        "oci://169.254.169.254",
    )
    with fleet.client(fleet.publisher) as client:
        for remote in others:
            with pytest.raises(FailedPrecondition, match="was not given that remote") as caught:
                client.push_to(remote, reference)
            assert caught.value.reason == "REMOTE_REFUSED"
            with pytest.raises(FailedPrecondition):
                client.pull_from(remote, "mine")
        for remote in ("", "mine", "file:///etc", "oci://user:password@host"):
            with pytest.raises(InvalidArgument):
                client.pull_from(remote, "mine")
        with pytest.raises(NotFound):
            client.pull_from(fleet.remote, "nobody:v1")
        with pytest.raises(FailedPrecondition, match="cannot compare and set"):
            client.push_to(fleet.remote, "mine", expected_digest="")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_pushes_pulls_and_mirrors(fleet: Fleet, directories: dict[str, Path]) -> None:
    digest = publish(fleet, directories["ia3"], "cli/a", push=False).partition("@")[2]

    def hotshoe(server: ServerProcess, *arguments: str, code: int = 0) -> str:
        environment = {"HOTSHOE_SERVER": server.ready["grpc"]}
        result = CliRunner().invoke(command_line(), arguments, env=environment)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout + result.stderr

    said = hotshoe(fleet.publisher, "push", "cli/a", fleet.remote)
    assert said.startswith(f"pushed cli/a to {fleet.remote}") and said.endswith(f"{fleet.remote}//cli/a@{digest}\n")
    again = hotshoe(fleet.publisher, "push", f"cli/a@{digest}", fleet.remote, "--as", "cli/a:v2")
    assert again == f"cli/a@{digest} is already at {fleet.remote}\n{fleet.remote}//cli/a@{digest}\n"
    assert f'"digest": "{digest}"' in hotshoe(fleet.publisher, "push", "cli/a", fleet.remote, "--json")
    pulled = hotshoe(fleet.edge, "pull", f"{fleet.remote}//cli/a:v2", "--as", "cli/mine:now")
    assert pulled.startswith("pulled cli/mine:now  IA3")
    assert "already there" in hotshoe(fleet.edge, "pull", f"{fleet.remote}/cli/a@{digest}", "--as", "cli/mine")
    assert '"created": true' in hotshoe(fleet.edge, "pull", f"{fleet.remote}/cli/a", "--json")
    assert "latest,v2" in hotshoe(fleet.edge, "mirror", f"{fleet.remote}//cli/a")
    for wrong in (("pull", f"{fleet.remote}/cli/a", "somewhere"), ("pull", "cli/a"), ("mirror", "cli/a")):
        assert hotshoe(fleet.edge, *wrong, code=2).startswith("hotshoe: ")
    assert hotshoe(fleet.edge, "pull", f"{fleet.remote}//cli/nobody", code=4)
    assert "not given that remote" in hotshoe(fleet.edge, "pull", "oci://127.0.0.1:1/x", code=5)


async def _with_aio(fleet: Fleet, name: str) -> tuple[str, list[str]]:
    async with AsyncClient(fleet.publisher.ready["grpc"], retry=NO_RETRY) as client:
        pushed = await client.push_to(fleet.remote, name)
    async with AsyncClient(fleet.edge.ready["grpc"], retry=NO_RETRY) as client:
        pulled = await client.pull_from(fleet.remote, name, name="aio/pulled", tags=["x"])
        mirrored = await client.mirror_from(fleet.remote, name)
    assert list(pulled.adapter.tags) == ["x"]
    return pushed.digest, [pulled.adapter.digest, *(one.adapter.digest for one in mirrored)]


def test_the_asyncio_client_does_the_same(fleet: Fleet, directories: dict[str, Path]) -> None:
    import asyncio

    publish(fleet, directories["ia3"], "aio/a", push=False)
    digest, found = asyncio.run(_with_aio(fleet, "aio/a"))
    assert found == [digest, digest]
