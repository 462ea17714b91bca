"""What all tests run under."""

import os
import random
import zlib

import hypothesis
import numpy
import pytest

# Tensors are tiny here: a second thread of torch's only waits for its turn, which on a busy machine takes long. It is
# read when torch is imported. Tests of kernels and of the decoder have the machine's threads, by conftest.py there.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MANY_TESTS = 1000

# What a run draws at random, it draws again in the next: a run tells of the code, never of its luck. Other numbers are
# drawn with HOTSHOE_TEST_SEED, and other examples with pytest --hypothesis-profile=explore. Nor does it tell of the
# machine's speed: an example has no deadline.
SEED = os.environ.get("HOTSHOE_TEST_SEED", "")
ANY_SPEED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("explore", ANY_SPEED, print_blob=True)
hypothesis.settings.register_profile("same", ANY_SPEED, derandomize=True, database=None)
hypothesis.settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seeds every generator by the test's name, before its fixtures draw: no test changes another's numbers."""
    import torch  # not above: it reads OMP_NUM_THREADS when imported

    seed = zlib.crc32(f"{item.nodeid}{SEED}".encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins what runs long in a process of its own, where there are other tests to run meanwhile."""
    if len(session.items) < MANY_TESTS or session.config.option.collectonly:
        return
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    for run in filter(None, (getattr(module, "INTERPRETER_RUN", None) for module in modules)):
        run.begin()
