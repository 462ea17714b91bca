"""The model families that the decoder runs, and how each spells its config. A new family is one entry here.

Every field that changes the arithmetic is understood or refused by name; the others are of no concern.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.rope_config import rope_from_config
from hotshoe.server.model.spec import ModelSpec

Config = Mapping[str, Any]
Windows = tuple[int | None, ...]


def no_windows(config: Config, num_layers: int) -> Windows:
    """Every layer sees everything, whatever the config says."""
    return (None,) * num_layers


def one_window(config: Config, num_layers: int) -> Windows:
    """Mistral: the same window in every layer; a config that says nothing means 4096."""
    return (_window(config, "sliding_window", 4096),) * num_layers


def upper_windows(config: Config, num_layers: int) -> Windows:
    """Qwen: a window in the layers that `layer_types` names, or in those above `max_window_layers`."""
    window = _window(config, "sliding_window", 4096) if config.get("use_sliding_window") else None
    types = config.get("layer_types")
    if types is None:
        first = _integer(config, "max_window_layers", 28, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    known = {"full_attention": None, "sliding_attention": window}
    if len(types) != num_layers or any(name not in known for name in types):
        raise UnsupportedModel(f"layer_types: expected {num_layers} of {sorted(known)}, not {types}")
    return tuple(known[name] for name in types)


@dataclass(frozen=True, slots=True)
class Family:
    """What is fixed for an architecture, and the config defaults of transformers where they matter."""

    model_type: str
    qkv_bias: bool | str = False  # or the config field that says so
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windows: Callable[[Config, int], Windows] = no_windows
    head_dim: int | None = None  # where the config says nothing; None is hidden_size / num_attention_heads
    num_kv_heads: int | None = None  # where the config says nothing; None is num_attention_heads
    max_positions: int = 32_768


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
}


def spec_from_config(config: Config) -> ModelSpec:
    """The spec of a model from its config.json, in the spelling of any transformers since 4.40.

    Raises:
        UnsupportedModel: an architecture, an activation, a rope type or a feature that is not served here, by name.
    """
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_features(config)
    hidden_size = _integer(config, "hidden_size")
    num_heads = _integer(config, "num_attention_heads")
    silent = family.num_kv_heads if "num_key_value_heads" not in config else None  # null means one for each head
    num_kv_heads = _integer(config, "num_key_value_heads", silent or num_heads)
    num_layers = _integer(config, "num_hidden_layers")
    head_dim = _integer(config, "head_dim", family.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModel(f"num_key_value_heads: {num_kv_heads} does not divide num_attention_heads, {num_heads}")
    if head_dim % 2:
        raise UnsupportedModel(f"head_dim: expected an even number, not {head_dim}")
    max_positions = _integer(config, "max_position_embeddings", family.max_positions)
    return ModelSpec(
        architecture=architecture,
        model_type=family.model_type,
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=_integer(config, "vocab_size"),
        max_sequence_length=max_positions,
        norm_eps=float(config.get("rms_norm_eps") or 1e-6),
        rope=rope_from_config(config, max_positions=max_positions),
        qkv_bias=_flag(config, family.qkv_bias),
        o_bias=_flag(config, family.o_bias),
        mlp_bias=_flag(config, family.mlp_bias),
        qk_norm=family.qk_norm,
        tied_head=bool(config.get("tie_word_embeddings", False)),
        windows=family.windows(config, num_layers),
    )


def _architecture(config: Config) -> str:
    names = config.get("architectures") or []
    by_type = {family.model_type: name for name, family in FAMILIES.items()}
    model_type = str(config.get("model_type"))
    name = str(names[0] if names else by_type.get(model_type, model_type))
    if name not in FAMILIES:
        raise UnsupportedModel(f"architecture {name} is not served here; known are {', '.join(sorted(FAMILIES))}")
    if "model_type" in config and model_type != FAMILIES[name].model_type:
        raise UnsupportedModel(f"model_type: {name} is {FAMILIES[name].model_type}, not {model_type}")
    return name


def _refuse_features(config: Config) -> None:
    activation = config.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"hidden_act: {activation} is not served here; known is silu")
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        raise UnsupportedModel("auto_map: models that bring their own code are not served here")


def _flag(config: Config, rule: bool | str) -> bool:
    return bool(config.get(rule, False)) if isinstance(rule, str) else rule


def _integer(config: Config, name: str, default: int | None = None, *, minimum: int = 1) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UnsupportedModel(f"{name}: expected an integer of at least {minimum}, not {value!r}")
    return value


def _window(config: Config, name: str, default: int) -> int | None:
    """A window's width; null means none, absence means transformers' default."""
    if name in config and config[name] is None:
        return None
    return _integer(config, name, default)
