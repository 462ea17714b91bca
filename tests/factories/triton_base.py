"""A tiny NF4 base on the Triton backend beside the reference one, adapters of every kind, and steps over both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoder_inputs import PAGE
from model_directories import write_tiny_model
from peft_adapters import adapter_files, write_ia3, write_lora
from torch import Tensor

from hotshoe.kernels.attention_batch import PagedBatch
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.model.backends import reference_backend, triton_backend
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.quantize import write_quantized
from hotshoe.server.model.step_graphs import GraphLimits, StepGraphs
from hotshoe.server.model.triton_decoder import TritonDecoder

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.4, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": {"sliding_window": 9, "head_dim": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 9.0}},
    },
    "phi3": {"rope_parameters": LONG, "original_max_position_embeddings": 8, "sliding_window": 9},
}
PAGES = 40
TOLERANCE = {"cpu": 1e-5, "cuda": 4e-2}  # float32 in the interpreter, bfloat16 on a GPU
AdapterStack = tuple[tuple[int, float], ...]
CONTEXTS = (1, 17, 9, 5)  # of each row of `decodes`
LOW_RANK: list[AdapterStack] = [((0, 1.0),), ((1, 0.5), (2, -1.0)), (), ((0, 1.0),)]


@dataclass(frozen=True)
class TritonBase:
    """The same weights twice."""

    decoder: TritonDecoder
    reference: Decoder
    shape: BaseShape
    adapters: tuple[LoweredAdapter, ...]  # LORA of rank 4, of 24 on three targets, with biases; IA3, inputs too; apart
    device: torch.device

    def slots(self, backend: str, *, num_slots: int = 8, place: Sequence[int] = range(5)) -> AdapterPlaces[Any]:
        """Slots with those adapters in their order."""
        device = self.device if backend == "triton" else "cpu"
        slots = AdapterSlots.for_base(
            self.shape, num_slots=num_slots, backend=backend, device=device, device_bytes=1 << 23, max_rank=32
        )
        for slot, adapter in enumerate(place):
            slots.place(slot, self.adapters[adapter])
        return slots

    def cache(self, decoder: Decoder) -> KvCache:
        return decoder.new_kv_cache(PAGES * PAGE)


def triton_base(
    directory: Path, family: str, device: torch.device, *, ops: str = "", num_layers: int = 1
) -> TritonBase:
    """Writes and reads one; the hidden size is 64, so that every row of a weight begins with a block."""
    fields = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, **FAMILIES[family]}
    fields["num_hidden_layers"] = num_layers
    write_tiny_model(directory / "model", family, **fields)
    (directory / "nf4").mkdir()
    source = DirectoryCheckpoint(directory / "model")
    spec = spec_from_config(source.config)
    write_quantized(source, spec, directory / "nf4")
    checkpoint = DirectoryCheckpoint(directory / "nf4")
    shape = spec.base_shape(name="tiny", digest=f"sha256:{'b' * 64}")
    written = (
        write_lora(directory / "r4", shape, rank=4, targets=EVERY, seed=1),
        write_lora(directory / "r24", shape, rank=24, targets=("q_proj", "v_proj", "up_proj", "qkv_proj"), seed=2),
        write_lora(directory / "bias", shape, rank=16, targets=EVERY, seed=3, lora_bias=True),
        write_ia3(directory / "ia3", shape, targets=("k_proj", "v_proj", "qkv_proj", "down_proj"), seed=4),
        write_ia3(
            directory / "apart", shape, targets=("k_proj", "v_proj", "gate_up_proj"), feedforward=("v_proj",), seed=6
        ),
    )
    weights = CheckpointWeights(checkpoint, shape)
    decoder = read_decoder(checkpoint, spec, triton_backend(device, ops))
    assert isinstance(decoder, TritonDecoder)
    return TritonBase(
        decoder,
        read_decoder(checkpoint, spec, reference_backend()),
        shape,
        tuple(lower_adapter(adapter_files(path), weights) for path in written),
        device,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens that a step adds to one sequence, which lies in these pages, and its stack."""

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    stack: AdapterStack = ()
    far: bool = False


def step_of(parts: Sequence[Part], *, paged: bool) -> tuple[DecoderInput, list[AdapterSegment]]:
    """One step, decodes first, with the logits of each part's last row; and its rows' adapters."""
    positions = [torch.arange(part.start, part.start + len(part.token_ids)) for part in parts]
    kv_slots = [
        torch.tensor(part.pages)[position // PAGE] * PAGE + position % PAGE
        for part, position in zip(parts, positions, strict=True)
    ]
    lengths = [len(part.token_ids) for part in parts]
    ends = torch.tensor(lengths).cumsum(0)
    tables = torch.zeros(len(parts), max(len(part.pages) for part in parts), dtype=torch.int32)
    for line, part in enumerate(parts):
        tables[line, : len(part.pages)] = torch.tensor(part.pages)
    contexts = tuple(part.start + length for part, length in zip(parts, lengths, strict=True))
    batch = PagedBatch(PAGE, tables.numpy(), tuple(lengths), contexts)
    inputs = DecoderInput(
        token_ids=torch.tensor([token for part in parts for token in part.token_ids]),
        positions=torch.cat(positions),
        kv_slots=torch.cat(kv_slots),
        attention=batch if paged else batch.by_slots(),
        far_rows=torch.tensor([part.far for part in parts]).repeat_interleave(torch.tensor(lengths)),
        logit_rows=ends - 1,
    )
    segments = [
        AdapterSegment(int(end) - length, int(end), part.stack)
        for part, length, end in zip(parts, lengths, ends, strict=True)
    ]
    return inputs, segments


def prompts_then_decodes(stacks: Sequence[AdapterStack]) -> list[list[Part]]:
    """Two steps of four sequences: prompts, then decodes beside a chunk behind what is cached, and one prompt more."""
    tokens = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61], [77, 12, 4], list(range(100, 121)), [8, 8, 8, 9]
    (one, two, three, four), pages = tokens, ([1, 5], [2], [3, 6], [4])
    a, b, c, d = zip(pages, stacks, strict=True)
    first = [Part(two, 0, *b), Part(one[:6], 0, *a), Part(four, 0, *d)]
    second = [Part([99], 3, *b), Part([55], 4, *d), Part(one[6:], 6, *a), Part(three, 0, *c)]
    return [first, second]


def decodes(stacks: Sequence[AdapterStack], contexts: Sequence[int] = CONTEXTS) -> list[Part]:
    """A step of one row for each stack, up to four."""
    return [
        Part([(7 + 13 * row) % 250], context - 1, [1 + 2 * row, 2 + 2 * row], stack)
        for row, (context, stack) in enumerate(zip(contexts, stacks, strict=False))
    ]


def filled_cache(base: TritonBase) -> KvCache:
    """Of the Triton decoder: random numbers everywhere but in the null page."""
    kv = base.cache(base.decoder)
    for layer in kv.layers:
        layer[PAGE:] = torch.randn(layer[PAGE:].shape, generator=torch.Generator().manual_seed(5)) / 2
    return kv


def recorded(base: TritonBase, kv: KvCache, slots: AdapterPlaces[Any], *, max_rows: int = 4) -> StepGraphs:
    """From now on steps over that cache are played."""
    graphs = base.decoder.record_steps(kv, slots, GraphLimits(max_rows, 8, PAGE))
    assert graphs is not None
    return graphs


def run_step(decoder: Decoder, slots: AdapterPlaces[Any], kv: KvCache, parts: Sequence[Part]) -> Tensor:
    """The logits of a step, on the CPU."""
    inputs, segments = step_of(parts, paged=isinstance(decoder, TritonDecoder))
    return decoder.forward(inputs, kv, slots.batch(segments, inputs.token_ids.shape[0])).clone().cpu()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
