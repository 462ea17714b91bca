"""A diagnosis as a heat map by layer and module, as PNG. Needs the extra `bench` (matplotlib)."""

import importlib.util
from pathlib import Path
from typing import Any

NEEDS = "no heat map: matplotlib is not installed; pip install 'hotshoe[bench]'"
DOTS_PER_INCH = 150
_STRONGEST = 2.0  # thresholds, where the colours end


def require_matplotlib() -> None:
    """Raises ValueError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(NEEDS)


def draw_heat_map(diagnosis: Any, path: Path) -> None:
    """Draws each linear's strength as a colour, and its intruder dimensions, where it has any, as a number.

    Args:
        diagnosis: a `Diagnosis` message.

    Raises:
        ValueError: matplotlib is not installed, or the adapter changes no linear.
    """
    require_matplotlib()
    if not diagnosis.linears:
        raise ValueError("no heat map: the adapter changes no linear")
    import matplotlib

    matplotlib.use("Agg")  # no display is asked for
    from matplotlib import pyplot

    targets = list(dict.fromkeys(one.target for one in diagnosis.linears))
    layers = range(max(one.layer for one in diagnosis.linears) + 1)
    strengths = [[float("nan")] * len(layers) for _ in targets]
    figure, axes = pyplot.subplots(figsize=(2.5 + 0.3 * len(layers), 2 + 0.4 * len(targets)))
    for one in diagnosis.linears:
        row = targets.index(one.target)
        if one.HasField("strength"):
            strengths[row][one.layer] = one.strength
        intruders = one.exact if one.HasField("exact") else one.predicted
        mark = "!" if not one.is_finite else "0" if one.is_dead else str(intruders or "")
        axes.text(one.layer, row, mark, ha="center", va="center", fontsize=7)
    image = axes.imshow(strengths, aspect="auto", cmap="YlOrRd", vmin=0, vmax=_STRONGEST)
    figure.colorbar(image, label="largest singular value / threshold")
    axes.set_yticks(range(len(targets)), targets)
    axes.set(title=diagnosis.headline, xlabel="layer; numbers are intruder dimensions, 0 without effect")
    axes.title.set_fontsize(8)
    figure.tight_layout()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)
