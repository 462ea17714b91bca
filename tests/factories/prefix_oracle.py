"""Whether one tenant can tell, by how soon an answer begins, what another has asked.

    PYTHONPATH=tests/factories python tests/factories/prefix_oracle.py

A victim asks; a prober asks the same, or what the victim did not ask, and guesses which it was by the time to its first
token. 2,000 such guesses as the victim's own tenant, who can tell, and 2,000 as another, who must not: the area under
the curve of true over false guesses is to be above 0.9 and between 0.45 and 0.55. Exits with 1 if it is not. The tests
have it guess by the tokens that had to be computed, which no clock disturbs.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_directories import write_tiny_model
from server_process import ServerProcess, command, launch

from hotshoe.protos.v1 import generation_pb2

TENANT_KEY = "x-tenant"
VICTIM, OTHER = "victim", "other"
SUFFIX_TOKENS = 8  # of the prober's own, behind what it guesses


@dataclass
class Guesses:
    """What a prober measured, where the victim had asked the same and where not; of seconds and of computed tokens."""

    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    tokens: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))


def area_under_curve(asked: Sequence[float], unasked: Sequence[float]) -> float:
    """How likely a measure of what was asked is below one of what was not; equal ones count half."""
    wins = sum((one < other) + (one == other) / 2 for one in asked for other in unasked)
    return wins / (len(asked) * len(unasked))


def guess(server: ServerProcess, number: int, *, prompt_tokens: int, seed: int = 1) -> dict[str, Guesses]:
    """So many guesses of each prober, in random order."""
    draw, stub = random.Random(seed), server.generation
    found = {VICTIM: Guesses(), OTHER: Guesses()}
    turns = [(tenant, same) for tenant in found for same in (True, False) for _ in range(number // 2)]
    draw.shuffle(turns)
    for tenant, same in turns:
        asked = _prompt(draw, prompt_tokens)
        _ask(stub, asked, VICTIM)
        guessed = asked if same else _prompt(draw, prompt_tokens)
        seconds, tokens = _ask(stub, [*guessed, *_prompt(draw, SUFFIX_TOKENS)], tenant)
        found[tenant].seconds[not same].append(seconds)
        found[tenant].tokens[not same].append(tokens)
    return found


def _prompt(draw: random.Random, tokens: int) -> list[int]:
    return draw.choices(range(256), k=tokens)


def _ask(stub: Any, ids: list[int], tenant: str) -> tuple[float, int]:
    """Seconds until the first token came, and how many of the prompt had to be computed."""
    request = generation_pb2.StreamGenerateRequest(
        request={"token_ids": {"ids": ids}, "stopping": {"max_new_tokens": 1, "ignore_eos": True}}
    )
    started = time.perf_counter()
    stream = stub.StreamGenerate(request, metadata=[(TENANT_KEY, tenant)])
    messages = [next(stream)]
    seconds = time.perf_counter() - started
    usage = [*messages, *stream][-1].final.usage
    return seconds, usage.prompt_tokens - usage.cached_prompt_tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guesses", type=int, default=2000)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share-prefixes", action="store_true", help="the server's flag, with which all can tell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oracle-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        write_tiny_model(directory / "tiny", max_position_embeddings=4096)
        arguments = ["--tenant-metadata", TENANT_KEY, *(["--share-prefixes"] if options.share_prefixes else [])]
        server = launch(directory, command(directory / "tiny", directory / "registry", *arguments))
        stack.callback(server.end)
        found = guess(server, options.guesses, prompt_tokens=options.prompt_tokens, seed=options.seed)
    areas = {tenant: area_under_curve(*guesses.seconds) for tenant, guesses in found.items()}
    for tenant, area in areas.items():
        medians = [1e3 * sorted(seconds)[len(seconds) // 2] for seconds in found[tenant].seconds]
        told = " and ".join(f"{median:.1f} ms" for median in medians)
        print(f"as {tenant}: {area:.3f} of {options.guesses} guesses, medians {told} where it was asked and not")
    others = areas[OTHER] > 0.9 if options.share_prefixes else 0.45 <= areas[OTHER] <= 0.55
    return 0 if areas[VICTIM] > 0.9 and others else 1


if __name__ == "__main__":
    sys.exit(main())
