"""Charts of a report, as PNG. Needs the extra `bench` (matplotlib)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hotshoe.clients.compare.report import CaseFigures, CompareReport
from hotshoe.clients.compare.rivals import HOTSHOE, RIVALS

CHARTS_NEED = "no charts: matplotlib is not installed; pip install 'hotshoe[bench]'"
SIZE_INCHES = (8, 5)
DOTS_PER_INCH = 150
OURS = "#c8102e"
THEIRS = ("#1f4e79", "#6b8e23", "#b8860b", "#5f5f5f", "#7b4b94", "#2a9d8f")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_charts(report: CompareReport, directory: Path) -> list[Path]:
    """Draws what the report has figures for; returns the files."""
    import matplotlib

    matplotlib.use("Agg")  # no display is asked for
    paths = []
    base = [figures for figures in report.cases if figures.adapters == 0]
    mixed = [figures for figures in report.cases if figures.adapters == report.plan.adapters]
    if base or mixed:
        paths.append(_draw_concurrency(base, mixed, report, directory / "concurrency.png"))
    most = max(report.plan.concurrency)
    if fixed := [figures for figures in report.cases if figures.concurrency == most]:
        paths.append(_draw_adapters(fixed, most, directory / "adapters.png"))
    if report.loading:
        paths.append(_draw_loading(report, directory / "loading.png"))
    return paths


def _draw_concurrency(
    base: Sequence[CaseFigures], mixed: Sequence[CaseFigures], report: CompareReport, path: Path
) -> Path:
    from matplotlib import pyplot

    figure, sides = pyplot.subplots(1, 2, figsize=(11, 5), sharey=True)
    titles = ("base only", f"{report.plan.adapters} adapters")
    for axes, cases, title in zip(sides, (base, mixed), titles, strict=True):
        _lines(axes, cases, "concurrency")
        axes.set(title=title, xlabel="streams at once", xticks=sorted({one.concurrency for one in cases}))
    sides[0].set_ylabel("tokens/s, prompts included")
    sides[0].legend()
    return _saved(figure, path)


def _draw_adapters(cases: Sequence[CaseFigures], streams: int, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SIZE_INCHES)
    _lines(axes, cases, "adapters")
    axes.set(title=f"{streams} streams", xlabel="distinct adapters; 0: base only", ylabel="tokens/s, prompts included")
    axes.set_xticks(sorted({one.adapters for one in cases}))
    axes.legend()
    return _saved(figure, path)


def _draw_loading(report: CompareReport, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SIZE_INCHES)
    names = [one.rival for one in report.loading]
    bars = {
        "p99, quiet": [one.quiet_p99 for one in report.loading],
        f"p99, while {report.plan.loads} adapters load": [one.loading_p99 for one in report.loading],
        "longest, while they load": [one.loading_max for one in report.loading],
    }
    for number, (label, seconds) in enumerate(bars.items()):
        places = [place + (number - 1) * 0.27 for place in range(len(names))]
        drawn = axes.bar(places, [value * 1000 for value in seconds], width=0.25, label=label)
        axes.bar_label(drawn, fmt="%.0f")
    axes.set_xticks(range(len(names)), names)
    axes.set(title="what running streams feel of a load", ylabel="ms between tokens", yscale="log")
    axes.legend()
    return _saved(figure, path)


def _lines(axes: Any, cases: Sequence[CaseFigures], across: str) -> None:
    """One line a rival, its slowest and fastest round as a band."""
    for name in [rival.name for rival in RIVALS]:
        own = sorted((one for one in cases if one.rival == name), key=lambda one: getattr(one, across))
        if not own:
            continue
        places = [getattr(one, across) for one in own]
        width = 2.5 if name == HOTSHOE else 1.3
        axes.plot(
            places, [one.tokens_per_second for one in own], "o-", label=name, color=_colour(name), linewidth=width
        )
        low, high = [one.slowest_round for one in own], [one.fastest_round for one in own]
        axes.fill_between(places, low, high, color=_colour(name), alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _colour(name: str) -> str:
    others = [rival.name for rival in RIVALS if rival.name != HOTSHOE]
    return OURS if name == HOTSHOE else THEIRS[others.index(name) % len(THEIRS)]


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)
    return path
