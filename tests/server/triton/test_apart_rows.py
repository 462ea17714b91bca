"""Rows apart on the Triton backend: the reference's logits, and nothing of them in the rows that are played."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoder_inputs import PAGE
from hub_adapters import FIXTURES, hub_base, hub_files, hub_logits
from tiny_models import base_shape
from torch import Tensor
from triton_base import (
    LOW_RANK,
    TOLERANCE,
    AdapterStack,
    Part,
    TritonBase,
    decodes,
    filled_cache,
    prompts_then_decodes,
    recorded,
    relative_error,
    run_step,
    step_of,
    triton_base,
)

from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import GatedPrompt, LoweredAdapter, LoweredLinear, OutputSwap
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.model import triton_layers
from hotshoe.server.model.backends import triton_backend
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder_input import HeadRows
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.kv_cache import KvCache

LORA, IA3 = 1, 3  # slots of `TritonBase.slots`
OFT, ROAD, NORMS, GATED = 5, 6, 7, 8  # slots of ours
STACKS = ((OFT, 1.0), (LORA, 0.5)), ((NORMS, 1.0),), ((ROAD, 0.5), (IA3, 1.0), (NORMS, 0.25)), ((GATED, 1.0),)


def apart_adapters(shape: BaseShape) -> list[LoweredAdapter]:
    """Of random numbers, in the order of their slots."""
    generator = torch.Generator().manual_seed(3)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    oft, road = {}, {}
    for linear, found in shape.linears.items():
        blocks, out = found.in_features // 8, found.out_features
        oft[linear] = LoweredLinear(input_rotation=torch.eye(8) + 0.2 * normal(blocks, 8, 8))
        swap = OutputSwap(torch.randperm(out, generator=generator), 0.4 * normal(out))
        road[linear] = LoweredLinear(output_scale=1 + 0.3 * normal(out), output_swap=swap, bias_delta=0.1 * normal(out))
    sizes = 5, shape.num_kv_heads, shape.head_dim
    prompts = {layer: GatedPrompt(normal(*sizes), normal(*sizes), normal(1)) for layer in range(shape.num_layers)}
    return [
        LoweredAdapter("OFT", oft),
        LoweredAdapter("ROAD", road),
        LoweredAdapter("LN_TUNING", norms={norm: 0.3 * normal(found.size) for norm, found in shape.norms.items()}),
        LoweredAdapter("ADAPTION_PROMPT", gated_prompts=prompts),
    ]


def slots_of(base: TritonBase, backend: str) -> AdapterPlaces:
    slots = base.slots(backend, num_slots=9)
    for slot, adapter in enumerate(apart_adapters(base.shape), start=OFT):
        slots.place(slot, adapter)
    return slots


def run_apart(base: TritonBase, backend: str, slots: AdapterPlaces, kv: KvCache, parts: Sequence[Part]) -> Tensor:
    """The logits of a step of rows apart, on the CPU."""
    inputs, segments = step_of(parts, paged=backend == "triton")
    decoder = base.decoder if backend == "triton" else base.reference
    batch = slots.batch_apart if backend == "triton" else slots.batch
    adapters = batch(segments, inputs.token_ids.shape[0])
    return decoder.forward(inputs, kv, adapters).clone().cpu()


def all_logits(base: TritonBase, backend: str, stacks: Sequence[AdapterStack] = STACKS) -> Tensor:
    """Of prompts, and of decodes beside a chunk behind what is cached."""
    slots = slots_of(base, backend)
    kv = base.cache(base.decoder if backend == "triton" else base.reference)
    return torch.cat([run_apart(base, backend, slots, kv, step) for step in prompts_then_decodes(stacks)])


@pytest.mark.parametrize(
    ("family", "ops"),
    [("llama", ""), ("qwen3", ""), ("gemma2", ""), ("mistral", "linear=cublas,norm=torch,attention=sdpa")],
)
def test_their_logits_are_the_references(family: str, ops: str, tmp_path: Path, device: torch.device) -> None:
    base = triton_base(tmp_path, family, device, ops=ops, num_layers=2 if family == "gemma2" else 1)
    expected = all_logits(base, "reference")
    assert relative_error(all_logits(base, "triton"), expected) < TOLERANCE[device.type]
    for index in range(4):
        without = [() if stack is STACKS[index] else stack for stack in STACKS]
        assert relative_error(all_logits(base, "reference", without), expected) > 0.05


def test_many_of_them_multiply_by_a_decoded_weight(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = triton_base(tmp_path, "llama", device)
    expected = all_logits(base, "reference")
    monkeypatch.setattr(triton_layers, "DENSE_ROWS", 8)
    assert relative_error(all_logits(base, "triton"), expected) < TOLERANCE[device.type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> TritonBase:
    return triton_base(tmp_path_factory.mktemp("base"), "qwen3", device)


def others(stacks: Sequence[AdapterStack] = STACKS) -> list[Part]:
    """A decode, then prompts, in pages that `decodes` leaves alone."""
    tokens, starts = ([4], [5, 9, 200], [77] * 5, [8, 250]), (6, 0, 0, 0)
    return [Part(*part) for part in zip(tokens, starts, ([20, 21], [22], [23], [24]), stacks, strict=True)]


def test_rows_that_are_played_keep_every_bit_while_others_run_come_and_go(base: TritonBase) -> None:
    slots, kv = base.slots("triton", num_slots=9), filled_cache(base)
    graphs = recorded(base, kv, slots)
    together = decodes(LOW_RANK)
    alone, count = run_step(base.decoder, slots, kv, together), graphs.num_recorded
    for slot, adapter in enumerate(apart_adapters(base.shape), start=OFT):
        slots.place(slot, adapter)
    played = base.decoder.step(*_step(slots, together, kv))[0]
    apart = run_apart(base, "triton", slots, kv, others())
    assert torch.equal(played.cpu(), alone)  # where it lies until the next step is played
    assert torch.equal(run_apart(base, "triton", slots, filled_cache(base), others()), apart)
    slots.clear(NORMS)
    slots.clear(OFT)
    assert torch.equal(run_step(base.decoder, slots, kv, together), alone)
    slots.place(OFT, base.adapters[2])
    slots.place(NORMS, apart_adapters(base.shape)[0])
    stacks = [((NORMS, 1.0), (LORA, 0.5)), *STACKS[1:]]
    again = run_apart(base, "triton", slots, kv, [others(stacks)[0], *others()[3:]])
    near = 1e-5 if base.device.type == "cpu" else 2e-2
    torch.testing.assert_close(again, apart[[0, 3]], rtol=near, atol=near)
    assert graphs.num_recorded == count


def _step(slots: AdapterPlaces, parts: Sequence[Part], kv: KvCache) -> tuple:
    inputs, segments = step_of(parts, paged=True)
    return inputs, kv, slots.batch(segments, inputs.token_ids.shape[0])


def test_a_row_apart_keeps_every_bit_beside_one_of_numbers_that_are_not_finite(base: TritonBase) -> None:
    slots, kv = slots_of(base, "triton"), filled_cache(base)
    recorded(base, kv, slots)
    sound = run_apart(base, "triton", slots, kv, others())
    together = run_step(base.decoder, slots, kv, decodes(LOW_RANK))
    bad = slots._placed[OFT].adapter
    for rotations in bad.rotations.values():
        for matrices in rotations.inputs:
            matrices.fill_(torch.nan)
    poisoned = run_apart(base, "triton", slots, kv, others())
    assert poisoned[0].isnan().all()
    assert torch.equal(poisoned[1:], sound[1:])
    assert torch.equal(run_step(base.decoder, slots, kv, decodes(LOW_RANK)), together)


def test_a_played_step_takes_other_rows_of_the_head_for_some_of_its_logits(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    graphs = recorded(base, kv, slots)
    inputs, kv, adapters = _step(slots, decodes(LOW_RANK), kv)
    plain = base.decoder.step(inputs, kv, adapters)[0].clone()
    count = graphs.num_recorded
    generator = torch.Generator().manual_seed(2)
    tokens, rows = torch.tensor([3, 200]), torch.randn(2, base.shape.hidden_size, generator=generator)
    replaced = (HeadRows(1, 3, tokens.to(base.device), rows.to(base.device)),)
    played = base.decoder.step(replace(inputs, head_rows=replaced), kv, adapters)[0].clone()
    assert graphs.num_recorded == count
    at_once = base.decoder.step(replace(inputs, head_rows=replaced), filled_cache(base), adapters)[0]
    reference = base.reference.new_kv_cache(kv.num_slots)
    for ours, theirs in zip(reference.layers, filled_cache(base).layers, strict=True):
        ours.copy_(theirs.cpu())
    ours, segments = step_of(decodes(LOW_RANK), paged=False)
    known = base.slots("reference").batch(segments, 4)
    expected = base.reference.forward(replace(ours, head_rows=(HeadRows(1, 3, tokens, rows),)), reference, known)
    changed = played != plain
    assert changed.nonzero().tolist() == [[row, token] for row in (1, 2) for token in tokens.tolist()]
    assert torch.equal(played, at_once)
    assert relative_error(played.cpu()[1:3, tokens], expected[1:3, tokens]) < TOLERANCE[base.device.type]
    assert torch.equal(base.decoder.step(inputs, kv, adapters)[0], plain)


def test_bottlenecks_give_the_logits_of_the_package_that_trained_them(device: torch.device) -> None:
    checkpoint = DirectoryCheckpoint(FIXTURES / "llama" / "base")
    spec, shape = spec_from_config(checkpoint.config), base_shape(hub_base("llama"))
    decoder = read_decoder(checkpoint, spec, triton_backend(device))
    slots = AdapterSlots.for_base(shape, num_slots=4, backend="triton", device=device, max_rank=16)
    cases = ["houlsby", "pfeiffer", "parallel-residual-gone", "compacter"]
    for slot, case in enumerate(cases):
        slots.place(slot, lower_adapter(hub_files("llama", case), CheckpointWeights(checkpoint, shape)))
    expected = hub_logits("llama")
    tokens = expected["tokens"][0].tolist()
    pages = -(-len(tokens) // PAGE)
    parts = [
        Part(tokens, 0, range(1 + pages * slot, 1 + pages * slot + pages), ((slot, 1.0),)) for slot in range(len(cases))
    ]
    inputs, segments = step_of(parts, paged=True)
    rows = len(cases) * len(tokens)
    inputs = replace(inputs, logit_rows=torch.arange(rows))
    kv = decoder.new_kv_cache((1 + len(cases) * pages) * PAGE)
    logits = decoder.logits_of(inputs, kv, slots.batch_apart(segments, rows), compiled=False).values.cpu()
    for case, ours in zip(cases, logits.split(len(tokens)), strict=True):
        assert relative_error(ours, expected[case][0]) < TOLERANCE[device.type], case
