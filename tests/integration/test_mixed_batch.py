"""Sixteen requests in one step, no two alike: every kind, ranks 1 to 64, a stack, and the base alone."""

import asyncio
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess, publish

from hotshoe.clients import AsyncClient

RANKS = (1, 2, 3, 4, 8, 16, 32, 64)
NEW_TOKENS = 12
Request = tuple[str, list[tuple[str, float]]]  # prompt, adapter stack


@pytest.fixture
def published(start_server: Callable[..., ServerProcess], tiny_base: Path, tmp_path: Path) -> ServerProcess:
    """A server with eight LORA adapters, two IA3, two prefixes and a prompt."""
    from peft_adapters import write_ia3, write_lora, write_prefix, write_prompt
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    directories = {f"lora-{r}": write_lora(tmp_path / f"lora-{r}", model, rank=r, targets=every, seed=r) for r in RANKS}
    directories["ia3"] = write_ia3(tmp_path / "ia3", model, seed=1)
    directories["ia3-up"] = write_ia3(tmp_path / "up", model, targets=("up_proj",), feedforward=("up_proj",), seed=2)
    directories["prefix"] = write_prefix(tmp_path / "prefix", model, tokens=5, seed=3)
    directories["long-prefix"] = write_prefix(tmp_path / "long", model, tokens=20, seed=4)
    directories["prompt"] = write_prompt(tmp_path / "prompt", model, tokens=7, seed=5)
    server = start_server("--max-running-requests", "16", "--adapter-slots", "16")
    for name, directory in directories.items():
        publish(server, name, directory)
    return server


def requests() -> list[Request]:
    single = [*(f"lora-{rank}" for rank in RANKS), "ia3", "ia3-up", "prefix", "long-prefix", "prompt"]
    stacks = [[(name, 1.0)] for name in single] + [[("lora-8", 0.7), ("ia3", 0.5), ("prefix", 1.0)], [], []]
    return [(f"{index} tell me " + "more " * index, stack) for index, stack in enumerate(stacks)]


def test_each_of_sixteen_mixed_requests_gets_the_tokens_that_it_gets_alone(published: ServerProcess) -> None:
    assert len(requests()) == 16
    most = functools.partial(most_adapters_in_a_step, published)
    rounds, alone = asyncio.run(_together_and_alone(published.ready["grpc"], most))
    assert all(together == alone for together in rounds)
    assert len({tuple(tokens) for tokens in alone[:-2]}) == 14  # each adapter shows
    assert most() >= 8


async def _together_and_alone(
    address: str, most_together: Callable[[], float]
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """What all get together, again until so many met that it shows, and what each gets alone."""
    async with AsyncClient(address) as client:

        async def ask(request: Request) -> list[int]:
            prompt, stack = request
            response = await client.generate(prompt, adapters=stack, max_new_tokens=NEW_TOKENS, ignore_eos=True)
            assert [round(adapter.weight, 6) for adapter in response.adapters] == [weight for _, weight in stack]
            return [token.token_id for token in response.completions[0].tokens]

        for name in (f"lora-{rank}" for rank in RANKS):
            await client.load(name)  # so that nobody waits for a load, and all run in one step
        rounds = [await asyncio.gather(*map(ask, requests()))]
        while most_together() < 8 and len(rounds) < 20:  # on a busy machine they come one after the other
            rounds.append(await asyncio.gather(*map(ask, requests())))
        return rounds, [await ask(request) for request in requests()]


def most_adapters_in_a_step(server: ServerProcess) -> float:
    """The lower bound of the highest bucket of hotshoe_batch_distinct_adapters that has a step."""
    pattern = r'hotshoe_batch_distinct_adapters_bucket\{.*?le="([^"]+)"\} (\S+)'
    buckets = [(float(le), float(count)) for le, count in re.findall(pattern, server.get("/metrics")[1])]
    assert buckets, "no such histogram"
    counts = [count - before for (_, count), (_, before) in zip(buckets, [(0.0, 0.0), *buckets], strict=False)]
    return max(lower for (lower, _), count in zip([(0.0, 0.0), *buckets], counts, strict=False) if count)
