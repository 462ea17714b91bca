"""Decode steps recorded once for each number of rows, and played again over the same memory.

A step of up to that many rows, with any adapters, is written into the bucket's buffers and played: everything that
changes is read from there. Where there is no GPU, playing runs the recorded function again, over the same buffers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots, InputScales
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.step_buffers import StepBuffers, StepSizes, paged

if TYPE_CHECKING:
    from hotshoe.server.adapters.fixed_adapter_slots import SlotBatch

_LOG = logging.getLogger(__name__)
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FIRST_BUCKETS = 64  # buckets up to that many rows are recorded before the first request


class StepRows(NamedTuple):
    """What a step gives for the rows whose logits are wanted."""

    logits: Tensor  # [rows, vocab_size] float32
    normed: Tensor  # [rows, hidden_size]: what the head reads


Compute = Callable[[StepBuffers, FixedAdapterSlots | None, InputScales], StepRows]
Graph = Callable[[], StepRows]  # plays; the result stays where it is, until the next one plays


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Of the steps that are recorded."""

    max_rows: int
    max_pages: int  # of one sequence
    page_tokens: int
    riders: int = 0  # 64-bit numbers beside each row of logits

    def sizes(self, rows: int) -> StepSizes:
        """Of a bucket. Two adapters a row: a step of deeper stacks is not played."""
        return StepSizes(
            rows=rows,
            logit_rows=rows,
            tiles=rows,
            sequences=rows,
            pages=self.max_pages,
            entries=max(8, 2 * rows),
            riders=self.riders,
        )


class StepGraphs:
    """The recorded steps: buckets × without adapters, with some, with some that scale inputs."""

    def __init__(self, compute: Compute, limits: GraphLimits, device: torch.device) -> None:
        """Takes what computes a bucket's logits from its buffers alone, in memory that it allocates itself."""
        self.limits = limits
        self.num_recorded = 0
        self._compute = compute
        self._device = device
        self._record = CudaRecorder(device) if device.type == "cuda" else record_eagerly
        self._buckets = [rows for rows in BUCKETS if rows < limits.max_rows] + [min(limits.max_rows, BUCKETS[-1])]
        self._buffers: dict[int, StepBuffers] = {}
        self._graphs: dict[tuple[int, InputScales | None], Graph] = {}

    def record_first(self, slots: FixedAdapterSlots | None) -> None:
        """Records what is used soonest, the largest first, so that the others find their memory free."""
        for rows in sorted((rows for rows in self._buckets if rows <= FIRST_BUCKETS), reverse=True):
            self._graph(rows, None, InputScales.NONE)
            if slots is not None:
                self._graph(rows, slots, InputScales.NONE)

    def take(self, inputs: DecoderInput, adapters: "SlotBatch | None") -> bool:
        """Whether a step is one that is recorded: nothing but decodes, each with one row of logits, and of a size."""
        batch = paged(inputs.attention)
        rows = batch.num_rows
        if not 0 < rows <= self._buckets[-1] or batch.num_decodes != rows or inputs.logit_rows.shape[0] != rows:
            return False
        if inputs.embeddings is not None or inputs.added is not None or batch.page_tokens != self.limits.page_tokens:
            return False
        sizes = self.limits.sizes(self._bucket(rows))
        entries = 0 if adapters is None else len(adapters.tiles.entries)
        return batch.tables.shape[1] <= sizes.pages and entries <= sizes.entries

    def run(
        self, inputs: DecoderInput, adapters: "SlotBatch | None", riders: "NDArray[np.float64] | None" = None
    ) -> tuple[StepRows, Tensor]:
        """Plays a step that `take` accepted.

        Returns:
            What it gave, and riders [rows, riders], on the device, until the next step is played.
        """
        rows = paged(inputs.attention).num_rows
        bucket = self._bucket(rows)
        buffers = self._buffers_of(bucket)
        buffers.write(inputs, adapters, riders)
        slots, scales = (None, InputScales.NONE) if adapters is None else (adapters.slots, adapters.scales)
        given = self._graph(bucket, slots, scales)()
        return StepRows(given.logits[:rows], given.normed[:rows]), buffers.device["riders"][:rows]

    def _bucket(self, rows: int) -> int:
        return next(bucket for bucket in self._buckets if bucket >= rows)

    def _buffers_of(self, bucket: int) -> StepBuffers:
        if bucket not in self._buffers:
            self._buffers[bucket] = StepBuffers(self.limits.sizes(bucket), self._device)
            self._buffers[bucket].clear()
        return self._buffers[bucket]

    def _graph(self, bucket: int, slots: FixedAdapterSlots | None, scales: InputScales) -> Graph:
        key = bucket, None if slots is None else scales
        if key not in self._graphs:
            buffers = self._buffers_of(bucket)
            self._graphs[key] = self._record(lambda: self._compute(buffers, slots, scales))
            self.num_recorded += 1
        return self._graphs[key]


def record_eagerly(step: Callable[[], StepRows]) -> Graph:
    """A "graph" that runs the step again, into the memory of its first result."""
    kept: list[StepRows] = []

    def play() -> StepRows:
        result = step()
        if not kept:
            kept.append(result)
        for target, source in zip(kept[0], result, strict=True):
            if source is not target:
                target.copy_(source)
        return kept[0]

    return play


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: only one plays at a time, and its result is read at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # one: memory that a stream has used is kept for it

    def __call__(self, step: Callable[[], StepRows]) -> Graph:
        """Runs the step once beside, which compiles its kernels, then records it.

        The step may run any number of times over the same buffers: it writes the same keys and values again. One that
        cannot be recorded, for want of memory or by the driver's word, is run again each time, which is only slower.
        """
        stream, main = self._stream, torch.cuda.current_stream(self._device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            step()
        main.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads copy adapters and allocate meanwhile: only this one's calls must be fit to be recorded
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                result = step()
        except RuntimeError as error:
            torch.cuda.set_stream(main)  # a recording that fails to end leaves its own
            _LOG.warning("a decode step is not recorded: %s", str(error).partition("\n")[0])
            return record_eagerly(step)

        def play() -> StepRows:
            graph.replay()
            return result

        return play
