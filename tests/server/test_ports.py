"""A port that cannot be had is told in one line: its flag, its address, and why."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from hotshoe.registry.registry import Registry
from hotshoe.server.config import Address, ServerConfig
from hotshoe.server.metrics import Metrics
from hotshoe.server.ports import bind_grpc, check_free, start_http, start_openai, start_registry_http
from hotshoe.server.services.health import Health
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.startup import StartupError


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield Address(*listener.getsockname())


def start(flag: str, address: Address, tmp_path: Path) -> None:
    """Starts what listens at a flag's address, and ends it."""
    config = ServerConfig(**{flag.removeprefix("--").replace("-", "_"): address}, insecure_bind=True)

    async def started() -> None:
        async with contextlib.AsyncExitStack() as cleanup:
            metrics = Metrics(legacy_names=False)
            if flag == "--listen":
                bind_grpc(config, RpcInterceptor(metrics))
            elif flag == "--http":
                start_http(config, Health(), metrics, cleanup)
            elif flag == "--openai":
                await start_openai(config, web.Application, cleanup)
            else:
                registry = Registry(tmp_path / "registry")
                cleanup.callback(registry.close)
                start_registry_http(config, registry, cleanup)

    asyncio.run(started())


FLAGS = ("--listen", "--http", "--registry-http", "--openai")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_port_in_use_is_told_by_its_flag(flag: str, taken: Address, tmp_path: Path) -> None:
    with pytest.raises(StartupError) as told:
        start(flag, taken, tmp_path)
    assert str(told.value).startswith(f"{flag}: cannot listen on {taken}: ")
    assert "ddress already in use" in str(told.value)
    start(flag, taken.with_port(0), tmp_path)


@pytest.mark.parametrize("flag", FLAGS)
def test_an_address_of_another_machine_is_told_by_its_flag(flag: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"^{flag}: cannot listen on 192.0.2.1:0: ") as told:
        start(flag, Address("192.0.2.1", 0), tmp_path)
    assert "\n" not in str(told.value)


def test_a_host_that_is_none_is_told_by_its_flag() -> None:
    with pytest.raises(StartupError, match=r"^--openai: cannot listen on no\.host\.invalid:0: "):
        check_free("--openai", Address("no.host.invalid", 0))


def test_files_that_cannot_be_read_are_told_by_their_flag(tmp_path: Path) -> None:
    nowhere, address = tmp_path / "nowhere", Address("127.0.0.1", 0)
    certificate = ServerConfig(registry_http=address, registry_http_tls_cert=nowhere, registry_http_tls_key=nowhere)
    users = ServerConfig(registry_http=address, registry_http_users=nowhere)
    for config, flag in ((certificate, "--registry-http-tls-cert"), (users, "--registry-http-users")):
        with contextlib.closing(Registry(tmp_path / "registry")) as registry:
            with pytest.raises(StartupError, match=f"^{flag}: "):
                start_registry_http(config, registry, contextlib.AsyncExitStack())
