"""How near each Triton kernel comes to what the GPU allows, and to what a user would run instead.

    python -m hotshoe.kernels.bench [--op nf4_linear] [--csv kernels.csv]

The floor of a case is the longer of its bytes at the bandwidth of a large copy and its products at the rate of a large
bfloat16 matmul, both measured on this GPU first. Caches are cold at every run; times are medians.
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hotshoe.kernels import bnb_linear, sdpa_attention, segmented_low_rank
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import TASKS, random_nf4
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm
from hotshoe.kernels.site_updates import plan_updates
from hotshoe.kernels.triton import KERNELS

Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, and of what is asked of it; as they are, Llama-3.1-8B's."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    adapters: tuple[int, ...] = (1, 8, 32)
    contexts: tuple[int, ...] = (1024, 8192)
    prompt: int = 2048

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape: what to run, what to run instead, and what cannot be avoided."""

    op: str
    shape: str
    run: Run
    alternatives: dict[str, Run]
    bytes: int
    flops: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the GPU reaches: bytes and floating-point operations a millisecond."""

    bytes_per_ms: float
    flops_per_ms: float

    def floor_ms(self, case: Case) -> float:
        return max(case.bytes / self.bytes_per_ms, case.flops / self.flops_per_ms)


def nf4_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """NF4 linears of an 8B model, over batch sizes."""
    from hotshoe.kernels.triton.nf4_linear import nf4_linear, pack

    shapes = (
        (sum(sizes.widths), sizes.hidden), (sizes.hidden, sizes.widths[0]),
        (2 * sizes.intermediate, sizes.hidden), (sizes.hidden, sizes.intermediate),
    )  # fmt: skip
    for out, features in shapes:
        weight = random_nf4(draw, out, features)
        ours, theirs = pack([weight], draw.device), bnb_linear.pack([weight], draw.device)
        dense = draw.normal(out, features)
        for rows in sizes.rows:
            x = draw.normal(rows, features)
            yield Case(
                "nf4_linear",
                f"{out}×{features}, {rows} rows",
                partial(nf4_linear, x, ours),
                {
                    "permuted lookup": partial(nf4_linear, x, ours, permute=True),
                    "bitsandbytes": partial(bnb_linear.linear, x, theirs),
                    "cuBLAS, dense": partial(F.linear, x, dense),
                },
                bytes=out * features // 2 + out * features // 64 + rows * (out + features) * x.element_size(),
                flops=2 * rows * out * features,
            )


def epilogue_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """The qkv linear with an adapter a row, against the same without: what adapters cost."""
    from hotshoe.kernels.triton.nf4_linear import nf4_linear, pack

    widths, features, most = sizes.widths, sizes.hidden, max(sizes.adapters)
    weight = pack([random_nf4(draw, sum(widths), features)], draw.device)
    a = draw.normal(most, features, len(widths) * UNIT_RANK, scale=features**-0.5)
    table = LowRankTable(a, draw.normal(most * UNIT_RANK, sum(widths)), widths)
    for rows in sizes.adapters:
        terms = [LowRankTerm(row, (UNIT_RANK,) * len(widths)) for row in range(rows)]
        segments = [LowRankSegment(row, row + 1, (term,)) for row, term in enumerate(terms)]
        updates = plan_updates(table, segments, num_rows=rows)
        x = draw.normal(rows, features)
        factors = rows * UNIT_RANK * (features * len(widths) + sum(widths))
        yield Case(
            "nf4_linear",
            f"{sum(widths)}×{features}, {rows} rows, an adapter each",
            partial(nf4_linear, x, weight, None, *updates),
            {"without adapters": partial(nf4_linear, x, weight)},
            bytes=sum(widths) * features * 33 // 64 + (factors + rows * (features + sum(widths))) * x.element_size(),
            flops=2 * (rows * sum(widths) * features + factors),
        )


def low_rank_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Low-rank updates, over batches and adapters."""
    from hotshoe.kernels.triton.add_low_rank import finish_linear

    widths, features, rank = sizes.widths, sizes.hidden, UNIT_RANK
    table = LowRankTable(
        draw.normal(max(sizes.adapters), features, len(widths) * rank, scale=features**-0.5),
        draw.normal(max(sizes.adapters) * rank, sum(widths)),
        widths,
    )
    steps = [(f"{n} adapters, {n} rows", n, n) for n in sizes.adapters] + [
        (f"prompt of {sizes.prompt}", 1, sizes.prompt)
    ]
    for shape, adapters, rows in steps:
        each = rows // adapters
        segments = [
            LowRankSegment(i * each, (i + 1) * each, (LowRankTerm(i, (rank,) * len(widths)),)) for i in range(adapters)
        ]
        updates = plan_updates(table, segments, num_rows=rows)
        x, y = draw.normal(rows, features), draw.normal(rows, sum(widths))
        factors = adapters * rank * (features * len(widths) + sum(widths))
        yield Case(
            "add_low_rank",
            f"{features} → {sum(widths)}, rank {rank}, {shape}",
            partial(finish_linear, y, x, None, *updates),
            {"torch": partial(segmented_low_rank.add_low_rank, y, x, table, segments)},
            bytes=(factors + rows * (features + 2 * sum(widths))) * x.element_size(),
            flops=2 * rows * rank * (features * len(widths) + sum(widths)),
        )


def attention_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Decode and prefill attention."""
    for context in sizes.contexts:
        for rows in (1, max(sizes.adapters)):
            slots = torch.arange(rows * context, device=draw.device).view(rows, context) + 1
            lengths = torch.full((rows,), context, dtype=torch.int64, device=draw.device)
            shape = f"{rows} decoding, context {context}"
            yield _attention_case(draw, sizes, shape, AttentionBatch(rows, slots, lengths), rows * context, 1)
    slots = torch.arange(sizes.prompt, device=draw.device) + 1
    nothing = torch.zeros(0, dtype=torch.int64, device=draw.device)
    batch = AttentionBatch(0, nothing.view(0, 1), nothing, (PrefillSegment(0, sizes.prompt, slots),))
    yield _attention_case(draw, sizes, f"prompt of {sizes.prompt}", batch, sizes.prompt, sizes.prompt // 2)


def _attention_case(
    draw: Draw, sizes: Sizes, shape: str, batch: AttentionBatch, positions: int, rows_of_position: int
) -> Case:
    from hotshoe.kernels.triton.paged_attention import paged_attention, plan_tiles

    query = draw.normal(batch.num_rows, sizes.heads, sizes.head_dim)
    kv = draw.normal(positions + 1, 2, sizes.kv_heads, sizes.head_dim)
    scale, dtype = sizes.head_dim**-0.5, query.dtype
    tiles = plan_tiles(batch, window=None, device=draw.device)
    sdpa = sdpa_attention.plan_padded(batch, window=None, device=draw.device, dtype=dtype)
    return Case(
        "paged_attention",
        shape,
        lambda: paged_attention(query, kv, tiles, scale=scale),
        {"torch, gather + sdpa": lambda: sdpa_attention.paged_attention(query, kv, sdpa, scale=scale)},
        bytes=(kv.numel() + 2 * query.numel()) * query.element_size(),
        flops=4 * positions * rows_of_position * sizes.heads * sizes.head_dim,
    )


def pointwise_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Norms, rotation and activation."""
    from hotshoe.kernels.triton.rms_norm import rms_norm
    from hotshoe.kernels.triton.rope_write_kv import rope_write_kv
    from hotshoe.kernels.triton.silu_mul import silu_mul

    kernels: dict[str, Callable[..., Any]] = {
        "rms_norm": rms_norm, "silu_mul": silu_mul, "rope_write_kv": rope_write_kv,
    }  # fmt: skip
    for rows in (1, 64, sizes.prompt):
        angles = draw.normal(rows, sizes.head_dim, dtype=torch.float32)
        weights = draw.normal(2, sizes.head_dim)
        kv = draw.normal(rows, 2, sizes.kv_heads, sizes.head_dim)
        x, gate_up = draw.normal(2, rows, sizes.hidden), draw.normal(rows, 2 * sizes.intermediate)
        given: dict[str, dict[str, Any]] = {
            "rms_norm": {"x": x[0], "residual": x[1], "weight": draw.normal(sizes.hidden), "eps": 1e-5},
            "silu_mul": {"gate_up": gate_up},
            "rope_write_kv": {
                "qkv": draw.normal(rows, sum(sizes.widths)), "cos": angles, "sin": angles, "kv": kv,
                "slots": torch.arange(rows, device=draw.device), "q_weight": weights[0], "k_weight": weights[1],
                "eps": 1e-6,
            },
        }  # fmt: skip
        moved = {
            "rms_norm": 4 * rows * sizes.hidden,
            "silu_mul": 3 * rows * sizes.intermediate,
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


def dequantize_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """A weight decoded into memory, which products of many rows begin with."""
    from hotshoe.kernels.triton.dequantize_nf4 import dequantize_nf4
    from hotshoe.kernels.triton.nf4_linear import pack

    out, features = 2 * sizes.intermediate, sizes.hidden
    weight = random_nf4(draw, out, features)
    ours = pack([weight], draw.device)
    yield Case(
        "dequantize_nf4",
        f"{out}×{features}",
        lambda: dequantize_nf4(ours, draw.dtype),
        {"bitsandbytes": lambda: TASKS["dequantize_nf4"].run_alternative({"weight": weight})},
        bytes=out * features * 33 // 64 + out * features * draw.dtype.itemsize,
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


def cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Every kernel at every shape; inputs of one case are free again when the next is asked for."""
    for kind in (
        nf4_cases, dequantize_cases, epilogue_cases, low_rank_cases, attention_cases, pointwise_cases, stats_cases
    ):  # fmt: skip
        yield from kind(draw, sizes)


def measure_limits(device: torch.device) -> Limits:
    """What this card reaches: the floors are made of it."""
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


def measure(case: Case, limits: Limits, time_ms: Callable[[Run], float] = median_ms) -> dict[str, str | float]:
    """A row of the table: milliseconds of the floor, of the kernel and of each alternative, as `time_ms` takes them.

    One that fails takes NaN, and standard error says why: the other figures are wanted all the same.
    """

    def time(name: str, run: Run) -> float:
        try:
            return time_ms(run)
        except Exception as error:
            print(f"{case.op}, {case.shape}: {name} fails: {error!r}", file=sys.stderr, flush=True)
            return math.nan

    row: dict[str, str | float] = {"op": case.op, "shape": case.shape, "floor": limits.floor_ms(case)}
    row["ours"] = time("ours", case.run)
    return row | {name: time(name, run) for name, run in case.alternatives.items()}


def line(row: dict[str, str | float]) -> str:
    """A row in words: the kernel's time, how near it is to the floor, and how many times as long the others take."""
    ours, floor = float(row["ours"]), float(row["floor"])
    others = [f"{name} {float(ms) / ours:.2f}×" for name, ms in list(row.items())[4:]]
    return f"{row['op']:16} {row['shape']:44} {ours:8.4f} ms, {floor / ours:5.0%} of the floor; {', '.join(others)}"


def write_csv(path: Path, rows: list[dict[str, str | float]]) -> None:
    """Writes the table as CSV."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
