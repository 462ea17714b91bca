"""A tiny base, a real registry and real residency, and engines over them."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from running_engine import RunningEngine
from tiny_bases import TinyBase, tiny_base
from transformers import PreTrainedModel

from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.model.decoder import Decoder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: TinyBase) -> PreTrainedModel:
    return base.model


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    store = Registry(tmp_path / "registry")
    yield store
    store.close()


@pytest.fixture
def publish(registry: Registry, base: TinyBase) -> Callable[..., AdapterUse]:
    """Publishes an adapter directory, and says how a request uses it, or one of its tasks."""

    def publish_directory(directory: Path, *, weight: float = 1.0, task: int | None = None) -> AdapterUse:
        files = []
        for path in sorted(directory.iterdir()):
            data = path.read_bytes()
            blob = FileDescriptor(path.name, f"sha256:{sha256(data).hexdigest()}", len(data))
            if registry.missing_blobs([blob.digest]):
                upload = registry.open_upload(blob)
                upload.write(0, data)
                upload.finish()
            files.append(blob)
        record, _ = registry.publish(name=directory.name, tags=["latest"], files=files, annotations={}, base=base.shape)
        return AdapterUse(directory.name, directory.name, record.digest, weight, task)

    return publish_directory


@pytest.fixture
def start_engine(base: TinyBase, registry: Registry) -> Iterator[Callable[..., RunningEngine]]:
    """Makes engines: `adapter_slots` goes to the residency, everything else to `RunningEngine`.

    `decoder` is another one of the base's weights than the reference's.
    """
    opened = []

    def make_engine(*, adapter_slots: int = 16, decoder: Decoder = base.decoder, **config: Any) -> RunningEngine:
        backend = decoder.backend
        slots = AdapterSlots.for_base(
            base.shape, num_slots=adapter_slots, backend=backend.name, device=backend.device, max_rank=32
        )
        residency = AdapterResidency(
            registry=registry,
            base=base.weights,
            slots=slots,
            config=ResidencyConfig(adapter_slots=adapter_slots, allow_other_base=True),
        )
        opened.append(residency)
        return RunningEngine(decoder, slots=slots, residency=residency, **config)

    yield make_engine
    for residency in opened:
        residency.close()
