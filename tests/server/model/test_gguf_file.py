"""GGUF files: written here as llama.cpp writes them, read back into the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_inputs import Chunk, decoder_input, paged_slots
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from model_directories import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.gguf_file import GgufFile
from hotshoe.server.model.gguf_tokenizer import read_tokenizer
from hotshoe.server.model.loader import load_base
from hotshoe.server.model.tokenizer import Tokenizer

PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 1.5, 1.75, 2.0],
    "long_factor": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str = "smollm",
    fields: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Path:
    """A model and the tiny tokenizer as a GGUF file; `fields` are added to the architecture's own."""
    config, architecture = model.config, model.config.model_type
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if architecture == "phi3":
        _add_phi3(writer, config)
    else:
        writer.add_key_length(config.head_dim if architecture != "qwen2" else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{architecture}.{name}", value)
    _add_tokenizer(writer, pre)
    for name, tensor in {**model.state_dict(), **(tensors or {})}.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = _interleaved(name, tensor, model).numpy()
        if stored.ndim == 2 and kind is not GGMLQuantizationType.F32:
            writer.add_tensor(_gguf_name(name), quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_phi3(writer: GGUFWriter, config: Any) -> None:
    """As convert_hf_to_gguf.py writes what is Phi-3's alone."""
    rope = config.rope_parameters
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_rope_dimension_count(
        int(rope["partial_rotary_factor"] * config.hidden_size) // config.num_attention_heads
    )
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS["longrope"](config)[1])
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))


def _add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    vocab = tiny_tokenizer().get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    tokens += [f"<unused{i}>" for i in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_eos_token_id(258)
    writer.add_bos_token_id(257)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    module, part = name.rsplit(".", 1)
    if not name.startswith("model.layers."):
        return f"{NAMES.get(module, module)}.{part}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{part}"


def _interleaved(name: str, tensor: Tensor, model: PreTrainedModel) -> Tensor:
    """As convert_hf_to_gguf.py permutes the rows of llama's queries and keys."""
    config = model.config
    if config.model_type != "llama" or not ("q_proj" in name or "k_proj" in name):
        return tensor
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape).contiguous()


def logits_of(path: Path) -> Tensor:
    file = GgufFile(path)
    decoder = read_decoder(file, spec_from_config(file.config), reference_backend())
    chunk = Chunk(PROMPT, 0, paged_slots(len(PROMPT), first_page=1))
    return decoder.forward(decoder_input([chunk], all_logits=True), decoder.new_kv_cache(64))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def expected_logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("phi3", {}),
        ("phi3", {"sliding_window": 7, "tie_word_embeddings": True}),
        ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
        ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.682}, "hidden_size": 176}),
    ],
)
def test_logits_equal_those_of_the_model_that_was_written(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(family, **config)
    path = write_gguf(tmp_path / "model.gguf", model)
    assert relative_error(logits_of(path), expected_logits(model)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (GGMLQuantizationType.F16, 2e-3),
        (GGMLQuantizationType.BF16, 2e-2),
        (GGMLQuantizationType.Q8_0, 3e-2),
        (GGMLQuantizationType.Q4_1, 0.4),
    ],
)
def test_quantized_tensors_are_dequantized(kind: GGMLQuantizationType, tolerance: float, tmp_path: Path) -> None:
    model = tiny_model()
    path = write_gguf(tmp_path / "model.gguf", model, kind=kind)
    assert relative_error(logits_of(path), expected_logits(model)) < tolerance


def test_rope_divisors_become_llama3_scaling(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 5e5,
    }
    model = tiny_model(rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    plain = 1.0 / 5e5 ** (torch.arange(0, 16, 2) / 16)
    path = write_gguf(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": plain / scaled})
    rope = spec_from_config(GgufFile(path).config).rope
    assert (rope.type, rope.factor) == ("llama3", 8.0)
    assert relative_error(logits_of(path), expected_logits(model)) < 1e-5
    other = write_gguf(tmp_path / "other.gguf", model, tensors={"rope_freqs.weight": torch.linspace(1, 8, 8)})
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
        spec_from_config(GgufFile(other).config)


def test_phi3_s_fields_become_its_config(tmp_path: Path) -> None:
    fields = {"rope_parameters": LONG, "original_max_position_embeddings": 64, "sliding_window": 200}
    model = tiny_model("phi3", **fields)
    spec = spec_from_config(GgufFile(write_gguf(tmp_path / "model.gguf", model)).config)
    expected = spec_from_config(model.config.to_dict())
    assert (spec.fused, spec.windows, spec.norm_eps) == (True, expected.windows, pytest.approx(expected.norm_eps))
    assert (spec.rope.far_from, spec.rope.share) == (64, 0.75)
    assert spec.rope.attention_factor == pytest.approx(expected.rope.attention_factor)
    for far in (False, True):
        ours, theirs = (one.rope.inverse_frequencies(16, far=far) for one in (spec, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("count", [0, 7, 17, 2**32 - 1])
def test_a_rotation_that_phi3_s_heads_cannot_have_is_refused(count: int, tmp_path: Path, monkeypatch) -> None:
    write = GGUFWriter.add_rope_dimension_count
    monkeypatch.setattr(GGUFWriter, "add_rope_dimension_count", lambda writer, _: write(writer, count))
    with pytest.raises(UnsupportedModel, match=r"rope\.dimension_count|partial_rotary_factor"):
        spec_from_config(GgufFile(write_gguf(tmp_path / "model.gguf", tiny_model("phi3"))).config)


def test_half_of_phi3_s_factors_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("phi3"), tensors={"rope_factors_long.weight": torch.ones(8)})
    with pytest.raises(UnsupportedModel, match="rope_factors_short.weight: expected both or neither"):
        spec_from_config(GgufFile(path).config)


def test_an_old_phi3_file_that_says_nothing_of_its_window_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(GGUFWriter, "add_sliding_window", lambda *_: None)
    path = write_gguf(tmp_path / "model.gguf", tiny_model("phi3"))
    with pytest.raises(UnsupportedModel, match=r"attention\.sliding_window: missing"):
        spec_from_config(GgufFile(path).config)


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    model = tiny_model(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    fields = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "model.gguf", model, fields=fields)
    assert relative_error(logits_of(path), expected_logits(model)) < 1e-5


def test_fields_that_could_change_the_arithmetic_are_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_model(), fields={"logit_scale": 0.5})
    with pytest.raises(UnsupportedModel, match="logit_scale"):
        spec_from_config(GgufFile(path).config)


def test_a_partial_rotation_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_model(), fields={"rope.dimension_count": 8.0})
    with pytest.raises(UnsupportedModel, match=r"rope\.dimension_count: expected the head's length, 16"):
        spec_from_config(GgufFile(path).config)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "intermediate_size"])
@pytest.mark.parametrize("size", [10_000, 2**32 - 1])
def test_a_size_that_its_tensors_do_not_have_is_refused_by_name(field: str, size: int, tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    setattr(model.config, field, size)
    path = write_gguf(tmp_path / "model.gguf", model)
    with pytest.raises(UnsupportedModel, match=f"{field}: "):
        load_base(str(path), cache=tmp_path / "cache")


def test_no_attention_heads_are_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    model.config.num_attention_heads = 0
    path = write_gguf(tmp_path / "model.gguf", model)
    with pytest.raises(UnsupportedModel, match="num_attention_heads: expected an integer from 1"):
        load_base(str(path), cache=tmp_path / "cache")


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.model_type = "mamba"
    path = write_gguf(tmp_path / "model.gguf", model)
    with pytest.raises(UnsupportedModel, match="mamba is not served here; known are llama, phi3, qwen2, qwen3"):
        GgufFile(path)


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_model(), tensors={"extra.weight": torch.zeros(3)})
    with pytest.raises(UnsupportedModel, match=r"extra\.weight"):
        GgufFile(path)


@pytest.mark.parametrize("content", [b"", b"not a gguf file at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_what_is_no_gguf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match="cannot be read as GGUF"):
        GgufFile(tmp_path / "model.gguf")


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_model())
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(UnsupportedModel, match="cannot be read as GGUF"):
        GgufFile(path)


def test_a_base_from_gguf_has_its_tokenizer_and_its_ends(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.Q8_0.gguf", tiny_model(), kind=GGMLQuantizationType.Q8_0)
    for _ in range(2):
        base = load_base(str(path), cache=tmp_path / "cache", backend="reference")
        assert base.name == "tiny"
        ids = base.tokenizer.render_chat([{"role": "user", "content": "hi 12"}])
        assert ids == tiny_tokenizer().encode("<|im_start|>user\nhi 12<|im_end|>\n<|im_start|>assistant\n")
        assert base.tokenizer.eos_token_ids == {258}


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 1234  ok", ["it", "'s", " 1234", " ", " ok"]),
        ("smollm", "it's 1234  ok", ["it", "'s", " ", "1", "2", "3", "4", " ", " ok"]),
        ("llama-bpe", "IT'S 1234  ok", ["IT", "'S", " ", "123", "4", " ", " ok"]),
        ("qwen2", "IT'S 1234  ok", ["IT", "'S", " ", "1", "2", "3", "4", " ", " ok"]),
    ],
)
def test_text_is_split_as_the_pre_tokenizer_says(pre: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    read_tokenizer(GgufFile(write_gguf(tmp_path / "model.gguf", tiny_model(), pre=pre))).save(tmp_path)
    tokenizer = Tokenizer.from_saved(tmp_path)
    split = tokenizer._backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in split] == pieces
    assert (tokenizer.encode("a")[0] == 257) == (pre == "llama-bpe")  # it begins with its bos


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "model.gguf", tiny_model(), pre="tekken"))
    with pytest.raises(UnsupportedModel, match="tekken is not served here; known are gpt-2, llama-bpe, qwen2, smollm"):
        read_tokenizer(file)
