"""Decode steps and prompts of our decoder, as the engine runs them: from arrays on the host to tokens on the host."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.attention_batch import PagedBatch
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots
from hotshoe.server.adapters.slot_tables import unit_bytes
from hotshoe.server.engine.device_sampler import NUM_RIDERS, draw_rows
from hotshoe.server.gpu_session.random_base import RandomCheckpoint, cancelling_adapter, random_lora
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
            count + 1, shape, device=device, dtype=dtype, device_bytes=count * size, max_rank=max(16, sizes.rank)
        )
        self._packed = self.slots.pack(random_lora(checkpoint.spec, sizes.rank))
        self.place_seconds = [self._place(slot) for slot in range(count)]
        self._apart = ((count, 1.0),)
        self.slots.place(count, cancelling_adapter(checkpoint.spec))
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
        segments = [
            AdapterSegment(row, row + 1, ((row * adapters // rows, 1.0),) if adapters else ()) for row in range(rows)
        ]
        return self._step(self._decode_inputs(rows), segments, rows)

    def decode_with_apart(self, rows: int) -> Callable[[], Any]:
        """One step of so many rows of the base, and as many of an adapter that is computed apart."""
        inputs, riders = self._decode_inputs(rows), _riders(rows)
        segments = [AdapterSegment(row, row + 1, self._apart) for row in range(rows)]

        def run() -> Any:
            logits, found = self.decoder.step(inputs, self.kv, None, riders)
            with torch.inference_mode():
                both = torch.cat((logits, self._logits_apart(inputs, segments)))
                return draw_rows(both, torch.cat((found, found)), drawn=False)

        return run

    @torch.inference_mode()
    def apart_error(self, length: int) -> float:
        """How far a prompt's logits under an adapter that doubles them, computed apart, are from twice the base's."""
        inputs = self._prompt_inputs(length)
        expected = 2 * self.decoder.step(inputs, self.kv)[0]
        found = self._logits_apart(inputs, [AdapterSegment(0, length, self._apart)])
        return float((found - expected).norm() / expected.norm())

    def _logits_apart(self, inputs: DecoderInput, segments: list[AdapterSegment]) -> Tensor:
        adapters = self.slots.batch_apart(segments, segments[-1].end)
        return self.decoder.logits_of(inputs, self.kv, adapters, compiled=False).values

    def _decode_inputs(self, rows: int) -> DecoderInput:
        context = self.sizes.context
        batch = PagedBatch(PAGE, self._tables(rows), (1,) * rows, (context,) * rows)
        last = torch.arange(rows) * self.pages * PAGE + PAGE + context - 1
        return DecoderInput(
            torch.arange(rows), torch.full((rows,), context - 1), last, batch, logit_rows=torch.arange(rows)
        )

    def prompt(self, length: int, adapters: int) -> Callable[[], Any]:
        """One step of a whole prompt."""
        stack = ((0, 1.0),) if adapters else ()
        return self._step(self._prompt_inputs(length), [AdapterSegment(0, length, stack)], length)

    def _prompt_inputs(self, length: int) -> DecoderInput:
        position = torch.arange(length)
        batch = PagedBatch(PAGE, self._tables(1), (length,), (length,))
        return DecoderInput(position % 100, position, position + PAGE, batch, logit_rows=torch.tensor([length - 1]))

    def _tables(self, rows: int) -> Any:
        return (1 + np.arange(rows * self.pages, dtype=np.int32)).reshape(rows, self.pages)

    def _step(self, inputs: DecoderInput, segments: list[AdapterSegment], rows: int) -> Callable[[], Any]:
        riders = _riders(inputs.logit_rows.shape[0])

        def run() -> Any:
            logits, found = self.decoder.step(inputs, self.kv, self.slots.batch(segments, rows), riders)
            with torch.inference_mode():
                return draw_rows(logits, found, drawn=False)

        return run


def _riders(rows: int) -> NDArray[np.float64]:
    riders = np.zeros((rows, NUM_RIDERS))
    riders[:, 0] = 1.0
    return riders


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
    few = max(1, sizes.steps // 4)
    for length in sizes.prompts:
        for adapters in (0, 1):
            yield {"system": name, "what": "prompt", "rows": length, "adapters": adapters} | timed(
                bed.prompt(length, adapters), few, device
            )
    rows = sizes.rows[1]
    error = bed.apart_error(min(32, *sizes.prompts))
    yield {"system": name, "what": "apart", "rows": rows, "error": error} | timed(
        bed.decode_with_apart(rows), few, device
    )


def timed(run: Callable[[], Any], steps: int, device: torch.device, *, limit_seconds: float = 4.0) -> dict[str, float]:
    """Milliseconds of a run: the median and the worst of `steps`, after as many that are not timed.

    Of slow ones there are fewer, three at least and one before, so that they end in about the time that is given.
    """
    _seconds_of(run, steps, device, limit_seconds=limit_seconds / 2, at_least=1)
    seconds = _seconds_of(run, steps, device, limit_seconds=limit_seconds / 2, at_least=min(3, steps))
    return {"ms": 1e3 * float(np.median(seconds)), "worst_ms": 1e3 * max(seconds), "steps": len(seconds)}


def _seconds_of(
    run: Callable[[], Any], steps: int, device: torch.device, *, limit_seconds: float, at_least: int
) -> list[float]:
    found: list[float] = []
    while len(found) < at_least or (len(found) < steps and sum(found) < limit_seconds):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return found
