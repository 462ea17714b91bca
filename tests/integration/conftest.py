"""Servers in other processes, always ended."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess, command, launch

StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 512 positions and one token a byte."""
    from model_directories import write_tiny_model

    directory = tmp_path_factory.mktemp("base") / "tiny"
    write_tiny_model(directory)
    return directory


@pytest.fixture
def start_server(tiny_base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers of the tiny base, each on a registry of this test, and ends them."""
    servers: list[ServerProcess] = []
    cache = tmp_path_factory.getbasetemp() / "bases"

    def start(*arguments: str) -> ServerProcess:
        server = launch(tmp_path, command(tiny_base, tmp_path / "registry", "--base-cache", str(cache), *arguments))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that only talk to it; each takes names of its own."""
    directory = tmp_path_factory.mktemp("server")
    cache = tmp_path_factory.getbasetemp() / "bases"
    server = launch(directory, command(tiny_base, directory / "registry", "--base-cache", str(cache), "--reflection"))
    yield server
    server.end()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a server and the test beside it keep the bases that they quantize."""
    return tmp_path_factory.mktemp("bases")
