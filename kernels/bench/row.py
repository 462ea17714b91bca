"""A row of the benchmark's table: a case, timed."""

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

from hotshoe.kernels.bench.case import Case, Run
from hotshoe.kernels.bench.limits import Limits, median_ms


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
