"""The tests of what uses Triton kernels, in Triton's interpreter."""

from pathlib import Path

import pytest
from interpreter_run import InterpreterRun

pytest.importorskip("triton")
SERVER = Path(__file__).parent
INTERPRETER_RUN = InterpreterRun(SERVER / "triton", SERVER / "engine" / "triton")


@pytest.mark.slow
@pytest.mark.timeout(900)  # the interpreter is slow where other work runs beside it
def test_decoder_graphs_sampler_and_engine_pass_their_tests_in_the_interpreter() -> None:
    assert INTERPRETER_RUN.passed() > 30
