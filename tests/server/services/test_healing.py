from collections.abc import Iterator
from pathlib import Path

import pytest
from store_adapters import lora_files, publish, small_base

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import BlobCorrupt, RemoteUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.directory import DirectoryRemote
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.server.metrics import Metrics
from hotshoe.server.services import recent_failures
from hotshoe.server.services.healing import RemoteBlobs
from hotshoe.server.services.transfers import Transfers

NOBODY = "oci://127.0.0.1:1/x"  # refuses every connection


class Healed:
    """A store whose server has these remotes, an adapter in it, and what was counted."""

    def __init__(self, root: Path, *remotes: str) -> None:
        self.root = root
        self.registry = Registry(root / "store")
        self.record, _ = publish(self.registry, "a", lora_files(1))
        self.counted: list[bool] = []
        self.metrics = Metrics()
        transfers = Transfers(
            self.registry,
            small_base(),
            remotes=remotes,
            docker_config=None,
            observer=self.metrics,
            executor=None,  # type: ignore[arg-type]  # only what waits for nobody is called here
        )
        self.registry.heal_from(RemoteBlobs(transfers, self.counted.append))

    def lose(self) -> None:
        """Removes one of its blobs."""
        (self.root / "store" / "blobs" / "sha256" / digest_hex(self.record.files[0].digest)).unlink()

    def read(self) -> None:
        self.registry.adapter_files(self.record.digest)


@pytest.fixture
def healed(tmp_path: Path) -> Iterator[Healed]:
    house = Healed(tmp_path, NOBODY, f"dir://{tmp_path / 'stick'}")
    yield house
    house.registry.close()


def test_the_first_remote_that_has_a_blob_gives_it_whatever_becomes_of_the_others(
    healed: Healed, tmp_path: Path
) -> None:
    stick = DirectoryRemote(RemoteUrl.parse(f"dir://{tmp_path / 'stick'}"))
    push(healed.registry, healed.record, stick)
    stick.close()
    healed.lose()
    healed.read()
    assert healed.counted == [True]
    count = healed.metrics.registry.get_sample_value
    assert count("hotshoe_remote_copies_total", {"op": "heal", "remote": "dir", "result": "ok"}) == 1
    assert count("hotshoe_remote_bytes_total", {"op": "heal", "remote": "dir"}) == healed.record.files[0].size_bytes
    assert count("hotshoe_remote_copies_total", {"op": "heal", "remote": "oci", "result": "RemoteUnavailable"}) == 1


def test_what_no_remote_gave_is_not_asked_for_again_at_once(healed: Healed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_failures, "FORGET_SECONDS", 60.0)
    healed.lose()
    asked: list[str] = []
    real = Transfers.fetch_blob
    monkeypatch.setattr(
        Transfers, "fetch_blob", lambda self, url, blob, name: (asked.append(str(url)), real(self, url, blob, name))
    )
    for _ in range(3):
        with pytest.raises(RemoteUnavailable):
            healed.read()
    assert len(asked) == 2 and healed.counted == [False] * 3
    publish(healed.registry, "a", lora_files(1))
    healed.read()
    assert healed.counted == [False] * 3


def test_without_any_remote_a_lost_blob_is_counted_and_said_to_be_lost(tmp_path: Path) -> None:
    house = Healed(tmp_path)
    house.lose()
    with pytest.raises(BlobCorrupt, match="publishing its adapter again heals it"):
        house.read()
    assert house.counted == [False]
    house.registry.close()
