"""Decode steps and prompts of our decoder, as the engine runs them: from arrays on the host to tokens on the host."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from hotshoe.kernels.attention_batch import PagedBatch
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots
from hotshoe.server.adapters.slot_tables import unit_bytes
from hotshoe.server.engine.device_sampler import NUM_RIDERS, draw_rows
from hotshoe.server.gpu_session.random_base import RandomCheckpoint, random_lora
from hotshoe.server.gpu_session.sizes import SessionSizes
from hotshoe.server.model.backends import triton_backend
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.step_graphs import GraphLimits
from hotshoe.server.model.triton_decoder import TritonDecoder

PAGE = 16
Row = dict[str, Any]


class Bed:
    """A random base with all its adapters placed, its cache, and recorded steps."""

    def __init__(self, sizes: SessionSizes, device: torch.device, ops: str) -> None:
        self.sizes, self.device = sizes, device
        checkpoint = RandomCheckpoint(sizes.config, device)
        decoder = read_decoder(checkpoint, checkpoint.spec, triton_backend(device, ops))
        assert isinstance(decoder, TritonDecoder)
        self.decoder = decoder
        shape = checkpoint.spec.base_shape(name="random", digest=f"sha256:{'0' * 64}")
        dtype, count = decoder.backend.dtype, max(1, *sizes.adapters)
        one = FixedAdapterSlots(1, shape, device="cpu", dtype=dtype, device_bytes=1 << 40, max_rank=16)
        size = unit_bytes(one._shapes, dtype)
        self.slots = FixedAdapterSlots(
            count, shape, device=device, dtype=dtype, device_bytes=count * size, max_rank=max(16, sizes.rank)
        )
        self._packed = self.slots.pack(random_lora(checkpoint.spec, sizes.rank))
        self.place_seconds = [self._place(slot) for slot in range(count)]
        self.pages = -(-(max(sizes.context, *sizes.prompts) + 1) // PAGE)
        self.kv = decoder.new_kv_cache((1 + max(sizes.rows) * self.pages) * PAGE)
        self.graphs = decoder.record_steps(
            self.kv, self.slots, GraphLimits(max(sizes.rows), self.pages, PAGE, riders=NUM_RIDERS)
        )

    def _place(self, slot: int) -> float:
        started = time.perf_counter()
        self.slots.place_packed(slot, self._packed)
        return time.perf_counter() - started

    def decode(self, rows: int, adapters: int) -> Callable[[], Any]:
        """One step of rows that each add a token to the context."""
        context = self.sizes.context
        batch = PagedBatch(PAGE, self._tables(rows), (1,) * rows, (context,) * rows)
        last = torch.arange(rows) * self.pages * PAGE + PAGE + context - 1
        inputs = DecoderInput(
            torch.arange(rows), torch.full((rows,), context - 1), last, batch, logit_rows=torch.arange(rows)
        )
        segments = [
            AdapterSegment(row, row + 1, ((row * adapters // rows, 1.0),) if adapters else ()) for row in range(rows)
        ]
        return self._step(inputs, segments, rows)

    def prompt(self, length: int, adapters: int) -> Callable[[], Any]:
        """One step of a whole prompt."""
        position = torch.arange(length)
        batch = PagedBatch(PAGE, self._tables(1), (length,), (length,))
        inputs = DecoderInput(position % 100, position, position + PAGE, batch, logit_rows=torch.tensor([length - 1]))
        return self._step(inputs, [AdapterSegment(0, length, ((0, 1.0),) if adapters else ())], length)

    def _tables(self, rows: int) -> Any:
        return (1 + np.arange(rows * self.pages, dtype=np.int32)).reshape(rows, self.pages)

    def _step(self, inputs: DecoderInput, segments: list[AdapterSegment], rows: int) -> Callable[[], Any]:
        riders = np.zeros((inputs.logit_rows.shape[0], NUM_RIDERS))
        riders[:, 0] = 1.0

        def run() -> Any:
            logits, found = self.decoder.step(inputs, self.kv, self.slots.batch(segments, rows), riders)
            with torch.inference_mode():
                return draw_rows(logits, found, drawn=False)

        return run


def measure(sizes: SessionSizes, device: torch.device, ops: str = "") -> Iterator[Row]:
    """Each batch's time, the sooner the more it matters, if time runs out."""
    started = time.perf_counter()
    bed = Bed(sizes, device, ops)
    name = f"ours, {ops}" if ops else "ours"
    yield {
        "system": name,
        "what": "start",
        "seconds": time.perf_counter() - started,
        "place_ms": 1e3 * float(np.median(bed.place_seconds)),
        "recorded": bed.graphs.num_recorded if bed.graphs else 0,
    }
    for rows, adapters in sizes.batches:
        yield {"system": name, "what": "decode", "rows": rows, "adapters": adapters} | timed(
            bed.decode(rows, adapters), sizes.steps, device
        )
    for length in sizes.prompts:
        for adapters in (0, 1):
            yield {"system": name, "what": "prompt", "rows": length, "adapters": adapters} | timed(
                bed.prompt(length, adapters), max(1, sizes.steps // 4), device
            )


def timed(run: Callable[[], Any], steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a run: the median and the worst of `steps`, after as many that are not timed."""
    seconds = []
    for index in range(2 * steps):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= steps:
            seconds.append(time.perf_counter() - started)
    return {"ms": 1e3 * float(np.median(seconds)), "worst_ms": 1e3 * max(seconds)}
