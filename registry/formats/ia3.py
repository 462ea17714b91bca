"""IA3: learned factors on a linear's outputs, g ∘ (W x + b), or on the inputs of feedforward_modules, W (g ∘ x) + b."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import FLAG, Config, Rule
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import pattern_test, take_names, take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "fan_in_fan_out": FLAG,  # how W is stored: the factors have their shapes either way
    "init_ia3_weights": FLAG,
}


# What null stands for, by model_type.
_TARGETS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("llama", "mistral"), ("k_proj", "v_proj", "down_proj")),
    **dict.fromkeys(("qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), ("q_proj", "v_proj", "down_proj")),
}
_FEEDFORWARD: Mapping[str, Sequence[str]] = dict.fromkeys(_TARGETS, ("down_proj",))


@dataclass(frozen=True, slots=True)
class Ia3Plan:
    """Factors by linear; those of `on_inputs` scale the input."""

    factors: Mapping[LinearId, TensorEntry]
    on_inputs: frozenset[LinearId]
    rank: int = 0
    virtual_tokens: int = 0

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.factors)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        return LoweredAdapter("IA3", {linear: self._lower_linear(linear, read, base) for linear in self.factors})

    def _lower_linear(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        factors = read(self.factors[linear]).flatten()
        if linear in self.on_inputs:
            return LoweredLinear(input_scale=factors)
        bias = base.bias(linear)
        # PEFT scales the base's bias too, the canonical form does not: g b = b + (g - 1) b.
        return LoweredLinear(output_scale=factors, bias_delta=None if bias is None else (factors - 1) * bias)


def plan_ia3(config: Config, tensors: Tensors, base: BaseShape) -> Ia3Plan:
    """The plan of an IA3 adapter; see `Format`."""
    named, fed = config.peek("target_modules"), config.peek("feedforward_modules")
    targets = take_targets(config, base, by_layer=False, defaults=_TARGETS)
    feedforward = take_names(config, "feedforward_modules", base, _FEEDFORWARD)
    if isinstance(named, list) and isinstance(fed, list) and not set(named).issuperset(fed):
        raise InvalidAdapter("feedforward_modules", "expected names out of target_modules")
    config.close("IA3", _REST)

    tensors.require_known_modules()
    is_feedforward = (
        pattern_test("feedforward_modules", feedforward)
        if isinstance(feedforward, str)
        else lambda module: module.endswith(tuple(feedforward))  # PEFT asks for no dot before the name here
    )
    factors = {}
    on_inputs = set()
    for linear in targets:
        shape = base.linears[linear]
        factors[linear] = tensors.take_of(linear, "ia3_l", reason="target_modules selects its module")
        expected = (shape.out_features, 1)
        if is_feedforward(shape.module):
            on_inputs.add(linear)
            expected = (1, shape.in_features)
        require_shape(factors[linear], expected, of=f"{shape.module} of {base.name}")
    return Ia3Plan(factors, frozenset(on_inputs))
