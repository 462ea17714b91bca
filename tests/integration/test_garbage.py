"""Collecting, rolling back and viewing through a real server, which keeps what it has in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_directories import tiny_model
from peft_adapters import write_lora, write_prefix
from server_process import ServerProcess, until
from store_children import age

from hotshoe.clients import AlreadyExists, Client, InvalidArgument, NotFound, ResourceExhausted

DAY = 24 * 3600.0


@pytest.fixture
def own(start_server) -> Iterator[Client]:
    """Of a server whose store no other test has."""
    server = start_server("--quotas", "*=256KiB:60,guest/=:1", "--doctor", "off")
    with Client(server.ready["grpc"]) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def write(tmp_path: Path, *seeds: int) -> list[Path]:
    return [write_lora(tmp_path / f"lora-{seed}", tiny_model(), rank=4, seed=seed) for seed in seeds]


def test_what_was_left_by_its_tags_goes_unless_it_is_loaded(own: Client, store: Path, tmp_path: Path) -> None:
    one, two, three = (own.publish_directory(path, "a").adapter for path in write(tmp_path, 1, 2, 3))
    own.load(f"a@{one.digest}", tier="host")
    age(store, 2 * DAY)
    told = own.collect_garbage(dry_run=True)
    assert [(gone.name, gone.digest) for gone in told.adapters] == [("a", two.digest)]
    assert told.removed_blobs == 3 and told.removed_bytes > 0
    assert own.collect_garbage() == told
    with pytest.raises(NotFound):
        own.generate("hi", adapters=[f"a@{two.digest}"], max_new_tokens=1)
    for adapter in (one, three):
        answer = own.generate("hi", adapters=[f"a@{adapter.digest}"], max_new_tokens=1)
        assert answer.adapters[0].digest == adapter.digest
    own.unload(f"a@{one.digest}")
    until(lambda: [gone.digest for gone in own.collect_garbage().adapters] == [one.digest])
    assert own.collect_garbage().removed_blobs == 0
    assert [adapter.digest for adapter in own.list_adapters()] == [three.digest]


def test_a_grace_below_an_hour_is_refused(client: Client) -> None:
    for grace in (0, 3599.9, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument) as caught:
            client.collect_garbage(grace_seconds=grace)
        assert caught.value.field_violations[0].field == "grace_seconds"
    assert client.collect_garbage(grace_seconds=3600, dry_run=True)


def test_versions_stay_and_aliases_roll_back(client: Client, tmp_path: Path) -> None:
    paths = write(tmp_path, 1, 2)
    one = client.publish_directory(paths[0], "rolled", tags=["v1", "live"]).adapter
    with pytest.raises(AlreadyExists, match="rolled:v1 is a version") as caught:
        client.publish_directory(paths[1], "rolled", tags=["v1"])
    assert caught.value.reason == "TAG_IMMUTABLE" and caught.value.metadata["actual_digest"] == one.digest
    two = client.publish_directory(paths[1], "rolled", tags=["v2", "live"]).adapter
    response = client.roll_back_tag("rolled", "live")
    assert (response.adapter.digest, response.previous_digest) == (one.digest, two.digest)
    assert client.get_adapter("rolled:live").digest == one.digest
    moves = client.list_tag_moves("rolled", "live")
    assert [(move.old_digest, move.new_digest) for move in moves] == [
        (two.digest, one.digest),
        (one.digest, two.digest),
        ("", one.digest),
    ]
    assert len(client.list_tag_moves("rolled", limit=4)) == 4 and moves[0].time.seconds >= moves[1].time.seconds
    with pytest.raises(NotFound):
        client.roll_back_tag("rolled", "v1")
    with pytest.raises(InvalidArgument):
        client.list_tag_moves("rolled", limit=-1)


def test_quotas_refuse_and_say_which(own: Client, tmp_path: Path) -> None:
    paths = write(tmp_path, 1, 2)
    own.publish_directory(paths[0], "guest/a")
    with pytest.raises(ResourceExhausted, match="begin with guest/: 1 of at most 1 adapters") as caught:
        own.publish_directory(paths[1], "guest/a")
    assert caught.value.reason == "QUOTA_EXCEEDED" and caught.value.retry_after is None
    with pytest.raises(ResourceExhausted, match="the store: .* of at most 262144 bytes are used"):
        for seed in range(30):
            path = write_prefix(tmp_path / f"large-{seed}", tiny_model(), tokens=200, seed=seed)
            own.publish_directory(path, "b")


def test_a_view_is_a_directory_that_stays(own: Client, store: Path, tmp_path: Path) -> None:
    [path] = write(tmp_path, 1)
    adapter = own.publish_directory(path, "a", tags=[]).adapter
    made = own.view(f"a@{adapter.digest}")
    assert made.adapter.digest == adapter.digest and Path(made.path).parent == store / "views"
    weights = "adapter_model.safetensors"
    assert (Path(made.path) / weights).read_bytes() == (path / weights).read_bytes()
    age(store, 2 * DAY)
    assert own.collect_garbage().removed_blobs == 0
    assert own.unview(f"a@{adapter.digest}") is True and own.unview(f"a@{adapter.digest}") is False
    assert own.collect_garbage().removed_blobs == 5 and not Path(made.path).exists()
    with pytest.raises(NotFound):
        own.view(f"a@{adapter.digest}")


def test_a_server_collects_by_itself_when_told_to(start_server, store: Path, tmp_path: Path) -> None:
    server = start_server("--collect-every", "0.2", "--doctor", "off")
    with Client(server.ready["grpc"]) as client:
        for path in write(tmp_path, 1, 2):
            client.publish_directory(path, "a")
        age(store, 2 * DAY)
        until(lambda: len(list(client.list_adapters())) == 1)
        assert [list(adapter.tags) for adapter in client.list_adapters()] == [["latest"]]
    until(lambda: "collect_garbage" in server.log)
