"""The kernel benchmark's cases, small: each runs, and says the same as what it is compared with."""

import pytest
import torch
from torch import Tensor

from hotshoe.kernels.bench.case import Case, Sizes
from hotshoe.kernels.bench.cases import cases
from hotshoe.kernels.bench.limits import Limits
from hotshoe.kernels.bench.row import line
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.triton import KERNELS

SMALL = Sizes(
    hidden=128,
    intermediate=192,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rows=(1, 5),
    adapters=(1, 3),
    contexts=(70,),
    prompt=20,
)


def small_cases(device: torch.device) -> list[Case]:
    return list(cases(Draw(torch.Generator().manual_seed(0), device, torch.float32, True), SMALL))


def test_every_kernel_is_measured(device: torch.device) -> None:
    found = small_cases(device)
    assert {case.op for case in found} == set(KERNELS)
    assert all(case.bytes > 0 and case.alternatives for case in found)
    assert len({(case.op, case.shape) for case in found}) == len(found)


def test_the_alternatives_compute_the_same(device: torch.device) -> None:
    compared = 0
    for case in small_cases(device):
        ours = case.run()
        for name, run in case.alternatives.items():
            theirs = run()
            if (
                isinstance(ours, Tensor)
                and isinstance(theirs, Tensor)
                and name not in ("cuBLAS, dense", "without adapters")
            ):
                # bitsandbytes computes in bfloat16
                torch.testing.assert_close(
                    theirs.to(ours), ours, rtol=2e-2, atol=5e-2, msg=f"{case.op} {case.shape}: {name}"
                )
                compared += 1
    assert compared == 2 * 8 + 1 + 2 + 1 + 2 * 3  # NF4, dequantized, decoding, a prompt, both gates


def test_the_floor_is_the_longer_of_bytes_and_products() -> None:
    case = Case("silu_mul", "", lambda: None, {}, bytes=600, flops=90)
    assert Limits(bytes_per_ms=100, flops_per_ms=10).floor_ms(case) == pytest.approx(9)
    assert Limits(bytes_per_ms=100, flops_per_ms=30).floor_ms(case) == pytest.approx(6)


def test_a_line_says_how_near_the_floor_and_the_others_are() -> None:
    text = line({"op": "nf4_linear", "shape": "1 row", "floor": 0.5, "ours": 1.0, "bitsandbytes": 2.5})
    assert text.split() == "nf4_linear 1 row 1.0000 ms, 50% of the floor; bitsandbytes 2.50×".split()
