"""Asks for low-rank factors while the base's product is computed, which leaves memory idle; its rows need them next."""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotshoe.kernels.cpu.decode_job import NUM_SITES
from hotshoe.kernels.cpu.jit import compiled, i64
from hotshoe.kernels.cpu.vectors import I32, I64, element_of, prefetch

LINE = 64  # bytes


@intrinsic
def _ask(typing_context: Any, table: Any, lines: Any, first: Any, last: Any) -> Any:
    """Asks for lines[first … last−1], int32, of a table."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, lines, first, last = arguments
        with cgutils.for_range_slice(builder, first, last, I64(1)) as (index, _):
            line = builder.zext(builder.load(element_of(builder, lines, index, 4, I32)), I64)
            prefetch(builder, builder.add(table, builder.mul(line, I64(LINE))), level=2)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@compiled
def lines_to_fetch(j: Any, layer: int, site: int, thread: int) -> int:
    """How many lines of factors a thread needs for a site; 0 if it is better not to ask for any."""
    if j.fetches == 0 or i64(j.site_terms + 8 * (layer * NUM_SITES + site), 1)[0] == 0:
        return 0
    fetches = i64(j.fetches + 32 * (thread * NUM_SITES + site), 4)
    return fetches[1] + fetches[3]


@compiled
def fetch(j: Any, layer: int, site: int, thread: int, first: int, last: int) -> None:
    """Asks for lines first … last−1 of those: of A, which is read first, then of B."""
    lines_a, num_a, lines_b, num_b = i64(j.fetches + 32 * (thread * NUM_SITES + site), 4)
    a, b = i64(j.tables + 16 * (layer * NUM_SITES + site), 2)
    _ask(a, lines_a, min(first, num_a), min(last, num_a))
    _ask(b, lines_b, min(max(first - num_a, 0), num_b), min(max(last - num_a, 0), num_b))
