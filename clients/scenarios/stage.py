"""A server for one scenario, what is published on it, and a load generator that talks to it."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshoe.clients.aio import AsyncClient
from hotshoe.clients.bench import ORDINARY_TEXT, server_facts
from hotshoe.clients.channels import open_aio_channel
from hotshoe.clients.local_server import LocalServer
from hotshoe.clients.scenarios.asker import Ask, Asker
from hotshoe.clients.scenarios.random_adapters import EVERY_LINEAR, SMOLLM2_135M, DecoderShape, write_random_lora
from hotshoe.clients.scenarios.random_base import write_random_base

_FREE_PORTS = ("--listen", "127.0.0.1:0", "--http", "", "--log-level", "warning")
_UPLOADS = 4  # at the same time
TENANT_KEY = "x-tenant"


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Where and how a scenario's server runs.

    Attributes:
        directory: keeps the registry and the quantized base for the next run; None: a temporary one.
        server_arguments: of `hotshoe serve`, behind the scenario's own.
        shape: of the base model.
        scale: how much of the traffic is sent, 1 for all of it: a smaller one is for a quick look.
    """

    directory: Path | None = None
    server_arguments: tuple[str, ...] = ()
    shape: DecoderShape = SMOLLM2_135M
    scale: float = 1.0
    seed: int = 0
    tell: Callable[[str], None] = lambda line: None


class Stage:
    """One running server with its client, channel and load generator."""

    def __init__(
        self,
        settings: StageSettings,
        server: LocalServer,
        client: AsyncClient,
        asker: Asker,
        info: dict[str, Any],
        directory: Path,
    ) -> None:
        self.settings = settings
        self.registry = directory / "registry"  # the server's
        self.resident_bytes = server.resident_bytes
        self.server = server.grpc
        self.server_pid = server.pid
        self.client = client
        self.asker = asker
        self.info = info  # what the server says about itself

    def tell(self, line: str) -> None:
        """Says how far the scenario is."""
        self.settings.tell(line)

    def scaled(self, count: int, *, at_least: int = 1) -> int:
        """How much of a full run's `count` to send."""
        return max(at_least, round(count * self.settings.scale))

    async def publish(
        self, count: int, *, rank: int = 8, targets: Sequence[str] = EVERY_LINEAR, prefix: str = "random"
    ) -> list[str]:
        """Publishes that many random adapters and returns their names; those that are there already cost nothing."""
        names = [f"{prefix}-r{rank}x{len(targets)}/{index}" for index in range(count)]
        known = {adapter.name async for adapter in self.client.list_adapters(name_contains=f"{prefix}-r{rank}x")}
        missing = iter([(seed, name) for seed, name in enumerate(names) if name not in known])

        async def publish_some(scratch: Path) -> None:
            for seed, name in missing:
                directory = scratch / name.replace("/", "-")
                await asyncio.to_thread(
                    write_random_lora, directory, rank=rank, seed=seed, targets=targets, shape=self.settings.shape
                )
                await self.client.publish_directory(directory, name)
                for path in directory.iterdir():
                    path.unlink()

        with tempfile.TemporaryDirectory(prefix="hotshoe-scenario-") as scratch:
            await asyncio.gather(*(publish_some(Path(scratch)) for _ in range(_UPLOADS)))
        return names

    async def warm_up(self, asks: Sequence[Ask]) -> None:
        """Sends requests that do not count: compilers, connections and caches get ready."""
        await self.asker.send_all(asks, at_a_time=len(asks))


@contextlib.asynccontextmanager
async def open_stage(
    settings: StageSettings, arguments: Sequence[str], *, random_base: bool = False
) -> AsyncIterator[Stage]:
    """Starts a server with these arguments; leaving the block ends it.

    `random_base`: of a base of random weights, which has the shape of the settings and is made first.
    """
    with contextlib.ExitStack() as cleanup:
        directory = settings.directory
        if directory is None:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="hotshoe-scenario-")))
        directory.mkdir(parents=True, exist_ok=True)
        if random_base:
            settings.tell("a base of random weights")
            base = await asyncio.to_thread(write_random_base, directory / "random-base", settings.shape)
            arguments = ("--base", str(base), *arguments)
        own = ("--registry", str(directory / "registry"), *_FREE_PORTS, *arguments, *settings.server_arguments)
        server = cleanup.enter_context(LocalServer(own, directory / "server.log"))
        async with AsyncClient(server.grpc) as client, open_aio_channel(server.grpc) as channel:
            info = await client.model_info()
            words = sorted(set((await client.tokenize(ORDINARY_TEXT)).token_ids))
            asker = Asker(channel, words, seed=settings.seed, tenant_key=TENANT_KEY)
            described = server_facts(info)
            described["arguments"] = " ".join((*arguments, *settings.server_arguments))
            yield Stage(settings, server, client, asker, described, directory)
