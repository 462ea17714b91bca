"""First tokens by where an adapter lies: that it lies there, and that the command tells what was measured."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hotshoe.clients import AsyncClient, Client
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.clients.local_server import LocalServer
from hotshoe.clients.scenarios.asker import Asker
from hotshoe.clients.swaps import measure_swaps

NAMES = ("amber", "cedar")


@pytest.fixture
def digests(server: LocalServer, adapters: dict[str, Path]) -> dict[str, str]:
    """Of two adapters, by names that are not those by which they were loaded."""
    with Client(server.grpc) as client:
        for name in NAMES:
            client.publish_directory(adapters[name], f"known-as/{name}")
            client.load(f"known-as/{name}")
        published = [client.publish_directory(adapters[name], f"swapped/{name}").adapter for name in NAMES]
    return {adapter.name: adapter.digest for adapter in published}


def test_each_try_finds_the_adapter_where_it_is_said_to_lie(
    server: LocalServer, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lay: list[tuple[str, str]] = []
    send = Asker.send

    async def look_and_send(asker: Asker, ask: Any) -> Any:
        async with AsyncClient(server.grpc) as client:
            tiers = {one.digest: one.tier for one in await client.list_resident()}
        lay.append(tuple({3: "device", 2: "host", None: "disk"}[tiers.get(digest)] for digest in digests.values()))  # type: ignore[arg-type]
        return await send(asker, ask)

    monkeypatch.setattr(Asker, "send", look_and_send)
    found = asyncio.run(measure_swaps(server.grpc, [*digests], tries=2))
    assert found.errors == {} and {place: len(tries) for place, tries in found.seconds.items()} == {
        "device": 2,
        "host": 2,
        "disk": 2,
    }
    assert [first for first, _ in lay[:3]] == [second for _, second in lay[3:]] == ["device", "host", "disk"]
    assert set(found.medians) == set(found.seconds) and min(found.medians.values()) > 0


def test_the_command_tells_each_place_and_fails_where_a_request_does(
    server: LocalServer, digests: dict[str, str]
) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(command_line(), ["bench", "swap", "--server", server.grpc, *arguments])

    told = json.loads(run("--adapters", ",".join(digests), "--tries", "1", "--json").stdout)
    assert told["errors"] == {} and [len(tries) for tries in told["seconds"].values()] == [1, 1, 1]
    table = run("--adapters", next(iter(digests)), "--tries", "1").stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["device", "host", "disk"]
    assert run("--adapters", " , ").exit_code == 2
    assert run("--adapters", "swapped/nobody").exit_code == 4
