"""How near each Triton kernel comes to what the GPU allows, and to what a user would run instead.

    python -m hotshoe.kernels.bench [--op nf4_linear] [--csv kernels.csv]

The floor of a case is the longer of its bytes at the bandwidth of a large copy and its products at the rate of a large
bfloat16 matmul, both measured on this GPU first. Caches are cold at every run; times are medians.
"""

import argparse
import sys
from pathlib import Path

import torch

from hotshoe.kernels.bench.case import Sizes
from hotshoe.kernels.bench.cases import cases
from hotshoe.kernels.bench.limits import measure_limits
from hotshoe.kernels.bench.row import line, measure, write_csv
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.triton import KERNELS


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases that were asked for and prints their table."""
    parser = argparse.ArgumentParser("python -m hotshoe.kernels.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--op", choices=KERNELS, help="all if left out")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA device: nothing to measure. The kernels' correctness: python -m hotshoe.kernels.harness")
        return 0
    device = torch.device("cuda")
    limits = measure_limits(device)
    print(
        f"{torch.cuda.get_device_name()}: {limits.bytes_per_ms / 1e6:.0f} GB/s, {limits.flops_per_ms / 1e9:.0f} TFLOPS"
    )
    draw = Draw(torch.Generator().manual_seed(0), device, torch.bfloat16, False)
    rows = []
    for case in cases(draw, Sizes()):
        if options.op in (None, case.op):
            rows.append(measure(case, limits))
            print(line(rows[-1]), flush=True)
    if options.csv is not None:
        write_csv(options.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
