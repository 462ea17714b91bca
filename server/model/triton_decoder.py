"""The decoder on a GPU: a step's inputs go over in one copy, and decode steps are played from recorded graphs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels import ops
from hotshoe.kernels.attention_batch import PagedBatch
from hotshoe.kernels.row_tiles import tile_rows
from hotshoe.kernels.triton.paged_attention import AttentionTiles, plan_tiles
from hotshoe.server.adapters.adapter_batch import AdapterBatch
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots, InputScales, SlotBatch
from hotshoe.server.model.backends import Backend
from hotshoe.server.model.decoder import Decoder, DecoderLayer, with_own_heads
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.spec import ModelSpec
from hotshoe.server.model.step_buffers import NOWHERE, StepBuffers, paged, sizes_of
from hotshoe.server.model.step_graphs import GraphLimits, StepGraphs, StepRows
from hotshoe.server.model.step_logits import StepLogits
from hotshoe.server.model.triton_layers import DENSE_ROWS, LayerStep, StepAdapters, TritonLayers

_LOG = logging.getLogger(__name__)
WARM_UP_ROWS = (2, 20, 40, DENSE_ROWS)  # one for each size of tile, and one for the library's GEMM


@dataclass(frozen=True, slots=True)
class _Batch:
    """What of a step is decided on the host, and recorded with it."""

    num_decodes: int
    page_tokens: int
    plans: Any = None  # of `ops.plan_attention` by window, where that attends
    inputs: DecoderInput | None = None  # whose embeddings are not all looked up


class TritonDecoder(Decoder):
    """Computes as `Decoder` does, from `FixedAdapterSlots`' batches, in Triton kernels.

    `step` is quick. `logits_of`, with an `AdapterBatch` and not compiled, launches each operation by itself: it is for
    rows whose adapters change more than the tables hold, and shares the cache with the others.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        *,
        embedding: Tensor,
        layers: Sequence[DecoderLayer],
        norm: Tensor,
        head: Any,
    ) -> None:
        super().__init__(spec, backend, embedding=embedding, layers=layers, norm=norm, head=head)
        assert backend.ops is not None, "a Triton backend names its operations"
        self._choices = backend.ops
        self._triton = TritonLayers(spec, layers, backend.ops)
        self._graphs: StepGraphs | None = None
        self._recorded_kv: KvCache | None = None

    def record_steps(self, kv: KvCache, slots: FixedAdapterSlots, limits: GraphLimits) -> StepGraphs | None:
        """From now on plays decode steps over this cache and these slots from graphs; None if an operation forbids it.

        On a GPU the first of them are recorded here, and what prompts launch is compiled, so that no request waits
        for a compiler. Nothing is written to the cache.
        """
        on_gpu = self.backend.device.type == "cuda"
        if on_gpu:
            _LOG.info("compiling kernels and recording decode steps: a minute where that is new, else seconds")
            for rows in WARM_UP_ROWS:
                self.warm_up(kv, slots, rows=rows, page_tokens=limits.page_tokens)
        if self._choices["attention"] != "triton":
            return None

        def compute(buffers: StepBuffers, slots: FixedAdapterSlots | None, scales: InputScales) -> StepRows:
            return self._compute(buffers, kv, _Batch(buffers.sizes.rows, limits.page_tokens), slots, scales)

        self._graphs, self._recorded_kv = StepGraphs(compute, limits, self.backend.device), kv
        if on_gpu:
            with torch.inference_mode():
                self._graphs.record_first(slots)
        return self._graphs

    def warm_up(self, kv: KvCache, slots: FixedAdapterSlots, *, rows: int, page_tokens: int) -> None:
        """Runs prompts of that many rows over the null page, base only and with a slot, and writes nothing.

        Rows apart launch these kernels too, and one more where a linear has a bias, which they add by themselves.
        """
        batch = PagedBatch(page_tokens, np.zeros((1, -(-rows // page_tokens)), np.int32), (rows,), (rows,))
        zeros = torch.zeros(rows, dtype=torch.int64)
        inputs = DecoderInput(zeros, zeros, torch.full((rows,), NOWHERE), batch, logit_rows=torch.tensor([rows - 1]))
        segments = ((0, rows, ((0, 1.0),)),)
        self.step(inputs, kv)
        for scales in InputScales:
            self.step(inputs, kv, SlotBatch(slots, segments, tile_rows(segments, rows), scales))
        for site, linear in self._layers[0].sites.items():
            in_features = linear.weights[0].shape[1]
            x = torch.zeros(rows, in_features, dtype=self.backend.dtype, device=self.backend.device)
            self._triton.product(0, site, (x,))

    def forward(self, inputs: DecoderInput, kv: KvCache, adapters: AdapterBatch | SlotBatch | None = None) -> Tensor:
        if isinstance(adapters, AdapterBatch):
            return super().forward(inputs, kv, adapters)
        return self.step(inputs, kv, adapters)[0]

    @torch.inference_mode()
    def step(
        self,
        inputs: DecoderInput,
        kv: KvCache,
        adapters: SlotBatch | None = None,
        riders: NDArray[np.float64] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs one step.

        Args:
            riders: [R, n] float64, numbers that go to the device with the step and come back beside its logits.
        Returns:
            Logits [R, vocab] float32, and the riders, on the device; valid until the next step.
        """
        self._check(inputs)
        if self._graphs is not None and kv is self._recorded_kv and self._graphs.take(inputs, adapters):
            rows, found = self._graphs.run(inputs, adapters, riders)
        else:
            rows, found = self._step_at_once(inputs, kv, adapters, riders)
        if inputs.has_own_heads:
            with_own_heads(StepLogits(rows.logits), rows.normed, inputs)
        return ops.soft_cap(rows.logits, self.spec.logit_cap), found

    def _step_at_once(
        self, inputs: DecoderInput, kv: KvCache, adapters: SlotBatch | None, riders: NDArray[np.float64] | None
    ) -> tuple[StepRows, Tensor]:
        buffers = StepBuffers(sizes_of(inputs, adapters, riders), self.backend.device)
        buffers.write(inputs, adapters, riders)
        batch = paged(inputs.attention)
        plans = None if self._choices["attention"] == "triton" else self._plan_sdpa(batch)
        how = _Batch(batch.num_decodes, batch.page_tokens, plans, inputs)
        slots, scales = (None, InputScales.NONE) if adapters is None else (adapters.slots, adapters.scales)
        return self._compute(buffers, kv, how, slots, scales), buffers.device["riders"]

    def _compute(
        self, buffers: StepBuffers, kv: KvCache, batch: _Batch, slots: FixedAdapterSlots | None, scales: InputScales
    ) -> StepRows:
        """What a step gives of what lies in its buffers."""
        found = buffers.device
        hidden = F.embedding(found["token_ids"], self._embedding).to(self.backend.dtype)
        if self.embedding_scale != 1.0:
            hidden *= self.embedding_scale
        if batch.inputs is not None:
            self._complete(hidden, batch.inputs)
        far_rows = None if self.spec.rope.far_from is None else found["far_rows"] != 0
        cos, sin = (torch.cat((part, part), dim=2) for part in self._cos_sin(found["positions"], far_rows))
        adapters = None if slots is None else StepAdapters(slots.tables.site, buffers.row_tiles, scales)
        attention = batch.plans or {
            window: AttentionTiles(
                hidden.shape[0],
                batch.num_decodes,
                found["attention"],
                found["tables"].t(),
                batch.page_tokens,
                window,
            )
            for window in set(self.spec.windows)
        }
        step = LayerStep(cos, sin, found["kv_slots"], attention, adapters)
        delta, residual = self._triton.run(hidden, kv, step)
        rows = found["logit_rows"]
        normed, _ = self._triton.norm(delta.index_select(0, rows), residual.index_select(0, rows), self._norm)
        return StepRows(_logits(normed, self._head), normed)

    # Rows apart, operation by operation: as `Decoder` runs them, in these kernels.

    def _plan_attention(self, inputs: DecoderInput) -> Mapping[int | None, Any]:
        batch = paged(inputs.attention)
        if self._choices["attention"] != "triton":
            return self._plan_sdpa(batch)
        device = self.backend.device
        return {window: plan_tiles(batch, window=window, device=device) for window in set(self.spec.windows)}

    def _product(self, index: int, site: str, inputs: Sequence[Tensor]) -> Tensor:
        return self._triton.product(index, site, inputs)

    def _attention(self, query: Tensor, cache: Tensor, plan: Any) -> Tensor:
        return self._triton.attention(query.contiguous(), cache, plan)

    def _head_product(self, x: Tensor) -> Tensor:
        return _logits(x, self._head)

    def _plan_sdpa(self, batch: PagedBatch) -> dict[int | None, Any]:
        plan = partial(
            ops.plan_attention, batch.by_slots(), "padded", device=self.backend.device, dtype=self.backend.dtype
        )
        return {window: plan(window=window) for window in set(self.spec.windows)}


def _logits(x: Tensor, head: Tensor) -> Tensor:
    """x headᵀ in float32: in bfloat16, half of the likeliest tokens would be equally likely."""
    if x.is_cuda and x.dtype == torch.bfloat16:
        return torch.mm(x, head.t(), out_dtype=torch.float32)
    return F.linear(x, head).float()
