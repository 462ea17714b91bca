"""A GPU's steps on torch's "meta" device, where nothing can be read back: no wait and no second device is in them."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction  # noqa: E402

from hotshoe.kernels.attention_batch import PagedBatch  # noqa: E402
from hotshoe.kernels.triton.logit_stats import logit_stats  # noqa: E402
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear  # noqa: E402
from hotshoe.server.adapters.adapter_batch import AdapterSegment  # noqa: E402
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots  # noqa: E402
from hotshoe.server.engine.device_sampler import NUM_RIDERS, draw_candidates, warm_up  # noqa: E402
from hotshoe.server.gpu_session.random_base import RandomCheckpoint, cancelling_adapter, random_lora  # noqa: E402
from hotshoe.server.gpu_session.sizes import DRY  # noqa: E402
from hotshoe.server.model.backends import triton_backend  # noqa: E402
from hotshoe.server.model.decoder_input import DecoderInput  # noqa: E402
from hotshoe.server.model.decoder_reader import read_decoder  # noqa: E402
from hotshoe.server.model.spec import ModelSpec  # noqa: E402
from hotshoe.server.model.step_graphs import CudaRecorder, GraphLimits, StepRows  # noqa: E402
from hotshoe.server.model.triton_decoder import TritonDecoder  # noqa: E402
from hotshoe.server.model.workspace import step_bytes  # noqa: E402

PAGE, DEVICE = 16, torch.device("meta")
STACKS: dict[str, list[tuple[tuple[int, float], ...]]] = {
    "base only": [(), ()],
    "low rank": [((0, 1.0),), ()],
    "scaled inputs": [((1, 1.0), (0, 0.5)), ((1, 0.5),)],
    "inputs scaled apart": [((2, 1.0),), ((0, 1.0),)],
}


class Watch(TorchDispatchMode):
    """Counts the copies to the device; an operation on tensors of two devices fails, as it would on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        given = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        if name in ("copy_", "_to_copy"):
            self.copies += not tensors[-1].is_meta and given[0].is_meta
        elif any(tensor.is_meta for tensor in tensors) and not all(t.is_meta or t.ndim == 0 for t in tensors):
            raise RuntimeError(f"{name}: tensors on two devices")
        return out


class Peak(TorchDispatchMode):
    """The most bytes on the device that tensors made under it have at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}  # what is changed in place was there before
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta and id(tensor) not in given and tensor._base is None:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: (one, size) for key, (one, size) in self._alive.items() if not one.expired()}
        self.size_bytes = max(self.size_bytes, sum(size for _, size in self._alive.values()))
        return out


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that would have been launched: none is, and each must be given tensors of the device only."""
    names: list[str] = []

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
        names.append(kernel.fn.__name__)
        assert all(one.is_meta for one in args if isinstance(one, Tensor)), f"{names[-1]}: a tensor of the host"

    monkeypatch.setattr(JITFunction, "run", launch)
    yield names


def scaling(spec: ModelSpec, *targets: str) -> LoweredAdapter:
    """Scales those linears' inputs, and all outputs of the keys."""
    linears = {
        linear_id: LoweredLinear(input_scale=torch.ones(shape.in_features))
        for linear_id, shape in spec.linears()
        if linear_id.target in targets
    }
    return LoweredAdapter("IA3", linears)


class Bed:
    """A decoder, its cache and four adapters: low rank; scaled inputs; of one target each; computed apart."""

    def __init__(self, pages: int = 8, **config: int) -> None:
        checkpoint = RandomCheckpoint(DRY.config | {"num_hidden_layers": 2, **config}, torch.device("cpu"))
        spec = checkpoint.spec
        decoder = read_decoder(checkpoint, spec, triton_backend(DEVICE))
        assert isinstance(decoder, TritonDecoder)
        self.decoder, self.kv = decoder, decoder.new_kv_cache(pages * PAGE)
        shape = spec.base_shape(name="random", digest=f"sha256:{'0' * 64}")
        self.slots = FixedAdapterSlots(4, shape, device=DEVICE, dtype=torch.bfloat16, device_bytes=1 << 22, max_rank=32)
        adapters = random_lora(spec, 24), scaling(spec, "down_proj"), scaling(spec, "k_proj"), cancelling_adapter(spec)
        for slot, adapter in enumerate(adapters):
            self.slots.place(slot, adapter)

    def inputs(self, rows: tuple[int, ...]) -> DecoderInput:
        """One sequence for each of those, with so many rows in this step and as many cached."""
        count = sum(rows)
        positions = torch.cat([torch.arange(n, 2 * n) for n in rows])
        tables = (1 + np.arange(len(rows), dtype=np.int32)).reshape(-1, 1)
        batch = PagedBatch(PAGE, tables, rows, tuple(2 * n for n in rows))
        return DecoderInput(
            torch.arange(count), positions, positions + PAGE, batch, logit_rows=torch.tensor(rows).cumsum(0) - 1
        )

    def segments(self, rows: tuple[int, ...], stacks: list[Any]) -> list[AdapterSegment]:
        ends = np.cumsum(rows).tolist()
        return [AdapterSegment(end - n, end, stack) for n, end, stack in zip(rows, ends, stacks, strict=True)]


@pytest.fixture(scope="module")
def bed() -> Bed:
    return Bed()


@pytest.mark.parametrize("kind", STACKS)
def test_a_recorded_step_is_one_copy_and_waits_for_nothing(kind: str, bed: Bed, launches: list[str]) -> None:
    graphs = bed.decoder.record_steps(bed.kv, bed.slots, GraphLimits(2, 2, PAGE, riders=NUM_RIDERS))
    assert graphs is not None
    adapters = bed.slots.batch(bed.segments((1, 1), STACKS[kind]), 2)
    for _ in range(2):
        launches.clear()
        with Watch() as watch:
            logits, riders = bed.decoder.step(bed.inputs((1, 1)), bed.kv, adapters, np.zeros((2, NUM_RIDERS)))
        assert watch.copies <= 1 + (graphs.num_recorded == 1)
    assert logits.is_meta and logits.shape == (2, bed.decoder.spec.vocab_size)
    assert {"_nf4_linear", "_attend", "_combine", "_rms_norm", "_rope_write_kv", "_silu_mul"} <= set(launches)
    assert ("_shrink" in launches, "_scale_inputs" in launches) == (kind != "base only", "inputs" in kind)
    with torch.inference_mode(), Watch() as watch:
        _, _, totals = logit_stats(logits, riders[:, 0].float())
        tokens = draw_candidates(logits, totals, riders)
    assert watch.copies == 0
    with pytest.raises(RuntimeError):
        tokens.tolist()  # what a wait would do anywhere above


@pytest.mark.parametrize("kind", STACKS)
def test_a_prompt_beside_decodes_mixes_no_devices(kind: str, bed: Bed) -> None:
    rows = (1, 7)
    adapters = bed.slots.batch(bed.segments(rows, STACKS[kind]), 8)
    with Watch() as watch:
        assert bed.decoder.step(bed.inputs(rows), bed.kv, adapters)[0].is_meta
    assert watch.copies == 1


def test_rows_apart_mix_no_devices(bed: Bed, launches: list[str]) -> None:
    rows, stacks = (1, 7), [((3, 1.0), (0, 1.0)), ((3, 0.5), (1, 1.0), (2, 1.0))]
    adapters = bed.slots.batch_apart(bed.segments(rows, stacks), 8)
    with Watch():
        assert bed.decoder.logits_of(bed.inputs(rows), bed.kv, adapters, compiled=False).values.is_meta
    assert {"_nf4_linear", "_attend"} <= set(launches)


SHAPES: dict[str, dict[str, int]] = {
    "wide": {"hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 8, "head_dim": 64},
    "many heads": {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "head_dim": 64},
    "many words": {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 60_000},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_step_takes_more_memory_than_the_cache_leaves_to_it(shape: str) -> None:
    bed = Bed(pages=40, **SHAPES[shape])
    bound = 0.0
    for rows, num_logits in ((512, 1), (255, 1), (255, 255)):
        left = step_bytes(bed.decoder.spec, rows=rows, logit_rows=num_logits, itemsize=2)
        peaks = {name: memory_of(bed, rows, num_logits, stack) for name, stack in ROWS.items()}
        assert max(peaks.values()) <= left, (peaks, left)
        bound = max(bound, max(peaks.values()) / left)
    assert bound > 0.2, "memory is left unused"


ROWS: dict[str, tuple[tuple[int, float], ...]] = {
    "base": (),
    "low rank": ((0, 1.0),),
    "inputs scaled apart": ((2, 1.0),),
    "apart": ((3, 1.0), (0, 1.0)),
}


def memory_of(bed: Bed, rows: int, num_logits: int, stack: tuple[tuple[int, float], ...]) -> int:
    """What a step of one prompt takes beside weights and cache, and drawing from its logits."""
    positions, pages = torch.arange(rows), -(-rows // PAGE)
    batch = PagedBatch(PAGE, (1 + np.arange(pages, dtype=np.int32))[None], (rows,), (rows,))
    logit_rows = torch.arange(rows - num_logits, rows)
    inputs = DecoderInput(positions % 100, positions, positions + PAGE, batch, logit_rows=logit_rows)
    segments, riders = [AdapterSegment(0, rows, stack)], np.zeros((num_logits, NUM_RIDERS))
    with torch.inference_mode(), Peak() as peak:
        if any(slot == 3 for slot, _ in stack):
            adapters = bed.slots.batch_apart(segments, rows)
            found = torch.from_numpy(riders).to(DEVICE)
            logits = bed.decoder.logits_of(inputs, bed.kv, adapters, compiled=False).values
            logits, found = torch.cat((logits, logits)), torch.cat((found, found))  # behind those of other rows
        else:
            logits, found = bed.decoder.step(inputs, bed.kv, bed.slots.batch(segments, rows), riders)
        draw_candidates(logits, logit_stats(logits, found[:, 0].float())[2], found)
    return peak.size_bytes


def test_warming_up_launches_what_any_adapters_need(bed: Bed, launches: list[str]) -> None:
    bed.decoder.warm_up(bed.kv, bed.slots, rows=7, page_tokens=PAGE)
    assert {"_nf4_linear", "_attend", "_shrink", "_scale_inputs", "_finish"} <= set(launches)
    launches.clear()
    warm_up(bed.decoder.spec.vocab_size, DEVICE)
    assert launches == ["_logit_stats"]


def test_a_step_that_cannot_be_recorded_is_run_again_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    streams: list[object] = []

    class Refused:
        def __init__(self, graph: object, **options: object) -> None:
            assert options["capture_error_mode"] == "thread_local"  # loaders' calls must not spoil a recording

        def __enter__(self) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        def __exit__(self, *error: object) -> None: ...

    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    runs: list[float] = []

    def step() -> StepRows:
        runs.append(len(runs))
        return StepRows(torch.full((1, 2), float(len(runs))), torch.zeros(1, 2))

    play = CudaRecorder(torch.device("cuda"))(step)
    assert streams == [torch.cuda.current_stream()]
    assert "a decode step is not recorded: CUDA out of memory." in caplog.messages
    first = play().logits
    assert play().logits is first and first.tolist() == [[3.0, 3.0]]
