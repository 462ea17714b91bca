"""Singular values of the base's weights, for the doctor: computed once a base, and kept beside its cache."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.recipes.spectrum import Spectrum, weight_spectrum
from hotshoe.server.adapters.one_core import run_when_idle, use_one_core

_FORMAT = "spectra-v1"  # changes when the same base would have others


class Spectra:
    """Spectra of one base, read, or else computed, when they are first asked for. Any thread."""

    def __init__(self, root: Path, base: BaseWeights) -> None:
        """`root` is the directory of quantized bases."""
        self._directory = root / f"{base.shape.digest.removeprefix('sha256:')}-{_FORMAT}"
        self._base = base
        self._known: dict[LinearId, Spectrum] = {}
        # A decomposition is one operation, which no pause divides: it may be in nobody's way.
        self._idle = ThreadPoolExecutor(1, "spectra", initializer=_work_when_idle)

    def of(self, linear: LinearId) -> Spectrum:
        """Of one linear's weight; the first time it takes 20 ms of an idle core where its shorter side is 576."""
        spectrum = self._known.get(linear)
        if spectrum is None:
            shape = self._base.shape.linears[linear]
            values = self._read(linear)
            if values is None:
                values = self._idle.submit(weight_spectrum, self._base.weight(linear)).result()
                self._write(linear, values)
            spectrum = Spectrum.of(values, out_features=shape.out_features, in_features=shape.in_features)
            self._known[linear] = spectrum
        return spectrum

    def next_unknown(self) -> LinearId | None:
        """A linear that nobody has asked for yet, or None."""
        return next((linear for linear in self._base.shape.linears if linear not in self._known), None)

    def _read(self, linear: LinearId) -> torch.Tensor | None:
        """None for a file that is missing or damaged: it is written again."""
        shape = self._base.shape.linears[linear]
        try:
            values = np.load(self._directory / f"{linear}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if values.dtype != np.float32 or values.shape != (min(shape.out_features, shape.in_features),):
            return None
        return torch.from_numpy(values) if np.isfinite(values).all() else None

    def _write(self, linear: LinearId, values: torch.Tensor) -> None:
        with suppress(OSError):  # a full disk costs the next start some time, and no more
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".tmp", delete=False) as file:
                np.save(file, values.float().numpy(), allow_pickle=False)
            os.replace(file.name, self._directory / f"{linear}.npy")


def _work_when_idle() -> None:
    use_one_core()
    run_when_idle()
