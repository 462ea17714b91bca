"""Bottlenecks merged: one network as wide as all of them, which is their weighted sum exactly, as AdapterHub's files.

Σ wᵢ (Uᵢ φ(Dᵢ t + cᵢ) + dᵢ) has the rows of all D and c, one below the other, and the columns of all wᵢ Uᵢ side by side.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.activations import activation
from hotshoe.registry.formats.base import BaseShape, BlockId
from hotshoe.registry.formats.bottleneck import BLOCKS
from hotshoe.registry.formats.lowered import Bottleneck, LoweredAdapter
from hotshoe.registry.manifest import CONFIG_FILE, HUB_WEIGHTS_FILE

if TYPE_CHECKING:
    from torch import Tensor

_NAME, _VERSION = "merged", "adapters.1.3.0"


def merged_bottleneck_files(
    adapters: Sequence[LoweredAdapter], shares: Sequence[float], base: BaseShape, *, base_name: str
) -> dict[str, bytes]:
    """adapter_config.json and adapter.safetensors of the sum, float32; equal adapters give equal bytes.

    Raises:
        InvalidAdapter: the networks have different activations or read different things, or change the residual.
    """
    from safetensors.numpy import save

    alike = _require_alike(adapters)
    used = {block for adapter in adapters for block in adapter.bottlenecks}
    places = {flag: found for flag, found in BLOCKS.items() if any(block.name == found[0] for block in used)}
    tensors: dict[str, Tensor] = {}
    widths = {}
    for layer in sorted({block.layer for block in used}):
        blocks = {place: BlockId(layer, name) for name, place in places.values()}
        widths[layer] = max(_width(adapters, block) for block in blocks.values())  # a layer's networks have the same
        for place, block in blocks.items():
            module = f"model.layers.{layer}.{place}.adapters.{_NAME}"
            for name, tensor in _side_by_side(adapters, shares, block, (widths[layer], base.hidden_size)).items():
                tensors[f"{module}.{name}"] = tensor
    config = {
        "config": {**{flag: flag in places for flag in BLOCKS}, **_method(alike, widths, base)},
        "hidden_size": base.hidden_size,
        "model_class": f"{base.model_type.capitalize()}ForCausalLM",
        "model_name": base_name,
        "model_type": base.model_type,
        "name": _NAME,
        "version": _VERSION,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {HUB_WEIGHTS_FILE: save(arrays, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}


def _require_alike(adapters: Sequence[LoweredAdapter]) -> Bottleneck:
    """One of the networks, whose activation and taps are those of all."""
    networks = [network for adapter in adapters for network in adapter.bottlenecks.values()]
    first, wrong = networks[0], ""
    for other in networks:
        if activation(other.activation) is not activation(first.activation):
            wrong = f"one activation, found {first.activation} and {other.activation}"
        elif other.taps != first.taps:
            wrong = f"networks that read the same, found {first.taps} and {other.taps}"
        elif other.residual_gain:
            wrong = "networks that leave the residual as it is"
    if wrong:
        raise InvalidAdapter("sources", f"expected bottlenecks of {wrong}; a request can stack these")
    return first


def _width(adapters: Sequence[LoweredAdapter], block: BlockId) -> int:
    return sum(len(adapter.bottlenecks[block].down) for adapter in adapters if block in adapter.bottlenecks)


def _side_by_side(
    adapters: Sequence[LoweredAdapter], shares: Sequence[float], block: BlockId, sizes: tuple[int, int]
) -> "dict[str, Tensor]":
    """The networks at a block as one of that width; what is left of it counts for nothing."""
    import torch

    width, hidden_size = sizes
    down, down_bias = torch.zeros(width, hidden_size), torch.zeros(width)
    up, up_bias = torch.zeros(hidden_size, width), torch.zeros(hidden_size)
    start = 0
    for adapter, share in zip(adapters, shares, strict=True):
        if (one := adapter.bottlenecks.get(block)) is None:
            continue
        rows = slice(start, start + len(one.down))
        start = rows.stop
        down[rows], up[:, rows] = one.down, share * one.up
        if one.down_bias is not None:
            down_bias[rows] = one.down_bias
        if one.up_bias is not None:
            up_bias += share * one.up_bias
    named = {"adapter_down.0.weight": down, "adapter_down.0.bias": down_bias}
    return {**named, "adapter_up.weight": up, "adapter_up.bias": up_bias}


def _method(alike: Bottleneck, widths: Mapping[int, int], base: BaseShape) -> dict[str, object]:
    """What the package's config says of the networks, beside where they are."""
    return {
        "non_linearity": alike.activation,
        "is_parallel": alike.taps == "residual",
        "original_ln_before": alike.taps == "sum",
        "original_ln_after": True,
        "residual_before_ln": True,
        "ln_before": False,
        "ln_after": False,
        "use_gating": False,
        "phm_layer": False,
        "scaling": 1.0,
        # Of which the package takes the whole part: half a number more, so that no rounding makes it one less.
        "reduction_factor": {str(layer): base.hidden_size / (width + 0.5) for layer, width in widths.items()},
        "leave_out": [layer for layer in range(base.num_layers) if layer not in widths],
    }
