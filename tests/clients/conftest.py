"""What the clients' tests talk to: a scripted network, and a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer

from hotshoe.clients.local_server import LocalServer


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of five adapters of four kinds for the tiny base, and of the base itself under ""."""
    from adapter_files import poly_bytes
    from model_directories import write_tiny_model
    from peft_adapters import write_ia3, write_lora, write_prefix
    from tiny_models import base_shape

    root = tmp_path_factory.mktemp("adapters")
    base = write_tiny_model(root / "base")
    skilled = root / "skilled"
    skilled.mkdir(parents=True)
    for name, data in poly_bytes(base_shape(base), seed=5).items():
        (skilled / name).write_bytes(data)
    return {
        "": root / "base",
        "amber": write_lora(root / "demo" / "amber", base, rank=4, seed=1),
        "birch": write_lora(root / "demo" / "birch", base, rank=8, seed=2, targets=("q_proj", "down_proj")),
        "cedar": write_ia3(root / "demo" / "cedar", base, seed=3),
        "delta": write_prefix(root / "demo" / "delta", base, seed=4),
        "skilled": skilled,
    }


@pytest.fixture(scope="session")
def server(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server on the tiny base, in its own process, with the exact backend. Tests publish under names of their own."""
    root = tmp_path_factory.mktemp("server")
    free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    arguments = ["--base", str(adapters[""]), "--registry", str(root / "registry"), "--backend", "reference", *free]
    with LocalServer([*arguments, "--device", "cpu", "--threads", "1"], root / "server.log") as running:
        yield running
