"""The benchmark's cases of linears: NF4 weights, alone, decoded, and with adapters."""

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F

from hotshoe.kernels import bnb_linear, segmented_low_rank
from hotshoe.kernels.bench.case import Case, Sizes
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import TASKS, random_nf4
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm
from hotshoe.kernels.site_updates import plan_updates


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
