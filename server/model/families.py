"""The model families that the decoder runs, and how each spells its config. A new family is one entry here.

Every field that changes the arithmetic is understood or refused by name; the others are of no concern.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.config_fields import Config, flag, integer, number, section, shown, spelled
from hotshoe.server.model.rope_config import PHI3_ROPES, RopeRules, rope_from_config, ropes_by_type
from hotshoe.server.model.spec import Gate, ModelSpec, RopeSpec

Windows = tuple[int | None, ...]
_MOST_LAYERS = 10_000
_SILU: Mapping[str, Gate] = {"silu": "silu", "swish": "silu"}  # by transformers' names
_SCORES, _LOGITS = "attn_logit_softcapping", "final_logit_softcapping"
_GELU_TANH: Mapping[str, Gate] = {"gelu_pytorch_tanh": "gelu_tanh"}


def no_windows(config: Config, num_layers: int) -> Windows:
    """Every layer sees everything, whatever the config says."""
    return (None,) * num_layers


def one_window(config: Config, num_layers: int) -> Windows:
    """Mistral: the same window in every layer; a config that says nothing means 4096."""
    return (_window(config, "sliding_window", 4096),) * num_layers


def one_window_if_any(config: Config, num_layers: int) -> Windows:
    """Phi-3: the same window in every layer; a config that says nothing means none."""
    return (None if config.get("sliding_window") is None else integer(config, "sliding_window"),) * num_layers


def upper_windows(config: Config, num_layers: int) -> Windows:
    """Qwen: a window in the layers that `layer_types` names, or in those above `max_window_layers`."""
    window = _window(config, "sliding_window", 4096) if flag(config, "use_sliding_window") else None
    if config.get("layer_types") is None:
        first = integer(config, "max_window_layers", 28, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return _windows_by_type(config, window, num_layers)


def other_windows(config: Config, num_layers: int) -> Windows:
    """Gemma 2: a window in every other layer, from the first on, or where `layer_types` says."""
    return _windows_but_each(2, config, num_layers)


def most_windows(config: Config, num_layers: int) -> Windows:
    """Gemma 3: a window in all layers but each sixth, or where `layer_types` says."""
    return _windows_but_each(integer(config, "sliding_window_pattern", 6), config, num_layers)


def _windows_but_each(period: int, config: Config, num_layers: int) -> Windows:
    window = _window(config, "sliding_window", 4096)
    if window is None:  # what a layer rotates by goes by whether it has one
        raise UnsupportedModel("sliding_window: expected how many positions, not null")
    if config.get("layer_types") is not None:
        return _windows_by_type(config, window, num_layers)
    return tuple(window if (layer + 1) % period else None for layer in range(num_layers))


def _windows_by_type(config: Config, window: int | None, num_layers: int) -> Windows:
    types, known = config.get("layer_types"), {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != num_layers or any(name not in [*known] for name in types):
        wanted = f"{num_layers}, as num_hidden_layers, of {sorted(known)}"
        raise UnsupportedModel(f"layer_types: expected {wanted}, not {shown(types)}")
    return tuple(known[name] for name in types)


@dataclass(frozen=True, slots=True)
class Family:
    """What is fixed for an architecture, and the config defaults of transformers where they matter."""

    model_type: str
    qkv_bias: bool | str = False  # or the config field that says so
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    fused: bool = False  # q, k and v are one linear, and gate and up are
    qk_norm: bool = False
    windows: Callable[[Config, int], Windows] = no_windows
    head_dim: int | None = None  # where the config says nothing; None is hidden_size / num_attention_heads
    num_kv_heads: int | None = None  # where the config says nothing; None is num_attention_heads
    max_positions: int = 32_768
    norm_eps: float = 1e-6
    ropes: RopeRules = RopeRules()
    known_code: str | None = None  # beside its checkpoints: what transformers took over, so that it need not run
    activation_field: str = "hidden_act"
    activations: Mapping[str, Gate] = field(default_factory=lambda: _SILU)  # the first is what silence means
    tied_head: bool = False  # where the config says nothing
    norm_offset: float = 0.0
    block_norms: bool = False
    scaled_embedding: bool = False
    query_scalar: bool = False  # whether the config has one
    caps: Mapping[str, float | None] = field(default_factory=dict)  # by field, where the config says nothing
    two_ropes: bool = False  # layers with a window have their own


def _gemma(model_type: str, **fields: Any) -> Family:
    """What all Gemmas have in common."""
    shared: dict[str, Any] = {
        "qkv_bias": "attention_bias",
        "o_bias": "attention_bias",
        "head_dim": 256,
        "num_kv_heads": 4,
        "max_positions": 8192,
        "activation_field": "hidden_activation",
        "activations": _GELU_TANH,
        "tied_head": True,
        "norm_offset": 1.0,
        "scaled_embedding": True,
    }
    return Family(model_type, **{**shared, **fields})


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", max_positions=2048
    ),
    "MistralForCausalLM": Family("mistral", windows=one_window, num_kv_heads=8, max_positions=131_072),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, windows=upper_windows, num_kv_heads=32),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        windows=upper_windows,
        head_dim=128,
        num_kv_heads=32,
    ),
    "Phi3ForCausalLM": Family(
        "phi3",
        fused=True,
        windows=one_window_if_any,
        max_positions=4096,
        norm_eps=1e-5,
        ropes=PHI3_ROPES,
        known_code="modeling_phi3.Phi3ForCausalLM",
    ),
    "GemmaForCausalLM": _gemma(
        "gemma", num_kv_heads=16, activation_field="hidden_act", activations={**_GELU_TANH, "gelu": "gelu_tanh"}
    ),
    "Gemma2ForCausalLM": _gemma(
        "gemma2", block_norms=True, query_scalar=True, windows=other_windows, caps={_SCORES: 50.0, _LOGITS: 30.0}
    ),
    "Gemma3ForCausalLM": _gemma(
        "gemma3_text",
        block_norms=True,
        qk_norm=True,
        query_scalar=True,
        windows=most_windows,
        caps={_LOGITS: None},
        two_ropes=True,
        max_positions=131_072,
    ),
}


def spec_from_config(config: Config) -> ModelSpec:
    """The spec of a model from its config.json, in the spelling of any transformers since 4.40.

    Raises:
        UnsupportedModel: an architecture, an activation, a rope type or a feature that is not served here, by name.
    """
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_features(config, family)
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads")
    silent = family.num_kv_heads if "num_key_value_heads" not in config else None  # null means one for each head
    num_kv_heads = integer(config, "num_key_value_heads", silent or num_heads)
    num_layers = integer(config, "num_hidden_layers", maximum=_MOST_LAYERS)
    head_dim = integer(config, "head_dim", family.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModel(f"num_key_value_heads: {num_kv_heads} does not divide num_attention_heads, {num_heads}")
    if head_dim % 2:
        raise UnsupportedModel(f"head_dim: expected an even number, not {head_dim}")
    max_positions = integer(config, "max_position_embeddings", family.max_positions)
    rope, window_rope = _ropes(config, family, head_dim, max_positions)
    return ModelSpec(
        architecture=architecture,
        model_type=family.model_type,
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=integer(config, "vocab_size"),
        max_sequence_length=max_positions,
        norm_eps=number(config, "rms_norm_eps", family.norm_eps),
        rope=rope,
        qkv_bias=_bias(config, family.qkv_bias),
        o_bias=_bias(config, family.o_bias),
        mlp_bias=_bias(config, family.mlp_bias),
        fused=family.fused,
        qk_norm=family.qk_norm,
        tied_head=flag({"tie_word_embeddings": family.tied_head, **config}, "tie_word_embeddings"),
        windows=family.windows(config, num_layers),
        gate=_gate(config, family),
        norm_offset=family.norm_offset,
        block_norms=family.block_norms,
        scaled_embedding=family.scaled_embedding,
        query_scalar=number(config, "query_pre_attn_scalar", 256.0, above=0.0) if family.query_scalar else None,
        attention_cap=_cap(config, family, _SCORES),
        logit_cap=_cap(config, family, _LOGITS),
        window_rope=window_rope,
    )


def _architecture(config: Config) -> str:
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise UnsupportedModel(f"architectures: expected a list, not {shown(names)}")
    by_type = {family.model_type: name for name, family in FAMILIES.items()}
    model_type = str(config.get("model_type"))
    name = str(names[0] if names else by_type.get(model_type, model_type))
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"architectures: {spelled(name)} is not served here; known are {known}")
    if "model_type" in config and model_type != FAMILIES[name].model_type:
        raise UnsupportedModel(f"model_type: {name} is {FAMILIES[name].model_type}, not {spelled(model_type)}")
    return name


def _refuse_features(config: Config, family: Family) -> None:
    if family.norm_offset and flag(config, "use_bidirectional_attention"):
        raise UnsupportedModel("use_bidirectional_attention: only false is served here")
    own_code = section(config, "auto_map").get("AutoModelForCausalLM")
    if own_code is not None and own_code != family.known_code:
        raise UnsupportedModel("auto_map: models that bring their own code are not served here")


def _gate(config: Config, family: Family) -> Gate:
    name = config.get(family.activation_field) or next(iter(family.activations))
    if not isinstance(name, str) or name not in family.activations:
        known = f"known is {next(iter(family.activations))}"
        raise UnsupportedModel(f"{family.activation_field}: {spelled(name)} is not served here; {known}")
    return family.activations[name]


def _ropes(config: Config, family: Family, head_dim: int, max_positions: int) -> tuple[RopeSpec, RopeSpec | None]:
    """Of all layers, and of those with a window if that is another."""
    if family.two_ropes:
        return ropes_by_type(config, family.ropes, head_dim=head_dim, max_positions=max_positions)
    return rope_from_config(config, family.ropes, head_dim=head_dim, max_positions=max_positions), None


def _cap(config: Config, family: Family, name: str) -> float | None:
    """How large a family's numbers may become; null means any, absence transformers' default."""
    value = {**family.caps, **config}.get(name) if name in family.caps else None
    return None if value is None else number({name: value}, name, None, above=0.0)


def _bias(config: Config, rule: bool | str) -> bool:
    return flag(config, rule) if isinstance(rule, str) else rule


def _window(config: Config, name: str, default: int) -> int | None:
    """A window's width; null means none, absence means transformers' default."""
    if name in config and config[name] is None:
        return None
    return integer(config, name, default)
