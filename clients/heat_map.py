"""A diagnosis as a heat map by layer and module, as PNG. Needs the extra `bench` (matplotlib)."""

import importlib.util
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Diagnosis, LinearDiagnosis

NEEDS = "no heat map: matplotlib is not installed; pip install 'hotshoe[bench]'"
DOTS_PER_INCH = 150
_STRONGEST = 2.0  # thresholds, where the colours end
_DARK = 0.6  # of the colours: beyond, writing is white
_NOTHING, _UNKNOWN = "white", "lightgrey"  # the adapter leaves it alone; it was not examined
_LEGEND = "layer · number: intruder dimensions · 0: no effect · !: not finite · grey: not examined"
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as a layer has them


def require_matplotlib() -> None:
    """Raises ValueError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(NEEDS)


def draw_heat_map(diagnosis: "Diagnosis", path: Path) -> None:
    """Draws each linear's strength as a colour, and its intruder dimensions, where it has any, as a number.

    Of an adapter whose linears have no strength, because none is of low rank, the numbers are the colours too.

    Raises:
        ValueError: matplotlib is not installed, or the adapter changes no linear.
    """
    require_matplotlib()
    if not diagnosis.linears:
        raise ValueError("no heat map: the adapter changes no linear")
    import matplotlib

    matplotlib.use("Agg")  # no display is asked for
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    found = {one.target for one in diagnosis.linears}
    targets = [name for name in _ORDER if name in found] + sorted(found.difference(_ORDER))
    layers = max(one.layer for one in diagnosis.linears) + 1
    by_strength = any(one.HasField("strength") for one in diagnosis.linears)
    most = _STRONGEST if by_strength else max(1, *(one.exact for one in diagnosis.linears))
    size = (3 + 0.28 * layers, 1.6 + 0.32 * len(targets))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    colours = matplotlib.colormaps["YlOrRd"].with_extremes(bad=_NOTHING)
    values = [[float("nan")] * layers for _ in targets]
    for one in diagnosis.linears:
        row = targets.index(one.target)
        value = _value(one, by_strength)
        if value is None:
            axes.add_patch(Rectangle((one.layer - 0.5, row - 0.5), 1, 1, color=_UNKNOWN))
        else:
            values[row][one.layer] = value
        is_dark = value is not None and value > _DARK * most
        axes.text(
            one.layer, row, _mark(one), ha="center", va="center", fontsize=7, color="white" if is_dark else "black"
        )
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=0, vmax=most)
    bar = figure.colorbar(image, ax=axes, pad=0.02, extend="max" if by_strength else "neither")
    bar.set_ticks([0, 1, 2] if by_strength else [0, most])
    bar.set_label("of the threshold" if by_strength else "intruders", fontsize=8)
    axes.set_yticks(range(len(targets)), targets)
    axes.set_xticks(range(0, layers, 1 if layers <= 10 else 5))
    axes.set_xlabel(_LEGEND, fontsize=8)
    grade = diagnosis.DESCRIPTOR.fields_by_name["grade"].enum_type.values_by_number[diagnosis.grade].name
    title = f"{grade.removeprefix('GRADE_')}: {diagnosis.headline}"
    axes.set_title("\n".join(textwrap.wrap(title, int(15 * size[0]))), fontsize=8, loc="left")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)


def _value(one: "LinearDiagnosis", by_strength: bool) -> float | None:
    """What a linear's colour tells; None if nothing is known."""
    if by_strength:
        return one.strength if one.HasField("strength") else 0.0 if one.HasField("predicted") else None
    return one.exact if one.HasField("exact") else None


def _mark(one: "LinearDiagnosis") -> str:
    if not one.is_finite:
        return "!"
    return "0" if one.is_dead else str((one.exact if one.HasField("exact") else one.predicted) or "")
