"""These run where Triton kernels can: in the interpreter (`test_on_triton.py` starts that process), or on a GPU."""

import os

import pytest
import torch
from interpreted_products import round_products_once

from hotshoe.server.model.backends import triton_backend
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]
if INTERPRETED:
    round_products_once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.samefile(os.path.dirname(__file__)) and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def decoder(base, device: torch.device) -> Decoder:  # type: ignore[no-untyped-def]
    checkpoint = DirectoryCheckpoint(base.directory)
    return read_decoder(checkpoint, spec_from_config(checkpoint.config), triton_backend(device))
