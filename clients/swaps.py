"""What the place where an adapter lies adds to the time to the first token: on the device, in host memory, on disk."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hotshoe.clients.aio import AsyncClient
from hotshoe.clients.bench import ORDINARY_TEXT
from hotshoe.clients.channels import open_aio_channel
from hotshoe.clients.scenarios.asker import Asker, count_errors

PROMPT_TOKENS = 32
_AGAIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class SwapTimes:
    """Seconds from request to first token, of each try, by where the adapter lay; and failed requests by class."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"device": [], "host": [], "disk": []})
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def medians(self) -> dict[str, float]:
        """Of the places where a try succeeded."""
        return {place: median(tries) for place, tries in self.seconds.items() if tries}


async def measure_swaps(server: str, adapters: Sequence[str], *, tries: int, seed: int = 0) -> SwapTimes:
    """Asks a server for one token at a time, with each adapter in turn; nothing else should run there."""
    async with AsyncClient(server) as client, open_aio_channel(server) as channel:
        words = sorted(set((await client.tokenize(ORDINARY_TEXT)).token_ids))
        return await ask_swaps(client, Asker(channel, words, seed=seed), adapters, tries=tries)


async def unload_wholly(client: AsyncClient, name: str) -> None:
    """Unloads an adapter and waits until it is gone: an answer may be here before the engine has let its adapter go."""
    while (await client.unload(name)).in_use:
        await asyncio.sleep(_AGAIN_SECONDS)


async def ask_swaps(client: AsyncClient, asker: Asker, adapters: Sequence[str], *, tries: int) -> SwapTimes:
    """As `measure_swaps`, by a client and an asker that are there."""

    async def on_device(name: str) -> None:
        await client.load(name)

    async def on_disk(name: str) -> None:
        await unload_wholly(client, name)

    async def on_host(name: str) -> None:
        await unload_wholly(client, name)
        await client.load(name, tier="host")

    prepare: dict[str, Callable[[str], Awaitable[Any]]] = {"device": on_device, "host": on_host, "disk": on_disk}
    found = SwapTimes()
    for index in range(tries):
        for place, bring in prepare.items():
            name = adapters[index % len(adapters)]
            await bring(name)
            answer = await asker.send(asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=1, adapter=name))
            found.errors.update(count_errors([answer]))
            if (seconds := answer.parsed().first_token_seconds) is not None:
                found.seconds[place].append(seconds)
    return found
