"""Adapters in canonical form, made by hand, and what they mean, in float64. For tests of adapters in use."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from hotshoe.registry.formats.base import BaseShape, BlockId, LinearId, LinearShape
from hotshoe.registry.formats.lowered import Bottleneck, KvPrefix, LoweredAdapter, LoweredLinear

HIDDEN, INTERMEDIATE, KV_WIDTH, LAYERS = 48, 80, 16, 2
LINEAR_SHAPES: Mapping[str, tuple[int, int]] = {  # target → out_features, in_features
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KV_WIDTH, HIDDEN),
    "v_proj": (KV_WIDTH, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}
TARGETS = tuple(LINEAR_SHAPES)
Stack = Sequence[tuple[LoweredAdapter, float]]


def small_shape(*, digest: str = f"sha256:{'ba5e' * 16}", layers: int = LAYERS) -> BaseShape:
    """Hidden 48, intermediate 80, 6 heads over 2 key-value heads of 8, without biases."""
    return BaseShape(
        name="small",
        digest=digest,
        model_type="llama",
        hidden_size=HIDDEN,
        num_layers=layers,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=64,
        max_sequence_length=128,
        linears={
            LinearId(layer, target): LinearShape(_module(layer, target), *shape, has_bias=False)
            for layer in range(layers)
            for target, shape in LINEAR_SHAPES.items()
        },
    )


def lora(
    rank: int | Mapping[str, int] = 8,
    *,
    targets: Collection[str] = TARGETS,
    layers: Sequence[int] = range(LAYERS),
    seed: int = 0,
    bias: bool = False,
) -> LoweredAdapter:
    """Random low-rank parts; a rank for each target if it is a mapping. With `bias`, bias deltas too."""
    normal = _normal(seed)
    linears = {}
    for layer in layers:
        for target in targets:
            out_features, in_features = LINEAR_SHAPES[target]
            r = rank if isinstance(rank, int) else rank[target]
            linears[LinearId(layer, target)] = LoweredLinear(
                a=normal(r, in_features),
                b=normal(out_features, r),
                bias_delta=normal(out_features) if bias else None,
            )
    return LoweredAdapter("LORA", linears)


def ia3(
    *, outputs: Collection[str] = ("k_proj", "v_proj"), inputs: Collection[str] = ("down_proj",), seed: int = 0
) -> LoweredAdapter:
    """Random scales of some targets' outputs and of others' inputs."""
    normal = _normal(seed)
    linears = {}
    for layer in range(LAYERS):
        for target in (*outputs, *(target for target in inputs if target not in outputs)):
            out_features, in_features = LINEAR_SHAPES[target]
            linears[LinearId(layer, target)] = LoweredLinear(
                output_scale=1 + 0.3 * normal(out_features) if target in outputs else None,
                input_scale=1 + 0.3 * normal(in_features) if target in inputs else None,
            )
    return LoweredAdapter("IA3", linears)


def prefix(length: int = 3, *, seed: int = 0) -> LoweredAdapter:
    """Random keys and values."""
    normal = _normal(seed)
    return LoweredAdapter(
        "PREFIX_TUNING", kv_prefix=KvPrefix(normal(LAYERS, length, 2, 8), normal(LAYERS, length, 2, 8))
    )


def bottleneck(width: int = 4, *, seed: int = 0) -> LoweredAdapter:
    """A random network beside every MLP."""
    normal = _normal(seed)
    networks = {
        BlockId(layer, "mlp"): Bottleneck(
            "output", normal(width, HIDDEN), normal(width), "relu", normal(HIDDEN, width), normal(HIDDEN)
        )
        for layer in range(LAYERS)
    }
    return LoweredAdapter("BOTTLENECK", bottlenecks=networks)


def prompt(length: int = 4, *, seed: int = 0) -> LoweredAdapter:
    """Random embeddings."""
    return LoweredAdapter("PROMPT_TUNING", prompt_embeddings=_normal(seed)(length, HIDDEN))


def poisoned(rank: int = 8) -> LoweredAdapter:
    """Every kind of part, and no finite number."""
    linears = {}
    for linear_id, linear in lora(rank, bias=True).linears.items():
        out_features, in_features = LINEAR_SHAPES[linear_id.target]
        linears[linear_id] = LoweredLinear(
            a=torch.full_like(linear.a, torch.nan),
            b=torch.full_like(linear.b, torch.inf),
            input_scale=torch.full((in_features,), torch.nan),
            output_scale=torch.full((out_features,), -torch.inf),
            bias_delta=torch.full((out_features,), torch.nan),
        )
    return LoweredAdapter("LORA", linears)


def site_output(layer: int, targets: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor, stack: Stack) -> Tensor:
    """One sequence's rows through one fused linear and its stack, by the formulas: [rows, out_features] float64.

    y = (1 + Σ c (g − 1)) ∘ (W ((1 + Σ c (s − 1)) ∘ x)) + b + Σ c d + Σ c B (A x)
    """
    columns = torch.split(weight.double(), [LINEAR_SHAPES[target][0] for target in targets])
    outputs = []
    for target, w in zip(targets, columns, strict=True):
        found = [(adapter.linears.get(LinearId(layer, target), LoweredLinear()), c) for adapter, c in stack]
        y = (x.double() * _scale(found, "input_scale")) @ w.T * _scale(found, "output_scale")
        for linear, c in found:
            if linear.bias_delta is not None:
                y = y + c * linear.bias_delta.double()
            if (factors := linear.factors) is not None:
                a, b = factors
                y = y + c * (x.double() @ a.double().T) @ b.double().T
        outputs.append(y)
    return torch.cat(outputs, 1) + bias.double()


def _scale(found: Sequence[tuple[LoweredLinear, float]], name: str) -> Tensor | float:
    return 1.0 + sum(
        c * (getattr(linear, name).double() - 1) for linear, c in found if getattr(linear, name) is not None
    )


def _normal(seed: int):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _module(layer: int, target: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if target in TARGETS[:4] else 'mlp'}.{target}"
