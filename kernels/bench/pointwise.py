"""The benchmark's cases of what lies between the products, whose bytes alone count."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hotshoe.kernels.bench.case import Case, Sizes
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import TASKS


def pointwise_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Norms, rotation and activation."""
    from hotshoe.kernels.triton.gelu_tanh_mul import gelu_tanh_mul
    from hotshoe.kernels.triton.rms_norm import rms_norm
    from hotshoe.kernels.triton.rope_write_kv import rope_write_kv
    from hotshoe.kernels.triton.silu_mul import silu_mul

    kernels: dict[str, Callable[..., Any]] = {
        "rms_norm": rms_norm, "silu_mul": silu_mul, "gelu_tanh_mul": gelu_tanh_mul,
        "rope_write_kv": rope_write_kv,
    }  # fmt: skip
    for rows in (1, 64, sizes.prompt):
        angles = draw.normal(rows, sizes.head_dim, dtype=torch.float32)
        weights = draw.normal(2, sizes.head_dim)
        kv = draw.normal(rows, 2, sizes.kv_heads, sizes.head_dim)
        x, gate_up = draw.normal(2, rows, sizes.hidden), draw.normal(rows, 2 * sizes.intermediate)
        given: dict[str, dict[str, Any]] = {
            "rms_norm": {"x": x[0], "residual": x[1], "weight": draw.normal(sizes.hidden), "eps": 1e-5},
            "silu_mul": {"gate_up": gate_up},
            "gelu_tanh_mul": {"gate_up": gate_up},
            "rope_write_kv": {
                "qkv": draw.normal(rows, sum(sizes.widths)), "cos": angles, "sin": angles, "kv": kv,
                "slots": torch.arange(rows, device=draw.device), "q_weight": weights[0], "k_weight": weights[1],
                "eps": 1e-6,
            },
        }  # fmt: skip
        moved = {
            "rms_norm": 4 * rows * sizes.hidden,
            "silu_mul": 3 * rows * sizes.intermediate,
            "gelu_tanh_mul": 3 * rows * sizes.intermediate,
            "rope_write_kv": 2 * rows * sum(sizes.widths),
        }
        for op, kernel in kernels.items():
            task, inputs = TASKS[op], given[op]
            yield Case(
                op,
                f"{rows} rows",
                partial(kernel, **inputs),
                {"torch": partial(task.run_alternative, inputs)},
                bytes=moved[op] * x.element_size(),
            )


def stats_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """What surrounds the linears of few steps: scaled inputs, and what sampling needs of logits."""
    from hotshoe.kernels.triton.logit_stats import logit_stats
    from hotshoe.kernels.triton.scale_inputs import scale_inputs

    kernels: dict[str, Callable[..., Any]] = {"scale_inputs": scale_inputs, "logit_stats": logit_stats}
    for op, kernel in kernels.items():
        task = TASKS[op]
        inputs = task.inputs(draw)
        rows, columns = inputs["x" if op == "scale_inputs" else "logits"].shape
        passes, itemsize = (3, draw.dtype.itemsize) if op == "scale_inputs" else (2, 4)
        yield Case(
            op,
            f"{rows} rows of {columns}",
            partial(kernel, **inputs),
            {"torch": partial(task.run_alternative, inputs)},
            bytes=passes * rows * columns * itemsize,
        )
