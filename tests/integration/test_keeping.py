"""What a server does about damaged bytes, and leases of those who are not on its disk."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import docker_registry
import pytest
from docker_registry import DockerRegistry
from model_directories import tiny_model
from peft_adapters import write_lora
from server_process import ServerProcess, command, launch
from store_children import age, overwrite
from typer.testing import CliRunner

from hotshoe.clients import NO_RETRY, AsyncClient, Client, DataLoss, InvalidArgument, NotFound, Unavailable
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import registry_pb2

PROMPT = "The quick brown fox"


@dataclass
class House:
    """A server with two remotes, of which the first is docker's registry and may be down."""

    server: ServerProcess
    docker: DockerRegistry
    registry: Path
    oci: str
    stick: str
    restart: Callable[[], ServerProcess]

    @property
    def client(self) -> Client:
        return Client(self.server.ready["grpc"], retry=NO_RETRY)

    def hotshoe(self, *words: str, code: int = 0) -> str:
        result = CliRunner().invoke(command_line(), words, env={"HOTSHOE_SERVER": self.server.ready["grpc"]})
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout

    def flip(self, digest: str) -> None:
        path = self.registry / "blobs" / "sha256" / digest.removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        overwrite(path, bytes(data))

    def damaged(self, result: str) -> int:
        found = re.search(
            rf'hotshoe_registry_damaged_blobs_total{{result="{result}"}} (\d+)', self.server.get("/metrics")[1]
        )
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if docker_registry.is_missing():
        pytest.skip("docker-registry is not installed (apt: docker-registry)")
    root = tmp_path_factory.mktemp("house")
    docker = DockerRegistry(root / "docker")
    docker.start()
    oci, stick = f"oci://{docker.host}/house", f"dir://{root / 'stick'}"
    cache = ["--base-cache", str(tmp_path_factory.getbasetemp() / "bases"), "--doctor", "off"]
    arguments = command(tiny_base, root / "registry", *cache, "--remote", oci, "--remote", stick)
    servers: list[ServerProcess] = []

    def start() -> ServerProcess:
        servers.append(launch(root, arguments))
        return servers[-1]

    try:
        yield House(start(), docker, root / "registry", oci, stick, start)
    finally:
        for server in servers:
            server.end()
        docker.stop()


def publish(house: House, tmp_path: Path, name: str, seed: int, *remotes: str) -> registry_pb2.Adapter:
    directory = write_lora(tmp_path / name.replace("/", "-"), tiny_model(), seed=seed, scale=0.02)
    with house.client as client:
        adapter = client.publish_directory(directory, name).adapter
        for remote in remotes:
            client.push_to(remote, name)
    return adapter


def weights_of(adapter: registry_pb2.Adapter) -> str:
    return next(blob.digest for blob in adapter.blobs if blob.file_name.endswith(".safetensors"))


def tokens(client: Client, reference: str) -> list[int]:
    answer = client.generate(PROMPT, adapters=reference, max_new_tokens=6, ignore_eos=True)
    return [token.token_id for token in answer.completions[0].tokens]


@pytest.mark.parametrize("kind", ["oci", "stick"])
def test_a_damaged_blob_is_fetched_again_while_requests_for_it_wait(house: House, tmp_path: Path, kind: str) -> None:
    adapter = publish(house, tmp_path, f"heal/{kind}", 10 + len(kind), getattr(house, kind))
    quarantine = house.registry / ".quarantine"
    before, bad = house.damaged("healed"), set(quarantine.iterdir())
    with house.client as client:
        expected = tokens(client, adapter.name)
        client.unload(adapter.name)
        house.flip(weights_of(adapter))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: tokens(client, adapter.name), range(8))) == [expected] * 8
        assert house.damaged("healed") == before + 1 and len(set(quarantine.iterdir()) - bad) == 1
        assert f"blob_fetched digest={weights_of(adapter)} name={adapter.name} remote=" in house.server.log
        client.unload(adapter.name)
        house.flip(weights_of(adapter))
        client.pull(adapter.name, tmp_path / "pulled")  # who downloads heals, too
        assert house.damaged("healed") == before + 2


def test_what_no_remote_has_is_data_loss_and_what_none_can_give_now_is_unavailable(
    house: House, tmp_path: Path
) -> None:
    adapter = publish(house, tmp_path, "heal/nowhere", 2)
    lost = house.damaged("lost")
    with house.client as client:
        house.flip(weights_of(adapter))
        with pytest.raises(DataLoss, match="stored bytes have digest"):
            tokens(client, adapter.name)
        assert house.damaged("lost") == lost + 1
        there = publish(house, tmp_path, "heal/down", 3, house.oci)
        house.flip(weights_of(there))
        house.docker.stop()
        try:
            with pytest.raises(Unavailable):
                tokens(client, there.name)
            assert house.hotshoe("fsck", "--refetch", code=1).count("missing") == 2
        finally:
            house.docker.start()
        time.sleep(5.2)  # what failed is not asked for again before
        out = house.hotshoe("fsck", "--refetch", code=1)
        assert f"missing  {weights_of(there)}  fetched again" in out and "blobs are sound" in out
        assert f"missing  {weights_of(adapter)}\n" in out
        assert tokens(client, there.name)
        client.publish_directory(tmp_path / "heal-nowhere", "heal/nowhere")
    report = json.loads(house.hotshoe("fsck", "--json"))
    assert report["corrupt_digests"] == report["missing_digests"] == [] and report["blobs"] > 8
    assert "check_store" in house.server.log


def test_a_lease_outlives_the_server_and_keeps_what_nothing_else_does(house: House, tmp_path: Path) -> None:
    kept = publish(house, tmp_path, "lease/a", 4)
    left = publish(house, tmp_path, "lease/a", 5)
    publish(house, tmp_path, "lease/a", 6)  # which has the tag now
    asyncio.run(_lease_and_be_refused(house, kept.digest))
    house.hotshoe("lease", "lease/a", "--for", "48", "--holder", "shell")
    assert kept.digest[:19] in house.hotshoe("leases") and "shell" in house.hotshoe("leases")
    os.kill(house.server.process.pid, signal.SIGKILL)
    house.server.wait()
    house.server = house.restart()
    age(house.registry, 2 * 24 * 3600.0)
    with house.client as again:
        holders = [one.holder for one in again.leases() if not one.holder.startswith("server-")]  # the killed one's
        assert holders == ["trainer 7", "shell"]
        assert [gone.digest for gone in again.collect_garbage().adapters if gone.name == "lease/a"] == [left.digest]
        assert again.get_adapter(f"lease/a@{kept.digest}").digest == kept.digest
        assert again.release_lease("trainer 7") == 1
        assert [gone.digest for gone in again.collect_garbage().adapters if gone.name == "lease/a"] == [kept.digest]
    assert house.hotshoe("unlease", "lease/a", "--holder", "shell") == "released\n"
    assert "has no lease" in house.hotshoe("unlease", "lease/a", "--holder", "shell")


async def _lease_and_be_refused(house: House, digest: str) -> None:
    async with AsyncClient(house.server.ready["grpc"]) as client:
        lease = await client.lease(f"lease/a@{digest}", "trainer 7")
        assert lease.digest == digest and 86_000 < lease.expire_time.seconds - time.time() <= 86_400
        with pytest.raises(InvalidArgument, match="those of servers"):
            await client.lease("lease/a", "server-x")
        with pytest.raises(InvalidArgument, match="ttl_seconds"):
            await client.lease("lease/a", "trainer", ttl_seconds=0.5)
        with pytest.raises(InvalidArgument, match="printable"):
            await client.lease("lease/a", "a\nb")
        with pytest.raises(NotFound):
            await client.lease("lease/none", "trainer")
        assert [one.holder for one in await client.leases("trainer 7")] == ["trainer 7"]
        assert await client.release_lease("trainer 7", "lease/a:latest") == 0
