"""Runs the decoder over a step's plan. The only part of the engine that touches the device's key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.server.engine.device_sampler import NUM_RIDERS, Draw, draw_rows, sampling_riders, warm_up
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.step_batch import (
    Attention,
    StepBatch,
    build_step_batch,
    by_pages,
    by_slots,
    page_slots,
    position_slots,
)
from hotshoe.server.engine.step_plan import Chunk, PrefixWrite, StepPlan, TailCopy

if TYPE_CHECKING:
    from hotshoe.server.adapters.adapter_places import AdapterPlaces
    from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots
    from hotshoe.server.adapters.placed_adapter import Beyond
    from hotshoe.server.model.decoder import Decoder
    from hotshoe.server.model.triton_decoder import TritonDecoder


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed."""

    logits: Tensor  # [sum of num_logits, vocab_size] float32, on the device, until the next step
    draws: Sequence[Draw] | None = None  # of each row of logits, where whoever computed it read it


class Runner:
    """The decoder, its key-value cache and the adapters' tables, driven step by step."""

    def __init__(self, decoder: "Decoder", *, adapter_slots: "AdapterPlaces[Any]", blocks: KvBlocks) -> None:
        self._decoder = decoder
        self._adapter_slots = adapter_slots
        self._blocks = blocks
        self._kv = decoder.new_kv_cache((blocks.num_pages + 1) * blocks.page_tokens)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Computes a plan that has chunks, whose order it may change; its logits are theirs, in that order."""
        soiled = self._blocks.take_soiled()
        if soiled:
            self._zero(page_slots(self._blocks, soiled))
        if plan.tail_copies:
            self._copy_tails(plan.tail_copies)
        for write in plan.prefix_writes:
            self._write_prefix(write)
        return self._compute(plan)

    @torch.inference_mode()
    def reset(self) -> None:
        """Clears the whole cache, as if nothing had been computed. Raises if the device is beyond that."""
        self._zero(np.arange(self._kv.num_slots))
        float(self._kv.layers[0][0].sum())  # a device reports its faults only when it is waited for

    def _compute(self, plan: StepPlan) -> StepResult:
        together, apart = _parts(plan.chunks, self._decoder.takes)
        passes = [self._run_pass(part, compiled=part is together) for part in (together, apart) if part]
        if len(passes) == 1:
            return passes[0]
        draws = [draw for result in passes for draw in result.draws or _read(result.logits)]
        return StepResult(torch.cat([result.logits for result in passes]), draws)

    def _run_pass(self, chunks: Sequence[Chunk], *, compiled: bool) -> StepResult:
        batch = self._batch(chunks, by_slots)
        adapters = self._adapter_slots.batch(batch.segments, batch.num_rows)
        logits = self._decoder.logits_of(batch.inputs, self._kv, adapters, compiled=compiled)
        if logits.finite is None or logits.likeliest is None:
            return StepResult(logits.values)
        draws = [Draw(fine, token, None) for fine, token in zip(logits.finite, logits.likeliest, strict=True)]
        return StepResult(logits.values, draws)

    def _batch(self, chunks: Sequence[Chunk], attention: Attention) -> StepBatch:
        return build_step_batch(chunks, self._blocks, attention, embedding_scale=self._decoder.embedding_scale)

    def _zero(self, slots: NDArray[np.int64]) -> None:
        self._kv.zero(torch.from_numpy(slots))

    def _copy_tails(self, copies: Sequence[TailCopy]) -> None:
        """All are read before any is written: a page that is copied from may be one that is copied to."""
        sources, targets = [], []
        for copy in copies:
            assert copy.sequence.table is not None, "only running sequences have tails copied"
            targets.append(position_slots(self._blocks, copy.sequence.table, copy.start, copy.end))
            sources.append(page_slots(self._blocks, [copy.page])[: copy.end - copy.start])
        self._kv.copy(torch.from_numpy(np.concatenate(sources)), torch.from_numpy(np.concatenate(targets)))

    def _write_prefix(self, write: PrefixWrite) -> None:
        table = write.sequence.table
        assert table is not None, "only running sequences have prefixes written"
        prefixes = [soft.kv_prefix for soft in write.sequence.terms if soft.kv_prefix is not None]
        keys = torch.cat([prefix.keys for prefix in prefixes], dim=1)[:, write.start : write.end]
        values = torch.cat([prefix.values for prefix in prefixes], dim=1)[:, write.start : write.end]
        slots = position_slots(self._blocks, table, write.start, write.end)
        self._kv.write(torch.from_numpy(slots), keys, values)


class DeviceRunner(Runner):
    """Hands a step over in one copy, draws on the device, and takes tokens back in one copy.

    Rows apart are launched behind the others, which know nothing of them, and drawn with them.

    Whoever reads the result has waited for the step, so pages and slots that are given back afterwards are not in use.
    """

    def __init__(self, decoder: "TritonDecoder", *, adapter_slots: "FixedAdapterSlots", blocks: KvBlocks) -> None:
        super().__init__(decoder, adapter_slots=adapter_slots, blocks=blocks)
        from hotshoe.server.model.step_graphs import GraphLimits

        self._triton, self._fixed_slots = decoder, adapter_slots
        max_sequences, max_pages = blocks.tables.shape
        limits = GraphLimits(max_sequences, max_pages, blocks.page_tokens, riders=NUM_RIDERS)
        self.graphs = decoder.record_steps(self._kv, adapter_slots, limits)
        if decoder.backend.device.type == "cuda":
            warm_up(decoder.spec.vocab_size, decoder.backend.device)

    def _compute(self, plan: StepPlan) -> StepResult:
        # rows of one stack side by side: up to 16 of them read its factors once
        chunks = plan.chunks
        chunks.sort(key=lambda chunk: (chunk.num_rows > 1, chunk.sequence.stack))
        together, apart = _parts(chunks, self._decoder.takes)
        passes = [run(part) for run, part in ((self._run_together, together), (self._run_apart, apart)) if part]
        logits, riders = passes[0] if len(passes) == 1 else map(torch.cat, zip(*passes, strict=True))
        drawn = any(chunk.draws and not chunk.sequence.sampling.params.greedy for chunk in chunks)
        return StepResult(logits, draw_rows(logits, riders, drawn=drawn))

    def _run_together(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Logits, and riders beside them."""
        batch = self._batch(chunks, by_pages)
        adapters = self._fixed_slots.batch(batch.segments, batch.num_rows)
        return self._triton.step(batch.inputs, self._kv, adapters, sampling_riders(chunks))

    def _run_apart(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        batch = self._batch(chunks, by_pages)
        adapters = self._fixed_slots.batch_apart(batch.segments, batch.num_rows)
        logits = self._triton.logits_of(batch.inputs, self._kv, adapters, compiled=False).values
        return logits, torch.from_numpy(sampling_riders(chunks)).to(logits.device)


def _parts(chunks: list[Chunk], takes: "frozenset[Beyond]") -> tuple[list[Chunk], list[Chunk]]:
    """Those that the decoder takes together, and those that are computed apart, which come last from now on."""
    chunks.sort(key=lambda chunk: not chunk.sequence.beyond <= takes)
    count = sum(chunk.sequence.beyond <= takes for chunk in chunks)
    return chunks[:count], chunks[count:]


def _read(logits: Tensor) -> list[Draw]:
    """What compiled code reads of logits while it writes them."""
    return [Draw(row.isfinite().all().item(), int(row.argmax()), None) for row in logits]


def new_runner(decoder: "Decoder", *, adapter_slots: "AdapterPlaces[Any]", blocks: KvBlocks) -> Runner:
    """The runner of a decoder's backend."""
    if decoder.backend.ops is None:
        return Runner(decoder, adapter_slots=adapter_slots, blocks=blocks)
    from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots
    from hotshoe.server.model.triton_decoder import TritonDecoder

    assert isinstance(decoder, TritonDecoder) and isinstance(adapter_slots, FixedAdapterSlots), "made for one backend"
    return DeviceRunner(decoder, adapter_slots=adapter_slots, blocks=blocks)
