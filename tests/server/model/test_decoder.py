"""The decoder against transformers: same weights, same logits, whatever is cut into chunks or mixed in a batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import PAGE, Chunk, decoder_input, paged_slots
from model_directories import write_tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000.0}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.6, 2.0, 2.5, 3.0],
    "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0],
    "rope_theta": 1e4,
}
PARTIAL_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.4, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "llama_no_gqa": ("llama", {"num_key_value_heads": 4}),
    "llama_wide_heads": ("llama", {"head_dim": 32}),
    "llama_linear_rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}),
    "llama_llama3_rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama_yarn_rope": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3_biases": ("qwen3", {"attention_bias": True}),
    "qwen3_yarn_rope": ("qwen3", {"rope_parameters": YARN}),
    "qwen3_window": ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "gemma": ("gemma", {}),
    "gemma_untied": ("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": ("gemma2", {}),
    "gemma2_other_caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": 0.7}),
    "gemma2_by_type": ("gemma2", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}),
    "gemma3": ("gemma3_text", {}),
    "gemma3_by_six": ("gemma3_text", {"num_hidden_layers": 7, "layer_types": None}),
    "gemma3_linear_rope": ("gemma3_text", {"rope_parameters": GEMMA3_ROPES, "final_logit_softcapping": 2.0}),
    "phi3": ("phi3", {}),
    "phi3_tied_no_gqa": ("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "phi3_window": ("phi3", {"sliding_window": 9}),
    "phi3_partial_rotary": ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3_longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "phi3_partial_longrope": ("phi3", {"rope_parameters": PARTIAL_LONG, "original_max_position_embeddings": 64}),
}
PROMPTS = (
    [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61],
    [77, 12],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
)


def read(directory: Path) -> Decoder:
    checkpoint = DirectoryCheckpoint(directory)
    return read_decoder(checkpoint, spec_from_config(checkpoint.config), reference_backend())


def expected_logits(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_when_chunked_and_mixed(variant: str, tmp_path: Path) -> None:
    family, config = VARIANTS[variant]
    model = write_tiny_model(tmp_path, family, seed=3, **config)
    decoder = read(tmp_path)
    kv = decoder.new_kv_cache(64 * PAGE)
    slots = [paged_slots(64, first_page=1 + i, stride=3) for i in range(3)]
    a, b, c = PROMPTS
    steps = [
        [Chunk(a[:4], 0, slots[0]), Chunk(c[:9], 0, slots[2])],
        [Chunk(a[4:5], 4, slots[0]), Chunk(b, 0, slots[1]), Chunk(c[9:], 9, slots[2])],
        [Chunk([99], 2, slots[1]), Chunk([98], 17, slots[2]), Chunk(a[5:], 5, slots[0])],
        [Chunk([55], 11, slots[0]), Chunk([56], 3, slots[1]), Chunk([57], 18, slots[2])],
    ]
    whole = {0: [*a, 55], 1: [*b, 99, 56], 2: [*c, 98, 57]}
    expected = {id(slots[i]): expected_logits(model, ids) for i, ids in whole.items()}
    for step in steps:
        logits = decoder.forward(decoder_input(step, all_logits=True), kv)
        wanted = [expected[id(c.slots)][c.start : c.start + len(c.token_ids)] for c in step]
        assert relative_error(logits, torch.cat(wanted)) < 1e-5


@pytest.mark.parametrize("rope", [LONG, PARTIAL_LONG], ids=["whole heads", "a part of each"])
def test_far_sequences_turn_as_transformers_turns_them_beside_others_that_do_not(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    fields = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    model = write_tiny_model(tmp_path, "phi3", seed=3, **fields)
    decoder = read(tmp_path)
    kv = decoder.new_kv_cache(64 * PAGE)
    a, _, c = PROMPTS
    slots = [paged_slots(64, first_page=1 + i, stride=2) for i in range(2)]
    steps = [
        [Chunk(c[:9], 0, slots[1], far=True), Chunk(a[:8], 0, slots[0])],
        [Chunk([57], 17, slots[1], far=True), Chunk(a[8:], 8, slots[0])],
    ]
    steps.insert(1, [Chunk(c[9:], 9, slots[1], far=True)])
    far, near = expected_logits(model, [*c, 57]), expected_logits(model, a)
    for step in steps:
        logits = decoder.forward(decoder_input(step, all_logits=True), kv)
        wanted = [(far if c.far else near)[c.start : c.start + len(c.token_ids)] for c in step]
        assert relative_error(logits, torch.cat(wanted)) < 1e-5
    turned_near = decoder.forward(decoder_input([Chunk(c, 0, slots[0])], all_logits=True), kv)
    assert relative_error(turned_near, far[: len(c)]) > 1e-2
