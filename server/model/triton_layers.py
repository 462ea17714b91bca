"""The decoder's layers in a few fused kernels each, over inputs that all lie on the device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels import ops
from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.kernels.site_updates import SiteUpdates
from hotshoe.kernels.triton.add_low_rank import finish_linear
from hotshoe.kernels.triton.dequantize_nf4 import dequantize_nf4
from hotshoe.kernels.triton.gelu_tanh_mul import gelu_tanh_mul
from hotshoe.kernels.triton.nf4_linear import TritonNf4, nf4_linear
from hotshoe.kernels.triton.paged_attention import AttentionTiles, paged_attention
from hotshoe.kernels.triton.rms_norm import rms_norm
from hotshoe.kernels.triton.rope_write_kv import rope_write_kv
from hotshoe.kernels.triton.scale_inputs import scale_inputs
from hotshoe.kernels.triton.silu_mul import silu_mul
from hotshoe.server.adapters.fixed_adapter_slots import InputScales
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.spec import Gate, ModelSpec

if TYPE_CHECKING:
    from hotshoe.server.model.decoder import DecoderLayer

_PRODUCERS = {"qkv": "norm", "gate_up": "norm", "down": "activation"}  # whose kernels can write even columns first
_GATES: Mapping[Gate, Callable[..., Tensor]] = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}
DENSE_ROWS = 256  # from here on, decoding a weight once into memory and a GEMM of it are faster


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """What a step's rows take of the adapters on the device."""

    site: Callable[[int, str], SiteUpdates]  # of a layer and a site
    tiles: RowTiles
    scales: InputScales


@dataclass(frozen=True, slots=True)
class LayerStep:
    """A step as all layers see it."""

    cos: Tensor  # [ropes, rows, rotary_dim] float32, as `spec.distinct_ropes` has them
    sin: Tensor
    kv_slots: Tensor  # [rows] integers; negative: written nowhere
    attention: Mapping[int | None, Any]  # window → AttentionTiles, or a plan of `ops.plan_attention`
    adapters: StepAdapters | None


class TritonLayers:
    """Runs steps through all layers; `choices` names an implementation of each of `OP_CHOICES`."""

    def __init__(self, spec: ModelSpec, layers: Sequence["DecoderLayer"], choices: Mapping[str, str]) -> None:
        self._spec = spec
        self._layers = tuple(layers)
        self._choices = choices
        self._rope_indices = spec.rope_indices
        self._qk_norms = [
            None if layer.qk_norm is None else (layer.qk_norm[0].contiguous(), layer.qk_norm[-1].contiguous())
            for layer in layers
        ]

    def run(self, hidden: Tensor, kv: KvCache, step: LayerStep) -> tuple[Tensor, Tensor]:
        """Takes hidden [rows, hidden_size] through all layers and writes the rows' keys and values.

        Returns:
            Two tensors whose sum is the last layer's output; the caller's norm adds them.
        """
        delta, residual = hidden, None
        for index, layer in enumerate(self._layers):
            even = self._reads_even_first(index, "qkv")
            x, residual = self.norm(delta, residual, layer.input_norm, even_first=even)
            attended = self._attend(index, self._site(index, "qkv", x, step, even), kv, step)
            delta = self._behind_block(index, 0, self._site(index, "o", attended, step, False))
            even = self._reads_even_first(index, "gate_up")
            x, residual = self.norm(delta, residual, layer.mlp_norm, even_first=even)
            even_down = self._reads_even_first(index, "down")
            x = self._activate(self._site(index, "gate_up", x, step, even), even_down)
            delta = self._behind_block(index, 1, self._site(index, "down", x, step, even_down))
        assert residual is not None, "there is a layer at least"
        return delta, residual

    def _behind_block(self, index: int, block: int, output: Tensor) -> Tensor:
        """What a block gives, normed where the family does before it is added."""
        norms = self._layers[index].block_norms
        return output if norms is None else self.norm(output, None, norms[block])[0]

    def norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, *, even_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum."""
        if self._choices["norm"] == "triton":
            return rms_norm(x, residual, weight, self._spec.norm_eps, even_first=even_first)
        total = x if residual is None else x + residual
        return ops.rms_norm(total, weight, self._spec.norm_eps), total

    def _reads_even_first(self, index: int, site: str) -> bool:
        """Whether a site's input comes with even columns first: only where both kernels are ours."""
        linear, producer = self._layers[index].sites[site], _PRODUCERS.get(site)
        ours = self._choices["linear"] == "triton" and producer is not None and self._choices[producer] == "triton"
        return ours and len(linear.weights) == 1 and isinstance(linear.weights[0], TritonNf4)

    def _activate(self, gate_up: Tensor, even_first: bool) -> Tensor:
        if self._choices["activation"] == "triton":
            return _GATES[self._spec.gate](gate_up, even_first=even_first)
        return ops.GATES[self._spec.gate](gate_up)

    def _attend(self, index: int, qkv: Tensor, kv: KvCache, step: LayerStep) -> Tensor:
        cache, plan = kv.layers[index], step.attention[self._spec.windows[index]]
        return self.attention(self._rotate_and_write(index, qkv, cache, step), cache, plan).flatten(1)

    def attention(self, query: Tensor, cache: Tensor, plan: Any) -> Tensor:
        """Of rotated queries [rows, heads, head_dim], contiguous, by a plan as `LayerStep` has them."""
        attend = paged_attention if isinstance(plan, AttentionTiles) else ops.paged_attention
        return attend(query, cache, plan, scale=self._spec.attention_scale, cap=self._spec.attention_cap)

    def _rotate_and_write(self, index: int, qkv: Tensor, cache: Tensor, step: LayerStep) -> Tensor:
        """Norms and rotates queries and keys, and writes keys and values; the queries."""
        spec, norms = self._spec, self._qk_norms[index]
        cos, sin = step.cos[self._rope_indices[index]], step.sin[self._rope_indices[index]]
        if self._choices["rope"] == "triton":
            q_norm, k_norm = norms or (None, None)
            return rope_write_kv(qkv, cos, sin, cache, step.kv_slots, q_norm, k_norm, spec.norm_eps)
        heads = qkv.view(qkv.shape[0], -1, spec.head_dim)
        rotated = heads[:, : spec.num_heads + spec.num_kv_heads]
        norm = self._layers[index].qk_norm
        if norm is not None:
            rotated.copy_(ops.rms_norm(rotated, norm, spec.norm_eps))
        dims = cos.shape[1]
        sin = torch.cat((-sin[:, : dims // 2], sin[:, dims // 2 :]), dim=1)
        ops.rope_(rotated[..., :dims], cos[:, None].to(qkv), sin[:, None].to(qkv))
        new = heads[:, spec.num_heads :].view(heads.shape[0], 2, spec.num_kv_heads, spec.head_dim)
        nowhere = step.kv_slots < 0
        new = new.masked_fill(nowhere[:, None, None, None], 0)  # the null page stays zero
        cache.index_copy_(0, step.kv_slots.clamp(min=0).long(), new)
        return heads[:, : spec.num_heads].contiguous()

    def _site(self, index: int, site: str, x: Tensor, step: LayerStep, even_first: bool) -> Tensor:
        """A site's output: base, scales, bias and updates of x [rows, in_features]."""
        linear, adapters = self._layers[index].sites[site], step.adapters
        updates = None if adapters is None else adapters.site(index, site)
        inputs = self._inputs(x, updates, adapters, even_first)
        weight = linear.weights[0]
        fused = self._choices["linear"] == "triton" and len(linear.weights) == 1 and isinstance(weight, TritonNf4)
        if fused and len(inputs) == 1 and x.shape[0] < DENSE_ROWS:
            tiles = None if adapters is None else adapters.tiles
            return nf4_linear(inputs[0], weight, linear.bias, updates, tiles, even_first=even_first, unscaled=x)
        y = linear.with_inputs(inputs, lambda rows, packed: self._product(rows, packed, even_first))
        if adapters is None or updates is None:
            return y if linear.bias is None else y + linear.bias
        finish_linear(y, x, linear.bias, updates, adapters.tiles, even_first=even_first)
        return y

    def _inputs(
        self, x: Tensor, updates: SiteUpdates | None, adapters: StepAdapters | None, even_first: bool
    ) -> Sequence[Tensor]:
        """The input as the base's linear takes it: one, or one for each target."""
        if adapters is None or updates is None or adapters.scales is InputScales.NONE:
            return (x,)
        assert updates.vectors is not None, "slots have vectors at every site"
        targets = len(updates.table.widths) if adapters.scales is InputScales.APART else 1
        return scale_inputs(x, updates.vectors, adapters.tiles, targets=targets, even_first=even_first).unbind()

    def product(self, index: int, site: str, inputs: Sequence[Tensor]) -> Tensor:
        """A site's linear alone, of an input for all its targets or one for each.

        It launches what a step of the base launches, in which that is compiled already.
        """
        linear, rows = self._layers[index].sites[site], inputs[0].shape[0]
        even_first = rows < DENSE_ROWS and self._reads_even_first(index, site)
        if even_first:
            inputs = [torch.cat((x[:, ::2], x[:, 1::2]), dim=1) for x in inputs]
        return linear.with_inputs(inputs, lambda x, weight: self._product(x, weight, even_first))

    def _product(self, x: Tensor, weight: Any, even_first: bool) -> Tensor:
        """x Wᵀ by what `linear` names; weights that are not NF4 are dense."""
        if not isinstance(weight, TritonNf4):
            return ops.linear(x, weight)
        if self._choices["linear"] == "triton" and x.shape[0] < DENSE_ROWS:
            return nf4_linear(x, weight, even_first=even_first)
        if even_first:
            x = torch.stack(x.chunk(2, dim=1), dim=2).flatten(1)  # even and odd columns in turn again
        return F.linear(x, dequantize_nf4(weight, x.dtype))
