"""BOTTLENECK: AdapterHub's bottleneck adapters, f(t) = s (U φ(D t + c) + d) beside attention, MLP or both.

With o what the block gives and r the residual, `adapters` computes, of a decoder without norms behind its blocks:

    Houlsby (double_seq_bn), Compacter      r + o + f(o), after both blocks
    Pfeiffer (seq_bn), Compacter++          r + o + f(r + o), after the MLP
    parallel (par_bn)                       r + o + f(r), after the MLP

and, with original_ln_before, original_ln_after and residual_before_ln set otherwise, the residual never or twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.activations import ACTIVATIONS
from hotshoe.registry.formats.adapterhub import INTERFACE_RULES, OF_METHOD, HubModel, take_model
from hotshoe.registry.formats.base import BaseShape, BaseWeights, BlockId, LinearId
from hotshoe.registry.formats.hypercomplex import Hypercomplex
from hotshoe.registry.formats.lowered import Bottleneck, LoweredAdapter
from hotshoe.registry.formats.peft_config import (
    COUNT,
    INTEGER,
    NULL,
    NUMBER,
    SHARE,
    TEXT,
    Config,
    Rule,
    either,
    list_of,
    one_of,
    table_of,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

# By the field that says whether they have a network: a layer's blocks, and what the package calls their place.
BLOCKS = {"mh_adapter": ("self_attn", "attention_adapters"), "output_adapter": ("mlp", "output_adapters")}
_MAX_EXPANDED = 1 << 27  # numbers, of an adapter's hypercomplex matrices: 512 MiB
_FACTOR: Rule[float] = Rule("a number from 0.001 on", lambda value: NUMBER.accepts(value) and value >= 1e-3)  # type: ignore[operator]
_SCALING: Rule[float | str] = Rule(
    "a number with a fraction, as 4.0, or learned or channel",
    lambda value: type(value) is float and NUMBER.accepts(value) or value in ("learned", "channel"),
    "the package takes no other",
)
_ACTIVATION: Rule[str] = Rule(
    f"one of {', '.join(ACTIVATIONS)}", lambda value: isinstance(value, str) and value.lower() in ACTIVATIONS
)
_FLAG: Rule[bool] = one_of(True, False)  # the package tells null from false
_NORM_INSIDE = one_of(False).because("a layer norm of the adapter's own is not served")
_REST: Mapping[str, Rule[object]] = {
    "ln_before": _NORM_INSIDE,
    "ln_after": _NORM_INSIDE,
    "use_gating": one_of(False).because("its gate is the mean over all tokens of a prompt, later ones too"),
    "inv_adapter": NULL.because("an invertible adapter changes the embeddings of every token"),
    "cross_adapter": one_of(False).because("a decoder has no cross attention"),
    "shared_W_phm": one_of(False).because("matrices that all layers share are not served"),
    "architecture": NULL,
    # Without an effect: of layer norms and invertible adapters that are not there, and of training.
    "adapter_residual_before_ln": _FLAG,
    "inv_adapter_reduction_factor": either(NUMBER, NULL),
    "dropout": SHARE,
    "stochastic_depth": SHARE,
    "init_weights": TEXT,
    "init_weights_seed": either(INTEGER, NULL),
    "learn_phm": _FLAG,
    "phm_c_init": TEXT,
    "phm_init_range": NUMBER,
    "hypercomplex_nonlinearity": TEXT,
}


class _Projection(Protocol):
    """One of a network's two matrices."""

    def lower(self, read: Read, *, scale: float = 1.0) -> "tuple[Tensor, Tensor | None]":
        """[out, in] and the bias, both times scale."""


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: TensorEntry  # [out, in]
    bias: TensorEntry  # [out]

    def lower(self, read: Read, *, scale: float = 1.0) -> "tuple[Tensor, Tensor | None]":
        return read(self.weight, scale=scale), read(self.bias, scale=scale)


@dataclass(frozen=True, slots=True)
class _Network:
    down: _Projection
    up: _Projection
    scaling: TensorEntry | None  # [1] or [hidden_size]


@dataclass(frozen=True, slots=True)
class BottleneckPlan:
    """A network for some blocks, in base order, and what they have in common."""

    networks: Mapping[BlockId, _Network]
    taps: Literal["output", "residual", "sum"]
    residual_gain: float
    activation: str
    scaling: float  # 1 where it was learned
    rank: int = 0
    linears: tuple[LinearId, ...] = ()
    virtual_tokens: int = 0

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        kept: dict[str, Tensor] = {}

        def read_once(entry: TensorEntry, *, scale: float = 1.0) -> "Tensor":
            """Rules are of all layers."""
            if entry.name not in kept:
                kept[entry.name] = read(entry, scale=scale)
            return kept[entry.name]

        return LoweredAdapter(
            "BOTTLENECK", bottlenecks={block: self._lowered(part, read_once) for block, part in self.networks.items()}
        )

    def _lowered(self, network: _Network, read: Read) -> Bottleneck:
        down, down_bias = network.down.lower(read)
        up, up_bias = network.up.lower(read, scale=self.scaling)
        if network.scaling is not None:
            scale = read(network.scaling)
            up, up_bias = up * scale[:, None], None if up_bias is None else up_bias * scale
        return Bottleneck(self.taps, down, down_bias, self.activation, up, up_bias, self.residual_gain)


def plan_bottleneck(config: Config, tensors: Tensors, base: BaseShape) -> BottleneckPlan:
    """The plan of a BOTTLENECK adapter; see `Format`."""
    model = take_model(config, base)
    taps, gain = _take_residual(config, model)
    activation = config.require(OF_METHOD + "non_linearity", _ACTIVATION).lower()
    scaling = config.take(OF_METHOD + "scaling", _SCALING, default=1.0)
    blocks = tuple(_take_blocks(config, base))
    projections = _Projections(config, tensors, base)
    config.close("BOTTLENECK", {OF_METHOD + name: rule for name, rule in _REST.items()}, common=INTERFACE_RULES)

    networks = {}
    for block, place, width in blocks:
        module = f"model.layers.{block.layer}.{place}.adapters.{model.adapter}"
        down = projections.take(f"{module}.adapter_down.0", base.hidden_size, width, model.adapter)
        up = projections.take(f"{module}.adapter_up", width, base.hidden_size, model.adapter)
        scale = None
        if isinstance(scaling, str):
            scale = tensors.take(f"{module}.scaling", reason=f"config.scaling is {scaling}")
            require_shape(scale, (1 if scaling == "learned" else base.hidden_size,), of=f"config.scaling {scaling}")
        networks[block] = _Network(down, up, scale)
    return BottleneckPlan(networks, taps, gain, activation, scaling if isinstance(scaling, float) else 1.0)


def _take_residual(config: Config, model: HubModel) -> tuple[Literal["output", "residual", "sum"], float]:
    """What the networks read, and how many times more than once the residual is added."""
    before = config.take(OF_METHOD + "original_ln_before", _FLAG, default=False)
    after = config.take(OF_METHOD + "original_ln_after", _FLAG, default=True)
    kept = config.take(
        OF_METHOD + "residual_before_ln", _FLAG.because("it needs a norm behind the block"), default=True
    )
    parallel = config.take(OF_METHOD + "is_parallel", _FLAG, default=False)
    if model.hooked and not after:
        raise InvalidAdapter(
            "config.original_ln_after", "expected true, found false: the package refuses it for this family"
        )
    if parallel:
        return "residual", 0.0 if after else -1.0
    return "sum" if before else "output", float(after) + float(before and not kept) - 1.0


def _take_blocks(config: Config, base: BaseShape) -> Iterator[tuple[BlockId, str, int]]:
    """The blocks that have a network, in base order, what the package calls their place, and each network's width."""
    found = {flag: config.require(OF_METHOD + flag, _FLAG) for flag in BLOCKS}
    left_out = config.take(OF_METHOD + "leave_out", list_of(INTEGER), default=[])
    factors = config.require(OF_METHOD + "reduction_factor", either(_FACTOR, table_of(_FACTOR)))
    layers = [layer for layer in range(base.num_layers) if layer not in left_out]
    if not layers or not any(found.values()):
        raise InvalidAdapter("config.leave_out" if any(found.values()) else "config.mh_adapter", "leaves no network")
    for layer in layers:
        factor = factors.get(str(layer), factors.get("default")) if isinstance(factors, Mapping) else factors
        if factor is None:
            raise InvalidAdapter("config.reduction_factor", f"expected a number for layer {layer}, or default")
        width = max(1, int(base.hidden_size // factor))
        for flag, (name, place) in BLOCKS.items():
            if found[flag]:
                yield BlockId(layer, name), place, width


class _Projections:
    """Claims the two matrices of each network, plain or hypercomplex, by what a config says of them."""

    def __init__(self, config: Config, tensors: Tensors, base: BaseShape) -> None:
        def flag(name: str, default: bool) -> bool:
            return config.take(OF_METHOD + name, _FLAG, default=default)

        self._tensors = tensors
        self._base = base
        self._is_hypercomplex = flag("phm_layer", False)
        self._has_bias = flag("phm_bias", True)
        self._shares_rules = flag("shared_phm_rule", True)
        self._factored_rules = flag("factorized_phm_rule", False)
        self._factored_parts = flag("factorized_phm_W", True)
        self._n = config.take(OF_METHOD + "phm_dim", COUNT, default=4)
        self._rank = config.take(OF_METHOD + "phm_rank", COUNT, default=1)
        self._shared: Sequence[TensorEntry] | None = None
        self._expanded = 0

    def take(self, module: str, inputs: int, outputs: int, adapter: str) -> _Projection:
        """The matrix of a module, of that many inputs and outputs."""
        if not self._is_hypercomplex:
            weight = self._take(f"{module}.weight", (outputs, inputs))
            return _Linear(weight, self._take(f"{module}.bias", (outputs,)))
        n = self._n
        if inputs % n or outputs % n:
            raise InvalidAdapter("config.phm_dim", f"found {n}, of which {inputs} and {outputs} are no multiples")
        self._expanded += inputs * outputs
        if self._expanded > _MAX_EXPANDED:
            raise InvalidAdapter("config.reduction_factor", f"makes matrices of more than {_MAX_EXPANDED} numbers")
        if self._factored_parts:
            shapes = {"W_left": (n, inputs // n, self._rank), "W_right": (n, self._rank, outputs // n)}
        else:
            shapes = {"W": (n, inputs // n, outputs // n)}
        parts = [self._take(f"{module}.{name}", shape) for name, shape in shapes.items()]
        bias = self._take(f"{module}.b", (outputs,)) if self._has_bias else None
        if not self._shares_rules:
            return Hypercomplex(self._take_rules(module), parts, bias)
        if self._shared is None:
            self._shared = self._take_rules(f"model.shared_parameters.{adapter}")
        return Hypercomplex(self._shared, parts, bias)

    def _take_rules(self, module: str) -> Sequence[TensorEntry]:
        n = self._n
        shapes = {"phm_rule": (n, n, n)}
        if self._factored_rules:
            shapes = {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
        return [self._take(f"{module}.{name}", shape) for name, shape in shapes.items()]

    def _take(self, name: str, shape: Sequence[int]) -> TensorEntry:
        entry = self._tensors.take(name, reason="config says that there is such a network")
        require_shape(entry, shape, of=f"{self._base.name} by config.reduction_factor")
        return entry
