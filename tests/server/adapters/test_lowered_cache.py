"""Forms that took the base's weights are computed once, checked when they are read, and kept within a limit."""

import os
from pathlib import Path

import pytest
import torch
from peft_adapters import adapter_files, save_peft, write_ia3, write_lora, write_prefix
from peft_kinds import CONFIGS, DENSE_CONFIGS
from read_only_disks import read_only_view
from tiny_models import ModelWeights, tiny_llama

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import Approximation, LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_reader import AdapterReader
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.config import ResidencyConfig

MANY = 1 << 30
LINEAR = LinearId(1, "q_proj")


class CountingWeights(ModelWeights):
    """Counts how often a weight is read."""

    reads = 0

    def weight(self, linear):
        self.reads += 1
        return super().weight(linear)


class House:
    """A registry, and a reader with a cache, as a server has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = Registry(root / "registry")
        self.base = CountingWeights(tiny_llama())

    def publish(self, directory: Path, *, approximation: Approximation | None = None) -> str:
        files = {name: path.read_bytes() for name, path in adapter_files(directory).items() if name != "README.md"}
        blobs = self.registry.add_files(files)
        record, _ = self.registry.publish(
            name="a", tags=[], files=blobs, annotations={}, base=self.base.shape, approximation=approximation
        )
        return record.digest

    def read(self, digest: str, *, max_bytes: int = MANY, max_rank: int = 256) -> LoweredAdapter:
        cache = LoweredCache(self.root / "lowered", max_bytes=max_bytes)
        reader = AdapterReader(self.registry, self.base, ResidencyConfig(max_rank=max_rank), cache=cache)
        return reader.read(digest, lambda stage, record: None)[1]

    @property
    def kept(self) -> list[Path]:
        return sorted((self.root / "lowered").glob("*"))


@pytest.fixture
def house(tmp_path: Path):
    house = House(tmp_path)
    yield house
    house.registry.close()


def same(one: LoweredAdapter, other: LoweredAdapter) -> bool:
    """To the last bit, and in everything that is no tensor."""
    if (one.kind, one.linears.keys(), one.approximation) != (other.kind, other.linears.keys(), other.approximation):
        return False
    return all(
        x == y if not isinstance(x, torch.Tensor) else x.dtype == y.dtype and torch.equal(x, y)
        for linear in one.linears
        for name in LoweredLinear.__dataclass_fields__
        for x, y in [(getattr(one.linears[linear], name), getattr(other.linears[linear], name))]
    )


@pytest.mark.parametrize("name", ["dora", "dora with bias all", "kasa", "pissa", "olora", "hra", "deft", "peanut"])
def test_the_second_load_reads_no_weight_and_gives_the_same_bits(house: House, name: str, tmp_path: Path) -> None:
    save_peft(tmp_path / "adapter", tiny_llama(bias=True), CONFIGS[name]())
    house.base = CountingWeights(tiny_llama(bias=True))
    digest = house.publish(tmp_path / "adapter")
    first = house.read(digest)
    reads = house.base.reads
    assert reads and len(house.kept) == 1
    assert same(first, house.read(digest)) and house.base.reads == reads
    assert same(first, lower_adapter(house.registry.adapter_files(digest), house.base))


def test_an_approximation_is_cut_once_and_keeps_its_figures(house: House, tmp_path: Path) -> None:
    save_peft(tmp_path / "adapter", tiny_llama(), DENSE_CONFIGS["fourierft"]())  # which reads no weight
    lowered = lower_adapter(adapter_files(tmp_path / "adapter"), house.base, approximate_rank=6)
    digest = house.publish(tmp_path / "adapter", approximation=lowered.approximation)
    first = house.read(digest)
    assert len(house.kept) == 1 and first.rank == 6
    assert same(first, lowered) and same(first, house.read(digest))


@pytest.mark.parametrize("write", [write_lora, write_ia3, write_prefix])
def test_what_needs_no_weight_is_not_kept(house: House, write, tmp_path: Path) -> None:
    digest = house.publish(write(tmp_path / "adapter", tiny_llama()))
    house.read(digest)
    assert not house.base.reads and not house.kept


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:200] + b"?" + data[201:], lambda _: b""])
def test_a_damaged_file_is_computed_anew(house: House, damage, tmp_path: Path) -> None:
    save_peft(tmp_path / "adapter", tiny_llama(), CONFIGS["dora"]())
    digest = house.publish(tmp_path / "adapter")
    first = house.read(digest)
    [path] = house.kept
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    reads = house.base.reads
    assert same(first, house.read(digest)) and house.base.reads > reads
    assert path.read_bytes() == sound


def test_another_base_takes_nothing_of_it(house: House, tmp_path: Path) -> None:
    save_peft(tmp_path / "adapter", tiny_llama(), CONFIGS["dora"]())
    lowered = lower_adapter(adapter_files(tmp_path / "adapter"), house.base)
    cache = LoweredCache(tmp_path / "lowered", max_bytes=MANY)
    cache.add("sha256:a", "sha256:b", lowered)
    found = cache.find("sha256:a", "sha256:b")
    assert found is not None and same(found, lowered)
    assert cache.find("sha256:a", "sha256:c") is None and cache.find("sha256:c", "sha256:b") is None


def test_a_lower_limit_on_ranks_holds_for_what_was_kept(house: House, tmp_path: Path) -> None:
    save_peft(tmp_path / "adapter", tiny_llama(), CONFIGS["dora"]())
    digest = house.publish(tmp_path / "adapter")
    house.read(digest)
    with pytest.raises(InvalidAdapter, match="found rank 4, expected at most 2"):
        house.read(digest, max_rank=2)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    lowered = LoweredAdapter("LORA", {LINEAR: LoweredLinear(a=torch.ones(4, 64), b=torch.ones(64, 4), scale=2.0)})
    cache = LoweredCache(tmp_path, max_bytes=3 * 2600)  # of three
    for index, name in enumerate("abc"):
        cache.add(name, "base", lowered)
        [newest] = [path for path in tmp_path.iterdir() if path.stat().st_mtime_ns > 10**18]
        os.utime(newest, ns=(index, index))
    assert all(cache.find(name, "base") for name in "ba")  # c is the oldest use now
    cache.add("d", "base", lowered)
    assert [cache.find(name, "base") is not None for name in "abcd"] == [True, True, False, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * 2600


def test_no_room_keeps_nothing(tmp_path: Path) -> None:
    lowered = LoweredAdapter("LORA", {LINEAR: LoweredLinear(a=torch.ones(4, 64), b=torch.ones(64, 4))})
    for limit in (0, 1000):
        LoweredCache(tmp_path / "none", max_bytes=limit).add("a", "base", lowered)
    assert not (tmp_path / "none").exists()


def test_what_lies_on_a_read_only_disk_is_read_from_there(tmp_path: Path) -> None:
    lowered = LoweredAdapter("LORA", {LINEAR: LoweredLinear(a=torch.ones(1, 4), b=torch.ones(4, 1))})
    LoweredCache(tmp_path / "kept", max_bytes=MANY).add("adapter", "base", lowered)
    with read_only_view(tmp_path / "kept", tmp_path / "view") as view:
        cache = LoweredCache(view, max_bytes=MANY)
        assert cache.find("adapter", "base") is not None
        cache.add("other", "base", lowered)
        assert cache.find("other", "base") is None
