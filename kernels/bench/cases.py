"""All cases of the benchmark."""

from collections.abc import Iterator

from hotshoe.kernels.bench.attention import attention_cases
from hotshoe.kernels.bench.case import Case, Sizes
from hotshoe.kernels.bench.linears import dequantize_cases, epilogue_cases, low_rank_cases, nf4_cases
from hotshoe.kernels.bench.pointwise import pointwise_cases, stats_cases
from hotshoe.kernels.kernel_task import Draw


def cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Every kernel at every shape; inputs of one case are free again when the next is asked for."""
    for kind in (
        nf4_cases, dequantize_cases, epilogue_cases, low_rank_cases, attention_cases, pointwise_cases, stats_cases
    ):  # fmt: skip
        yield from kind(draw, sizes)
