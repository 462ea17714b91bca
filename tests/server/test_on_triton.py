"""Runs the tests of what uses Triton kernels in the interpreter, which has to be chosen before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SERVER = Path(__file__).parent
FOLDERS = (SERVER / "triton", SERVER / "engine" / "triton")


@pytest.mark.slow
@pytest.mark.timeout(900)  # the interpreter is slow where other work runs beside it
def test_decoder_graphs_sampler_and_engine_pass_their_tests_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FOLDERS)],
        cwd=SERVER.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", summary)[0]) > 30, summary
    assert "skipped" not in summary, summary
