"""Decode steps in compiled code: the numbers of the step run operation by operation, on any number of threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compiled_steps import decode_step, filled_cache, relative_error
from decoder_inputs import Chunk, decoder_input, paged_slots
from model_directories import write_tiny_model
from peft_adapters import adapter_files, write_ia3, write_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

from hotshoe.kernels.cpu import nf4_linear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.loader import LoadedBase, load_base

pytest.importorskip("numba")
from hotshoe.kernels.cpu import amx
from hotshoe.server.model.compiled_steps import compile_steps

pytestmark = pytest.mark.skipif(nf4_linear.kernel() is None, reason="needs AVX512-BF16")

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
GEMMA3_ROPES = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 50.0}}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 20},
    "gemma3_text": {"sliding_window": 24, "rope_parameters": GEMMA3_ROPES},
    "phi3": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}, "sliding_window": 24},
}
CONTEXTS = (1, 17, 40, 5, 33, 64, 2, 50, 31)  # of each row; no two rows of one page


@pytest.fixture(params=[1, 2, 3], ids=lambda team: f"{team} threads")
def team(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["vectors", "matrix tiles"])
def matrix_tiles(request: pytest.FixtureRequest) -> bool:
    if request.param == "matrix tiles" and not amx.available():
        pytest.skip("needs AMX")
    return request.param == "matrix tiles"


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, team: int, matrix_tiles: bool, tmp_path: Path) -> LoadedBase:
    fields = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, **FAMILIES[request.param]}
    if request.param == "qwen2":
        del fields["head_dim"]
    write_tiny_model(tmp_path / "model", request.param, **fields)
    loaded = load_base(str(tmp_path / "model"), cache=tmp_path / "bases", device="cpu", backend="cpu_nf4")
    decoder = loaded.decoder
    assert decoder._compiled is not None
    decoder._compiled = compile_steps(
        decoder.spec, decoder._layers, norm=decoder._norm, head=decoder._head, threads=team, matrix_tiles=matrix_tiles
    )
    return loaded


@pytest.fixture
def adapters(base: LoadedBase, tmp_path: Path) -> AdapterSlots:
    """Slots with LORA adapters of several ranks, one with biases, and IA3 on outputs and inputs."""
    shape = base.weights.shape
    directories = [
        write_lora(tmp_path / "r4", shape, rank=4, targets=EVERY, seed=1),
        write_lora(tmp_path / "r40", shape, rank=40, targets=("q_proj", "v_proj", "up_proj", "qkv_proj"), seed=2),
        write_lora(tmp_path / "bias", shape, rank=16, targets=EVERY, seed=3, lora_bias=True),
        write_ia3(tmp_path / "ia3", shape, targets=("k_proj", "v_proj", "qkv_proj", "down_proj"), seed=4),
    ]
    slots = AdapterSlots.for_base(shape, num_slots=8, backend="cpu_nf4")
    for slot, directory in enumerate(directories):
        slots.place(slot, lower_adapter(adapter_files(directory), base.weights))
    return slots


STACKS = (((0, 1.0),), (), ((1, 1.0),), ((2, 1.0),), ((3, 1.0),), ((0, 0.5), (3, 0.7), (2, -1.0)), (), ((1, 2.0),))


def both_ways(base: LoadedBase, step: DecoderInput, batch) -> tuple[Tensor, Tensor]:
    """Logits and the cache after it, compiled and operation by operation."""
    results = []
    compiled = base.decoder._compiled
    for layers in (compiled, None):
        base.decoder._compiled = layers
        kv = filled_cache(base)
        logits = base.decoder.forward(step, kv, batch)
        results.append(torch.cat([logits.flatten(), *(layer.flatten() for layer in kv.layers)]))
    base.decoder._compiled = compiled
    return results[0], results[1]


def segments(count: int) -> list[AdapterSegment]:
    return [AdapterSegment(row, row + 1, STACKS[row % len(STACKS)]) for row in range(count)]


def test_base_rows_agree_with_the_operations(base: LoadedBase) -> None:
    for rows in (1, 2, 3, len(CONTEXTS)):
        compiled, operations = both_ways(base, decode_step(CONTEXTS[:rows]), None)
        assert relative_error(compiled, operations) < 1e-2


def test_adapted_rows_agree_with_the_operations(base: LoadedBase, adapters: AdapterSlots) -> None:
    batch = adapters.batch(segments(len(CONTEXTS)), len(CONTEXTS))
    assert batch is not None
    assert batch.row_terms(num_rows=len(CONTEXTS), num_layers=base.spec.num_layers)
    compiled, operations = both_ways(base, decode_step(CONTEXTS), batch)
    assert relative_error(compiled, operations) < 2e-2


def test_prompts_beside_decodes_agree_with_the_operations(base: LoadedBase, adapters: AdapterSlots) -> None:
    chunks = [Chunk([7], 16, paged_slots(64, first_page=1)), Chunk([9], 3, paged_slots(64, first_page=5))]
    chunks += [
        Chunk(list(range(20, 33)), 0, paged_slots(64, first_page=9)),
        Chunk(list(range(60, 79)), 21, paged_slots(64, first_page=13)),  # behind what is cached
    ]
    batch = adapters.batch(
        [
            AdapterSegment(0, 1, ((3, 1.0),)),
            AdapterSegment(1, 2),
            AdapterSegment(2, 15, ((0, 1.0), (3, 0.5))),
            AdapterSegment(15, 34, ((1, 1.0),)),
        ],
        34,
    )
    compiled, operations = both_ways(base, decoder_input(chunks, all_logits=True), batch)
    assert relative_error(compiled, operations) < 2e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gates_far_below_zero_give_nothing(family: str, tmp_path: Path) -> None:
    """As e^−gate is more there than float32 holds."""
    fields = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
    write_tiny_model(tmp_path / "model", family, **fields)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    gates = {name: 400 * tensor for name, tensor in tensors.items() if "gate_proj" in name}
    save_file(tensors | gates, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    base = load_base(str(tmp_path / "model"), cache=tmp_path / "bases", device="cpu", backend="cpu_nf4")
    compiled, operations = both_ways(base, decode_step(CONTEXTS), None)
    assert relative_error(compiled, operations) < 1e-2


def test_a_prompt_in_chunks_is_bit_identical_to_one_in_whole(base: LoadedBase) -> None:
    tokens, slots = list(range(30, 71)), paged_slots(64, first_page=1)
    whole = filled_cache(base)
    base.decoder.forward(decoder_input([Chunk(tokens, 0, slots)]), whole)
    chunked = filled_cache(base)
    for start in (0, 1, 10, 33):
        end = {0: 1, 1: 10, 10: 33, 33: 41}[start]
        base.decoder.forward(decoder_input([Chunk(tokens[start:end], start, slots)]), chunked)
    assert all(torch.equal(a, b) for a, b in zip(whole.layers, chunked.layers, strict=True))


def test_a_row_keeps_every_bit_when_its_neighbours_change(base: LoadedBase, adapters: AdapterSlots) -> None:
    count = len(CONTEXTS)
    first = base.decoder.forward(decode_step(CONTEXTS), filled_cache(base), adapters.batch(segments(count), count))
    others = decode_step((1, 60, 3, 61, 62, 9, 41, 8, 12), first_token=90)
    mixed = [
        AdapterSegment(row, row + 1, STACKS[(row + 3) % len(STACKS)] if row else STACKS[0]) for row in range(count)
    ]
    others.token_ids[0] = 7
    second = base.decoder.forward(others, filled_cache(base), adapters.batch(mixed, count))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_rows_of_far_sequences_turn_otherwise_than_their_neighbours(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [2.0 + i for i in range(12)]}
    fields = {"rope_parameters": {**rope, "rope_theta": 1e4, "partial_rotary_factor": 0.75}, "head_dim": 32}
    write_tiny_model(tmp_path / "m", "phi3", hidden_size=128, original_max_position_embeddings=20, **fields)
    base = load_base(str(tmp_path / "m"), cache=tmp_path / "bases", device="cpu", backend="cpu_nf4")
    assert base.decoder._compiled is not None and base.decoder._compiled.layers is not None
    far, near = paged_slots(64, first_page=1), paged_slots(64, first_page=9)
    chunks = [
        Chunk([7], 30, far, far=True),
        Chunk([9], 12, near),
        Chunk(list(range(20, 33)), 3, paged_slots(64, first_page=20)),
    ]
    compiled, operations = both_ways(base, decoder_input(chunks, all_logits=True), None)
    assert relative_error(compiled, operations) < 1e-2
    logits, plain = (
        base.decoder.forward(decoder_input([Chunk([7], 30, far, far=turned), *chunks[1:]], all_logits=True), kv)
        for turned, kv in ((True, filled_cache(base)), (False, filled_cache(base)))
    )
    assert relative_error(plain[0], logits[0]) > 0.02 and torch.equal(plain[1:], logits[1:])
