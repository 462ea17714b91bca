"""Spectra of a base are computed once, kept on disk, and computed again when what is kept is damaged."""

from pathlib import Path

import pytest
import torch
from tiny_models import ModelWeights, tiny_llama

from hotshoe.registry.formats.base import LinearId
from hotshoe.server.model.spectra import Spectra

LINEAR = LinearId(1, "k_proj")


class CountingWeights(ModelWeights):
    """Counts how often a weight is read."""

    reads = 0

    def weight(self, linear: LinearId) -> torch.Tensor:
        self.reads += 1
        return super().weight(linear)


@pytest.fixture
def base() -> CountingWeights:
    return CountingWeights(tiny_llama())


def test_a_spectrum_is_computed_once_a_base(base: CountingWeights, tmp_path: Path) -> None:
    spectra = Spectra(tmp_path, base)
    values = torch.linalg.svdvals(base.weight(LINEAR).double())
    found = spectra.of(LINEAR)
    assert found.largest == pytest.approx(float(values[0]), rel=1e-6)
    assert found.norm == pytest.approx(float(base.weight(LINEAR).norm()), rel=1e-6)
    assert (found.out_features, found.in_features) == (32, 64)
    reads = base.reads
    assert spectra.of(LINEAR) is found
    again = Spectra(tmp_path, base).of(LINEAR)
    assert base.reads == reads
    assert again.threshold == pytest.approx(found.threshold, rel=1e-5)


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_file_is_written_again(base: CountingWeights, tmp_path: Path, damage: bytes | None) -> None:
    found = Spectra(tmp_path, base).of(LINEAR)
    [file] = tmp_path.glob("*/*.npy")
    sound = file.read_bytes()
    file.write_bytes(sound[:-4] + b"\xff\xff\xff\x7f" if damage is None else damage)  # None: a NaN
    assert Spectra(tmp_path, base).of(LINEAR) == found
    assert file.read_bytes() == sound and len(list(tmp_path.glob("*/*"))) == 1


def test_all_linears_are_reached_one_by_one(base: CountingWeights, tmp_path: Path) -> None:
    spectra = Spectra(tmp_path, base)
    count = 0
    while (linear := spectra.next_unknown()) is not None:
        spectra.of(linear)
        count += 1
    assert count == 14 == len(list(tmp_path.glob("*/*.npy")))
