"""Directories as the `adapters` package of AdapterHub saves them: their files, and what their configs have in common.

adapter_config.json says of what model an adapter is, and how it is called in the names of its tensors; its method's
fields lie in "config". A model that the package knows by an interface has that in adapter_interface.json. Here they are
one table of fields, of which those of "config" begin with "config." and the interface's with "interface.".
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.peft_config import NULL, TEXT, Config, Rule, either, list_of, one_of
from hotshoe.registry.formats.prefix_tuning import require_base_size
from hotshoe.registry.strict_json import shown

OF_METHOD, OF_INTERFACE = "config.", "interface."

# Methods of the package that are refused, by "architecture", and why.
REFUSED_METHODS: Mapping[str, str] = {
    "lora": "the package's files name and scale it otherwise than PEFT's, whose LORA and IA3 are served",
    "mtl_lora": "its mixture depends on a task that a request cannot name here",
    "prefix_tuning": "the package's prefixes take up no positions; PEFT's PREFIX_TUNING, whose do, is served",
    "prompt_tuning": "the package itself has it for none of the models that are served here",
    "reft": "it edits hidden states of a prompt's first and last tokens, which its length decides",
    "union": "it is several methods in one; save each by itself, and stack them in the request",
}


def _text(pattern: str, expected: str, why: str = "") -> Rule[str]:
    """All of whose characters follow a pattern."""
    return Rule(
        expected, lambda value: TEXT.accepts(value) and re.fullmatch(pattern, str(value), re.ASCII) is not None, why
    )


_VERSION = _text(r"adapters\.\d+(\.\w+)*", "adapters.<version>", "older files name and mean things otherwise")
_MODEL_CLASS = _text(r"\w+ForCausalLM", "a class …ForCausalLM", "others have heads, which are no part of an adapter")
_NAME = _text(r"[^.]+", "characters without a dot")
_WRAPPED = ("llama", "mistral")  # families that the package has classes of its own for
_HOOKED = ("qwen2", "qwen3")  # families that the package knows by an interface
# Families that have norms between a block and the residual; the package has no interface for the first.
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
# What the package calls the parts of a layer between which its networks stand.
_PLACES: Mapping[str, Rule[object]] = {
    "base_model": one_of(None, "model"),
    "model_layers": one_of("layers"),
    "layer_self_attn": one_of("self_attn"),
    "attn_o_proj": one_of("o_proj"),
    "layer_output_proj": one_of("mlp.down_proj"),
    "layer_pre_self_attn": one_of("input_layernorm").because("what stands before it is the residual"),
    "layer_pre_ffn": one_of("post_attention_layernorm").because("what stands before it is the residual"),
    "layer_cross_attn": NULL,
    "layer_pre_cross_attn": NULL,
    "layer_ln_1": NULL,
    "layer_ln_2": NULL,
}
_OTHER_PLACES = ("model_embeddings", "attn_q_proj", "attn_k_proj", "attn_v_proj", "attn_qkv_proj")
INTERFACE_RULES: Mapping[str, Rule[object]] = {
    **{OF_INTERFACE + name: rule for name, rule in _PLACES.items()},
    **{f"{OF_INTERFACE}{name}": either(TEXT, NULL) for name in (*_OTHER_PLACES, "layer_intermediate_proj")},
    OF_INTERFACE + "adapter_methods": list_of(TEXT),
}


class HubModel(NamedTuple):
    """What a config says of the model."""

    adapter: str  # its name in the names of tensors
    hooked: bool  # the model adds the residual itself, after the adapter


def is_adapterhub(fields: Mapping[str, object]) -> bool:
    """Whether it is the package's config, and not PEFT's."""
    return "peft_type" not in fields and isinstance(fields.get("config"), dict)


def method_of(fields: Mapping[str, object]) -> str:
    """The method of the package's config, which has no name for bottlenecks: BOTTLENECK.

    Raises:
        InvalidAdapter: it is another.
    """
    method = _table(fields, "config").get("architecture")
    if method is None:
        return "BOTTLENECK"
    why = f": {REFUSED_METHODS[method]}" if isinstance(method, str) and method in REFUSED_METHODS else ""
    raise InvalidAdapter("config.architecture", f"expected null, found {shown(method)}{why}")


def one_table(fields: Mapping[str, object], interface: Mapping[str, object] | None) -> dict[str, object]:
    """All fields of the config, and of the interface if there is one, under their prefixes.

    Raises:
        InvalidAdapter: adapter_interface.json is of another form, or of another model.
    """
    table = {name: value for name, value in fields.items() if name != "config"}
    table |= {OF_METHOD + name: value for name, value in _table(fields, "config").items()}
    if interface is None:
        return table
    if interface.keys() != {"interface", "model_type", "version"}:
        raise InvalidAdapter("adapter_interface.json", "expected exactly interface, model_type and version")
    if interface["model_type"] != fields.get("model_type"):
        raise InvalidAdapter(
            "adapter_interface.json", f"is of model_type {shown(interface['model_type'])}, unlike adapter_config.json"
        )
    places = _table(interface, "interface")
    if "model_layers" not in places:
        raise InvalidAdapter("interface.model_layers", "missing")
    return table | {OF_INTERFACE + name: value for name, value in places.items()}


def take_model(config: Config, base: BaseShape) -> HubModel:
    """Takes what is said of the model, and holds it against the base."""
    config.require("version", _VERSION)
    config.require("model_class", _MODEL_CLASS)
    family = config.require("model_type", TEXT)
    if family != base.model_type:
        raise IncompatibleAdapter("model_type", f"found {family}, expected {base.model_type} for {base.name}")
    if family in _GEMMAS:
        raise IncompatibleAdapter("model_type", f"found {family}: networks beside a Gemma's blocks are not served")
    require_base_size(config, "hidden_size", base.hidden_size, base)
    name = config.require("name", _NAME)
    by_interface = config.peek(OF_INTERFACE + "model_layers") is not None
    if by_interface:
        for place, rule in _PLACES.items():
            if rule.accepts(None):
                config.take(OF_INTERFACE + place, rule, default=None)
            else:
                config.require(OF_INTERFACE + place, rule)
    elif family not in _WRAPPED + _HOOKED:
        raise InvalidAdapter("adapter_interface.json", f"missing: the package knows {family} by an interface only")
    return HubModel(name, by_interface or family in _HOOKED)


def _table(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise InvalidAdapter(name, f"expected an object, found {shown(value)}")
    return value
