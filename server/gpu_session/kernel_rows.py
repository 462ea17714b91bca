"""The kernels' benchmark as rows of a session."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hotshoe.kernels.bench import row as table
from hotshoe.kernels.bench.cases import cases
from hotshoe.kernels.bench.limits import Limits, measure_limits, median_ms
from hotshoe.kernels.kernel_task import Draw
from hotshoe.server.gpu_session.ours import Row
from hotshoe.server.gpu_session.sizes import SessionSizes


def measure(sizes: SessionSizes, device: torch.device) -> Iterator[Row]:
    """Every kernel at every shape, beside its floor and its alternatives."""
    if device.type == "cuda":
        limits, time_ms, dtype = measure_limits(device), median_ms, torch.bfloat16
        yield {
            "system": "limits",
            "what": f"{limits.bytes_per_ms / 1e6:.0f} GB/s, {limits.flops_per_ms / 1e9:.0f} TFLOPS",
        }
    else:
        limits, time_ms, dtype = Limits(1e6, 1e6), _once_ms, torch.float32
    draw = Draw(torch.Generator().manual_seed(0), device, dtype, device.type == "cpu")
    for case in cases(draw, sizes.kernels):
        row = table.measure(case, limits, time_ms)
        yield {"system": "kernels", "what": table.line(row), **row}


def _once_ms(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)
