"""The adapter named is the adapter served: every adapter forces a token of its own, so a mistake shows in one token."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess, publish

from hotshoe.clients import Aborted, AsyncClient

NUM_ADAPTERS = 24
NUM_SLOTS = 6
NUM_REQUESTS = 1_000
CONCURRENCY = 24


def forced_token(index: int) -> int:
    return 97 + index % 26  # a printable byte each


@pytest.fixture
def crowded(
    start_server: Callable[..., ServerProcess], tiny_base: Path, tmp_path: Path
) -> tuple[ServerProcess, dict[str, int]]:
    """A server with four times as many adapters as slots; the token that each digest forces."""
    from peft_adapters import write_forced_token_lora
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    server = start_server("--adapter-slots", str(NUM_SLOTS), "--max-running-requests", "16")
    tokens = {}
    for index in range(NUM_ADAPTERS):
        directory = write_forced_token_lora(tmp_path / f"forced-{index}", model, forced_token(index), rank=1 + index)
        for name, tag in ((f"forced-{index}", "latest"), ("moving", f"v{index}")):
            tokens[publish(server, name, directory, tag).digest] = forced_token(index)
    return server, tokens


def test_no_answer_is_another_adapters_under_churn_and_moving_tags(crowded) -> None:
    server, tokens = crowded
    assert len(tokens) == NUM_ADAPTERS
    answers = asyncio.run(_storm(server.ready["grpc"], sorted(tokens)))
    assert len(answers) == NUM_REQUESTS
    wrong = [(digest, ids) for digest, ids in answers if set(ids) != {tokens[digest]}]
    assert wrong == []
    assert len({digest for digest, _ in answers}) == NUM_ADAPTERS


async def _storm(address: str, digests: list[str]) -> list[tuple[str, list[int]]]:
    """Asks for fixed names and for one tag that keeps moving; gives (digest served, tokens) of each answer."""
    numbers = random.Random(11)
    limit = asyncio.Semaphore(CONCURRENCY)
    async with AsyncClient(address) as client:
        has_moved = asyncio.Event()
        moving = asyncio.create_task(_move_tag(client, digests, has_moved))
        await asyncio.wait({moving, asyncio.ensure_future(has_moved.wait())}, return_when=asyncio.FIRST_COMPLETED)

        async def ask(reference: str, length: int) -> tuple[str, list[int]]:
            async with limit:
                response = await client.generate(
                    f"{reference} {length}", adapters=[reference], max_new_tokens=length, ignore_eos=True
                )
            return response.adapters[0].digest, [token.token_id for token in response.completions[0].tokens]

        references = [f"forced-{numbers.randrange(NUM_ADAPTERS)}" for _ in range(NUM_REQUESTS - 200)] + ["moving"] * 200
        numbers.shuffle(references)
        answers = await asyncio.gather(*(ask(reference, numbers.randint(1, 4)) for reference in references))
        assert not moving.done(), moving.exception()
        moving.cancel()
        return answers


async def _move_tag(client: AsyncClient, digests: list[str], has_moved: asyncio.Event) -> None:
    current = ""
    while True:
        for digest in digests:
            try:
                await client.update_tag("moving", "latest", digest, expected_digest=current)
            except Aborted as error:
                raise AssertionError("nobody else moves this tag") from error
            current = digest
            has_moved.set()
            await asyncio.sleep(0.02)
