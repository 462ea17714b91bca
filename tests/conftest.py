"""What all tests run under."""

import os

import pytest

# Tensors are tiny here: a second thread of torch's only waits for its turn, which on a busy machine takes long. It is
# read when torch is imported. Tests of kernels and of the decoder have the machine's threads, by conftest.py there.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MANY_TESTS = 1000


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins what runs long in a process of its own, where there are other tests to run meanwhile."""
    if len(session.items) < MANY_TESTS or session.config.option.collectonly:
        return
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    for run in filter(None, (getattr(module, "INTERPRETER_RUN", None) for module in modules)):
        run.begin()
