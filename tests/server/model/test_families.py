"""Configs become specs: transformers' own defaults and spellings, and refusals by name."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.families import FAMILIES, spec_from_config

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3_other": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 6.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn_mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn_attention": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, "truncate": False},
    "yarn_betas": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16, "beta_slow": 2},
}


def config(architecture: str = "LlamaForCausalLM", **fields: Any) -> dict[str, Any]:
    known = FAMILIES.get(architecture)
    model_type = known.model_type if known else "llama"
    return {"architectures": [architecture], "model_type": model_type, **SIZES, "num_key_value_heads": 2, **fields}


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_what_a_config_leaves_out_is_as_transformers_has_it(architecture: str) -> None:
    fields = config(architecture, num_attention_heads=32)
    del fields["num_key_value_heads"]
    ours = spec_from_config(fields)
    theirs = AutoConfig.for_model(ours.model_type, **{**SIZES, "num_attention_heads": 32})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.max_sequence_length == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    ropes = theirs.rope_parameters
    assert ours.rope.theta == ropes.get("full_attention", ropes)["rope_theta"]
    assert ours.ropes[0].theta == ropes.get("sliding_attention", ropes)["rope_theta"]
    assert ours.tied_head == theirs.tie_word_embeddings
    types = getattr(theirs, "layer_types", None) or ["sliding_attention" if ours.model_type == "mistral" else ""] * 4
    assert ours.windows == tuple(theirs.sliding_window if one == "sliding_attention" else None for one in types)
    if hasattr(theirs, "query_pre_attn_scalar"):
        assert (ours.query_scalar, ours.logit_cap) == (theirs.query_pre_attn_scalar, theirs.final_logit_softcapping)
        assert ours.attention_cap == theirs.attn_logit_softcapping


def test_a_null_number_of_kv_heads_means_one_for_each_head() -> None:
    assert spec_from_config(config("Qwen2ForCausalLM", num_key_value_heads=None)).num_kv_heads == 4


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", ROPES)
def test_rope_frequencies_equal_transformers(name: str, spelling: str) -> None:
    parameters = {"rope_type": name, **ROPES[name], "rope_theta": 5e5}
    theirs = AutoConfig.for_model("llama", **SIZES, head_dim=64, rope_parameters=dict(parameters))
    expected, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, torch.device("cpu"))
    fields: dict[str, Any] = {"rope_parameters": parameters}
    if spelling == "rope_scaling":  # before transformers 5, the base stood beside
        fields = {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}
    rope = spec_from_config(config(head_dim=64, **fields)).rope
    torch.testing.assert_close(rope.inverse_frequencies(64), expected, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor)


@pytest.mark.parametrize("spelling", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("share", [1.0, 0.75])
@pytest.mark.parametrize("fields", [{}, {"factor": 4.0}, {"attention_factor": 1.25}])
def test_phi3_s_frequencies_equal_transformers_near_and_far(
    fields: dict[str, Any], share: float, spelling: str
) -> None:
    count = int(16 * share) // 2
    parameters = {
        "type": spelling,
        "short_factor": [1 + 0.1 * i for i in range(count)],
        "long_factor": [1.0 + i**2 for i in range(count)],
        "original_max_position_embeddings": 4096,
        **fields,
    }
    beside = {"partial_rotary_factor": share, "max_position_embeddings": 131_072, "rope_theta": 5e5}
    given = config("Phi3ForCausalLM", **beside, rope_scaling=parameters, original_max_position_embeddings=4096)
    theirs = AutoConfig.for_model(**copy.deepcopy(given))
    rope = spec_from_config(given).rope
    for far in (False, True):
        length = 4097 if far else 4096
        expected, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, torch.device("cpu"), seq_len=length)
        torch.testing.assert_close(rope.inverse_frequencies(16, far=far), expected, rtol=1e-6, atol=0)
        assert rope.attention_factor == pytest.approx(factor)
    assert rope.far_from == theirs.rope_parameters["original_max_position_embeddings"] == 4096


def test_the_old_spelling_of_a_rope_type_is_read() -> None:
    assert spec_from_config(config(rope_scaling={"type": "linear", "factor": 2.0})).rope.type == "linear"


def test_windows_lie_where_the_config_says() -> None:
    qwen = {"use_sliding_window": True, "sliding_window": 9}
    assert spec_from_config(config("MistralForCausalLM", sliding_window=9)).windows == (9,) * 4
    assert spec_from_config(config("MistralForCausalLM", sliding_window=None)).windows == (None,) * 4
    assert spec_from_config(config("Phi3ForCausalLM", sliding_window=9)).windows == (9,) * 4
    assert spec_from_config(config("Phi3ForCausalLM", sliding_window=None)).windows == (None,) * 4
    assert spec_from_config(config("Qwen2ForCausalLM", **qwen, max_window_layers=3)).windows == (None, None, None, 9)
    assert spec_from_config(config("Qwen2ForCausalLM", sliding_window=9)).windows == (None,) * 4
    types = ["sliding_attention", "full_attention"] * 2
    assert spec_from_config(config("Qwen3ForCausalLM", **qwen, layer_types=types)).windows == (9, None, 9, None)


# As Google publishes them, less what says nothing of the arithmetic.
PUBLISHED_GEMMAS: dict[str, dict[str, Any]] = {
    "gemma-2b": {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
        "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None, "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 256000,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
        "use_cache": True, "vocab_size": 256000,
    },
    "gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144,
    },
    "gemma-3-270m": {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1,
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2048,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512, "torch_dtype": "bfloat16",
        "use_bidirectional_attention": False, "use_cache": True, "vocab_size": 262144,
    },
    "the text of gemma-3-4b": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 2560,
        "intermediate_size": 10240, "num_attention_heads": 8, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "vocab_size": 262208,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_GEMMAS)
def test_published_gemmas_are_read_as_transformers_reads_them(name: str) -> None:
    fields = PUBLISHED_GEMMAS[name]
    theirs = AutoConfig.for_model(**{key: value for key, value in fields.items() if key != "architectures"})
    saved = {**theirs.to_dict(), "architectures": fields["architectures"]}  # as transformers 5 spells it
    for ours in (spec_from_config(fields), spec_from_config(saved)):
        assert ours == spec_from_config(fields)
        assert (ours.hidden_size, ours.num_layers) == (theirs.hidden_size, theirs.num_hidden_layers)
        assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
        assert (ours.head_dim, ours.vocab_size) == (theirs.head_dim, theirs.vocab_size)
        assert ours.max_sequence_length == theirs.max_position_embeddings
        assert ours.attention_scale == getattr(theirs, "query_pre_attn_scalar", theirs.head_dim) ** -0.5
        assert (ours.gate, ours.norm_offset, ours.scaled_embedding, ours.tied_head) == ("gelu_tanh", 1.0, True, True)
        types = getattr(theirs, "layer_types", ["full_attention"] * ours.num_layers)
        windows = {"full_attention": None, "sliding_attention": getattr(theirs, "sliding_window", None)}
        assert ours.windows == tuple(windows[one] for one in types)
        for rope, one in zip(ours.ropes, types, strict=True):
            wanted = theirs.rope_parameters.get(one, theirs.rope_parameters)
            assert (rope.theta, rope.type, rope.factor) == (
                wanted["rope_theta"],
                wanted["rope_type"],
                wanted.get("factor", 1.0),
            )
    assert ours.attention_cap == (50.0 if name == "gemma-2-2b" else None)
    assert ours.logit_cap == (30.0 if name == "gemma-2-2b" else None)
    assert ours.block_norms == (name != "gemma-2b") and ours.qk_norm == ("gemma-3" in name)
    assert ours.head_dim % 16 == 0 and ours.vocab_size % 32 == 0, "whole vectors and tiles of compiled steps"
    assert all(shape.out_features % 32 == 0 and shape.in_features % 64 == 0 for _, shape in ours.linears())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation: gelu is not served here; known is gelu_pytorch_tanh"),
        ({"hidden_activation": ["silu"]}, "hidden_activation"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"sliding_window": None}, "sliding_window: expected how many positions, not null"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern: expected an integer from 1"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: expected a number above 0"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping: expected a number above 0"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters: expected full_attention and sliding_att"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "dynamic"}}}, "rope_type: dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_local_base_freq": 0}, "rope_local_base_freq: expected a number above 0"),
    ],
)
def test_what_of_a_gemma_cannot_be_served_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        spec_from_config(config("Gemma3ForCausalLM", **fields))


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"Gemma3nForCausalLM .*LlamaForCausalLM, MistralForCausalLM, "):
        spec_from_config(config("Gemma3nForCausalLM"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type: longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "auto_map"),
        ({"model_type": "mistral"}, "model_type"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_size": "64"}, "hidden_size: expected an integer"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"rope_theta": "much"}, "rope_theta"),
    ],
)
def test_what_cannot_be_served_exactly_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        spec_from_config(config(**fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: linear .*known are default, longrope"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor: expected a list of 8 numbers"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "long_factor: expected a list of 8"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 8}}, "short_factor: expected a number above 0"),
        ({"rope_scaling": {"type": "longrope", "long_mscale": 1.2}}, "longrope with long_mscale"),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1}, "original_max_position"),
        ({"partial_rotary_factor": 0.7}, "partial_rotary_factor: expected the share of an even number"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM"}}, "auto_map"),
        ({"sliding_window": 0}, "sliding_window"),
    ],
)
def test_what_cannot_be_served_of_phi3_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        spec_from_config(config("Phi3ForCausalLM", **fields))


LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)]}
CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
PUBLISHED: dict[str, dict[str, Any]] = {  # sizes, as in their config.json
    "Phi-3-mini-4k": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "sliding_window": 2047,
    },
    "Phi-3.5-mini": {
        **{"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, "sliding_window": 262_144},
        **{"max_position_embeddings": 131_072, "rope_scaling": LONG},
    },
    "Phi-4": {
        **{"hidden_size": 5120, "intermediate_size": 17_920, "num_attention_heads": 40, "num_key_value_heads": 10},
        **{"max_position_embeddings": 16_384, "original_max_position_embeddings": 16_384, "rope_theta": 250_000},
    },
    "Phi-4-mini": {
        **{"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8},
        **{"max_position_embeddings": 131_072, "sliding_window": 262_144, "tie_word_embeddings": True},
        **{"rope_scaling": LONG, "partial_rotary_factor": 0.75, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    },
}


@pytest.mark.parametrize(
    ("name", "expected"),  # width of a head, how much of it turns, from where sequences are far, columns of qkv
    [
        ("Phi-3-mini-4k", (96, 96, None, 9216)),
        ("Phi-3.5-mini", (96, 96, 4096, 9216)),
        ("Phi-4", (128, 128, None, 7680)),
        ("Phi-4-mini", (128, 96, 4096, 5120)),
    ],
)
def test_the_published_sizes_of_phi3_are_those_of_its_linears(name: str, expected: tuple[Any, ...]) -> None:
    fields = {
        "num_key_value_heads": None,
        "original_max_position_embeddings": 4096,
        "auto_map": CODE,
        **PUBLISHED[name],
    }
    spec = spec_from_config(config("Phi3ForCausalLM", **fields))
    widths = {linear.target: shape.out_features for linear, shape in spec.linears()}
    rope = spec.rope
    assert (spec.head_dim, rope.rotary_dim(spec.head_dim), rope.far_from, widths["qkv_proj"]) == expected
    assert all(width % 32 == 0 for width in widths.values()), "whole tiles of compiled steps"
    assert rope.attention_factor == pytest.approx(1.190238 if rope.far_from else 1.0)


def test_the_code_beside_phi3_s_checkpoints_is_known() -> None:
    assert spec_from_config(config("Phi3ForCausalLM", auto_map=CODE)).fused
    with pytest.raises(UnsupportedModel, match="auto_map"):
        spec_from_config(config("LlamaForCausalLM", auto_map=CODE))


def test_unknown_layer_types_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="layer_types"):
        spec_from_config(config("Qwen2ForCausalLM", layer_types=["chunked_attention"] * 4))


def test_a_spec_lists_every_linear_with_its_module_and_shape() -> None:
    spec = spec_from_config(config("Qwen2ForCausalLM", num_key_value_heads=2))
    linears = {shape.module: shape for _, shape in spec.linears()}
    assert len(linears) == 4 * 7
    key = linears["model.layers.3.self_attn.k_proj"]
    assert (key.out_features, key.in_features, key.has_bias) == (32, 64, True)
    assert not linears["model.layers.0.self_attn.o_proj"].has_bias
    assert linears["model.layers.0.mlp.down_proj"].in_features == 128


def test_a_spec_of_fused_linears_lists_them_as_they_are() -> None:
    spec = spec_from_config(config("Phi3ForCausalLM"))
    shapes = {shape.module: (shape.out_features, shape.in_features) for _, shape in spec.linears()}
    assert len(shapes) == 4 * 4
    assert shapes["model.layers.3.self_attn.qkv_proj"] == (64 + 2 * 32, 64)
    assert shapes["model.layers.3.mlp.gate_up_proj"] == (2 * 128, 64)
