"""Runs the Triton kernels' tests in Triton's interpreter, which has to be chosen before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hotshoe.kernels import bench
from hotshoe.kernels.triton import KERNELS

pytest.importorskip("triton")
FOLDER = Path(__file__).with_name("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)  # the interpreter is slow where other work runs beside it
def test_every_kernel_passes_its_tests_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", summary)[0]) > 40, summary
    assert "skipped" not in summary, summary


def test_every_kernel_has_tests() -> None:
    assert {path.stem.removeprefix("test_triton_") for path in FOLDER.glob("test_triton_*.py")} == set(KERNELS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_benchmark_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    assert "No CUDA device" in capsys.readouterr().out
