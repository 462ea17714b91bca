"""The Triton kernels' tests, in Triton's interpreter."""

import math
from pathlib import Path

import pytest
import torch
from interpreter_run import InterpreterRun

from hotshoe.kernels.bench.__main__ import main
from hotshoe.kernels.bench.case import Case
from hotshoe.kernels.bench.limits import Limits
from hotshoe.kernels.bench.row import line, measure
from hotshoe.kernels.triton import KERNELS

pytest.importorskip("triton")
FOLDER = Path(__file__).with_name("triton")
INTERPRETER_RUN = InterpreterRun(FOLDER)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the interpreter is slow where other work runs beside it
def test_every_kernel_passes_its_tests_in_the_interpreter() -> None:
    assert INTERPRETER_RUN.passed() > 40


def test_every_kernel_has_tests() -> None:
    assert {path.stem.removeprefix("test_triton_") for path in FOLDER.glob("test_triton_*.py")} == set(KERNELS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_benchmark_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "No CUDA device" in capsys.readouterr().out


def test_what_fails_in_the_benchmark_costs_only_its_own_figure(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("no kernel image is available")

    case = Case("silu_mul", "3 rows", lambda: None, {"torch": fail, "other": lambda: None}, bytes=600)
    row = measure(case, Limits(100.0, 10.0), lambda run: run() or 2.0)
    assert (row["ours"], row["other"]) == (2.0, 2.0) and math.isnan(float(row["torch"]))
    assert "torch nan×, other 1.00×" in line(row)
    assert "silu_mul, 3 rows: torch fails: RuntimeError('no kernel image is available')" in capsys.readouterr().err
