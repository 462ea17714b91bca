"""What a comparison measures: cases of adapters × concurrency, and the prompts of each round."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotshoe.clients.bench import ORDINARY_TEXT
from hotshoe.clients.compare.materials import adapter_name
from hotshoe.clients.compare.runners.protocol import Load, Request, Workload

# The check asks for one token after each of many stretches of ordinary text. Longer answers would tell less: after
# one near tie that rounding decides, sound engines go different ways.
CHECK_STRETCHES = 24
CHECK_STRETCH_TOKENS = 24
LOADING_STREAMS = 8
LOADING_TOKENS = 128
FIRST_LOAD_SECONDS = 0.5
BETWEEN_LOADS_SECONDS = 0.25


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """So many streams at once, over so many distinct adapters in turn; 0: the base alone."""

    adapters: int
    concurrency: int

    def __str__(self) -> str:
        of_what = "base only" if not self.adapters else f"{self.adapters} adapter{'s' * (self.adapters > 1)}"
        return f"{of_what}, {self.concurrency} streams"


@dataclass(frozen=True, slots=True)
class ComparePlan:
    """What to measure: every concurrency with the base and with all adapters, the largest also with fewer of them."""

    concurrency: tuple[int, ...] = (1, 8, 16)
    adapters: int = 8
    fewer_adapters: tuple[int, ...] = (1, 2, 4)
    prompt_tokens: int = 64
    new_tokens: int = 64
    warmup: int = 1  # rounds that do not count
    rounds: int = 5
    loads: int = 8  # adapters that are loaded while others answer; 0: loading is not measured
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("adapters", "prompt_tokens", "new_tokens", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "loads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")
        if not self.concurrency or min(self.concurrency) < 1:
            raise ValueError("concurrency: must be numbers of at least 1")
        if not all(1 <= number < self.adapters for number in self.fewer_adapters):
            raise ValueError(f"fewer_adapters: must be at least 1 and fewer than all {self.adapters}")

    @property
    def base_cases(self) -> list[Case]:
        return [Case(0, streams) for streams in sorted(set(self.concurrency))]

    @property
    def adapter_cases(self) -> list[Case]:
        fewer = [Case(number, max(self.concurrency)) for number in sorted(set(self.fewer_adapters))]
        return [*fewer, *(Case(self.adapters, streams) for streams in sorted(set(self.concurrency)))]

    @property
    def max_concurrency(self) -> int:
        return max(*self.concurrency, LOADING_STREAMS, self.adapters)


class Prompts:
    """Writes the workloads of a plan. The same plan and the same base give the same, and no prompt comes twice."""

    def __init__(self, plan: ComparePlan, base: Path) -> None:
        from transformers import AutoTokenizer

        self._plan = plan
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._words = sorted(set(self._tokens(ORDINARY_TEXT)))

    def case(self, case: Case, number: int) -> Workload:
        """Round `number` of a case: as many requests as streams, each with the next adapter."""
        adapters: Sequence[str | None] = [adapter_name(index) for index in range(case.adapters)] or [None]
        chosen = [adapters[index % len(adapters)] for index in range(case.concurrency)]
        requests = self._requests(f"{case.adapters}/{case.concurrency}/{number}", chosen)
        return Workload(requests, self._plan.new_tokens)

    def check(self, adapters: int) -> Workload:
        """The next token after the same stretches of text, for each adapter in turn; 0 adapters: for the base."""
        tokens = self._tokens(ORDINARY_TEXT)
        stride = (len(tokens) - CHECK_STRETCH_TOKENS) // CHECK_STRETCHES
        starts = [index * stride for index in range(CHECK_STRETCHES)]
        stretches = [tuple(tokens[start : start + CHECK_STRETCH_TOKENS]) for start in starts]
        names: Sequence[str | None] = [adapter_name(index) for index in range(adapters)] or [None]
        return Workload(tuple(Request(stretch, name) for name in names for stretch in stretches), 1)

    def loading(self, number: int, *, quiet: bool) -> Workload:
        """Streams on resident adapters; unless `quiet`, others are loaded one after the other meanwhile."""
        names = [adapter_name(index % self._plan.adapters) for index in range(LOADING_STREAMS)]
        requests = self._requests(f"loading/{number}", names)
        loads = [] if quiet else [adapter_name(self._plan.adapters + index) for index in range(self._plan.loads)]
        times = [FIRST_LOAD_SECONDS + index * BETWEEN_LOADS_SECONDS for index in range(len(loads))]
        return Workload(requests, LOADING_TOKENS, tuple(map(Load, loads, times)))

    def _requests(self, name: str, adapters: Sequence[str | None]) -> tuple[Request, ...]:
        chosen = random.Random(f"{self._plan.seed}/{name}")
        prompts = [tuple(chosen.choices(self._words, k=self._plan.prompt_tokens)) for _ in adapters]
        return tuple(map(Request, prompts, adapters))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)
