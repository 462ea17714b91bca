"""The doctor's picture tells strengths, or counts where there are none, and what was not looked at, by its colours."""

from pathlib import Path

import pytest

from hotshoe.clients.heat_map import draw_heat_map
from hotshoe.protos.v1 import registry_pb2

numpy = pytest.importorskip("numpy")
image = pytest.importorskip("matplotlib.image")
GREY, WHITE, BLACK = (211, 211, 211), (255, 255, 255), (0, 0, 0)


def linear(layer: int, target: str, **figures: object) -> registry_pb2.LinearDiagnosis:
    return registry_pb2.LinearDiagnosis(layer=layer, target=target, is_finite=True, **figures)  # type: ignore[arg-type]


def colours(path: Path, *linears: registry_pb2.LinearDiagnosis) -> set[tuple[int, ...]]:
    """Of large areas, without those of the paper and the ink."""
    diagnosis = registry_pb2.Diagnosis(grade=registry_pb2.GRADE_WARN, headline="a few words " * 20, linears=linears)
    draw_heat_map(diagnosis, path)
    pixels = (255 * image.imread(path)[..., :3]).round().astype(int).reshape(-1, 3)
    found, counts = numpy.unique(pixels, axis=0, return_counts=True)
    large = {tuple(colour.tolist()) for colour, count in zip(found, counts, strict=True) if count > 2000}
    return large - {WHITE, BLACK}


def test_strengths_have_colours_and_what_was_not_examined_is_grey(tmp_path: Path) -> None:
    strong, weak = linear(0, "v_proj", strength=3.0, predicted=2), linear(1, "q_proj", strength=0.1, predicted=0)
    unknown, broken = linear(0, "q_proj", note="only --exact"), linear(1, "v_proj")
    broken.is_finite = False
    found = colours(tmp_path / "all.png", strong, weak, unknown, broken)
    assert GREY in found and len(found) == 3
    assert GREY not in colours(tmp_path / "known.png", strong, weak)


def test_counts_have_colours_where_nothing_has_a_strength(tmp_path: Path) -> None:
    counted = [linear(0, "k_proj", exact=4), linear(1, "k_proj", exact=0), linear(0, "down_proj", exact=1)]
    assert len(colours(tmp_path / "counts.png", *counted)) == 3


def test_an_adapter_that_changes_no_linear_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="changes no linear"):
        draw_heat_map(registry_pb2.Diagnosis(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
