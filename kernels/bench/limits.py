"""What a GPU reaches, measured: the floors are made of it."""

from dataclasses import dataclass

import torch

from hotshoe.kernels.bench.case import Case, Run


@dataclass(frozen=True, slots=True)
class Limits:
    """What the GPU reaches: bytes and floating-point operations a millisecond."""

    bytes_per_ms: float
    flops_per_ms: float

    def floor_ms(self, case: Case) -> float:
        return max(case.bytes / self.bytes_per_ms, case.flops / self.flops_per_ms)


def measure_limits(device: torch.device) -> Limits:
    """Of this card: a large copy and a large product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = torch.ones(8192, 8192, dtype=torch.bfloat16, device=device)
    return Limits(
        bytes_per_ms=2 * source.numel() / median_ms(lambda: target.copy_(source)),
        flops_per_ms=2 * 8192**3 / median_ms(lambda: square @ square),
    )


def median_ms(run: Run) -> float:
    """The median time of a call, in milliseconds."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))
