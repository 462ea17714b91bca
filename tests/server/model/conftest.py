"""As many threads as the machine has cores."""

import pytest
from machine_threads import on_all_cores

all_cores = pytest.fixture(on_all_cores, autouse=True)
