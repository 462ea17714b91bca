"""Runs a plan: rounds in which every rival takes its turn, so that a slow minute of the machine falls on all alike.

First all rivals with the base alone, then, started anew, all with adapters: some are slower once they may take any.
A rival that fails is left out of what follows, and the report says why.
"""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hotshoe.clients.compare.environments import Environment, EnvironmentNotMade
from hotshoe.clients.compare.materials import Materials, adapter_name, make_materials
from hotshoe.clients.compare.plan import LOADING_TOKENS, Case, ComparePlan, Prompts
from hotshoe.clients.compare.rivals import Rival
from hotshoe.clients.compare.runner_process import RunnerFailed, RunnerProcess
from hotshoe.clients.compare.runners.protocol import Outcome, Setup, Workload

Say = Callable[[str], None]


@dataclass(slots=True)
class Results:
    """What was measured, as it came. A rival that failed lacks what it did not get to."""

    outcomes: dict[Case, list[dict[str, Outcome]]] = field(default_factory=dict)  # of each round, by rival
    base_checks: dict[str, list[int]] = field(default_factory=dict)  # the tokens that each rival gave
    adapter_checks: dict[str, list[int]] = field(default_factory=dict)
    quiet: dict[str, list[Outcome]] = field(default_factory=dict)
    loading: dict[str, list[Outcome]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Comparison:
    """One comparison of several rivals; `run` does it all.

    Args:
        cache: where environments, programs and models are kept for the next time.
        logs: a folder for what the rivals write.
        lock: a file whose lock is held during each round, for machines where others measure too.
    """

    def __init__(
        self, plan: ComparePlan, rivals: Sequence[Rival], *, cache: Path, logs: Path, lock: Path | None, say: Say
    ) -> None:
        self._plan = plan
        self._rivals = rivals
        self._cache = cache
        self._logs = logs
        self._lock = lock
        self._say = say
        self.results = Results()

    def run(self) -> Results:
        """Prepares every rival, then measures. Raises FileNotFoundError when the base's package is not installed."""
        materials = make_materials(self._cache, self._plan.adapters + self._plan.loads)
        self._prompts = Prompts(self._plan, materials.base)
        self._prepare(materials)
        with self._started(materials, with_adapters=False) as runners:
            self.results.base_checks = self._check(runners, 0)
            self._measure(runners, self._plan.base_cases)
        with self._started(materials, with_adapters=True) as runners:
            self.results.adapter_checks = self._check(runners, self._plan.adapters)
            self._measure(runners, self._plan.adapter_cases)
            if self._plan.loads:
                self._measure_loading(runners)
        return self.results

    def _prepare(self, materials: Materials) -> None:
        for rival in self._rivals:
            self._say(f"{rival.name}: preparing")
            with self._reported(rival):
                if rival.environment:
                    Environment(rival.environment, self._cache).make()
                with self._process(rival) as runner:
                    runner.prepare(self._setup(rival, materials, with_adapters=rival.serves_adapters))

    @contextmanager
    def _started(self, materials: Materials, *, with_adapters: bool) -> Iterator[dict[Rival, RunnerProcess]]:
        """Every rival that is able to, started; all end with the block."""
        runners: dict[Rival, RunnerProcess] = {}
        with ExitStack() as stack:
            for rival in self._able():
                if with_adapters and not rival.serves_adapters:
                    continue
                self._say(f"{rival.name}: starting, {'with adapters' if with_adapters else 'base only'}")
                with self._reported(rival):
                    runner = stack.enter_context(self._process(rival))
                    facts = runner.start(self._setup(rival, materials, with_adapters=with_adapters))
                    self.results.facts.setdefault(rival.name, {}).update(facts)
                    runners[rival] = runner
            yield runners

    def _check(self, runners: dict[Rival, RunnerProcess], adapters: int) -> dict[str, list[int]]:
        outcomes = self._round(runners, self._prompts.check(adapters))
        return {name: [answer.tokens[0] for answer in outcome.answers] for name, outcome in outcomes.items()}

    def _measure(self, runners: dict[Rival, RunnerProcess], cases: Sequence[Case]) -> None:
        for number in range(-self._plan.warmup, self._plan.rounds):
            for case in cases:
                outcomes = self._round(runners, self._prompts.case(case, number), turn=number)
                if number >= 0:
                    self.results.outcomes.setdefault(case, []).append(outcomes)
                    self._tell(f"round {number + 1}, {case}", outcomes)

    def _measure_loading(self, runners: dict[Rival, RunnerProcess]) -> None:
        able = {rival: runner for rival, runner in runners.items() if rival.loads_under_way}
        # An adapter can be loaded once, so there is one round of it; quiet ones before and after.
        for number, quiet in enumerate((True, False, True)):
            outcomes = self._round(able, self._prompts.loading(number, quiet=quiet))
            self._tell("quiet" if quiet else f"while {self._plan.loads} adapters load", outcomes)
            kept = self.results.quiet if quiet else self.results.loading
            for name, outcome in outcomes.items():
                kept.setdefault(name, []).append(outcome)

    def _round(self, runners: dict[Rival, RunnerProcess], workload: Workload, *, turn: int = 0) -> dict[str, Outcome]:
        """The same workload through every rival, one after the other; who is first changes with `turn`."""
        outcomes: dict[str, Outcome] = {}
        able = [rival for rival in runners if rival.name not in self.results.failures]
        start = turn % max(1, len(able))
        with _held(self._lock):
            for rival in [*able[start:], *able[:start]]:
                with self._reported(rival):
                    outcomes[rival.name] = runners[rival].run(workload)
        return outcomes

    def _able(self) -> list[Rival]:
        return [rival for rival in self._rivals if rival.name not in self.results.failures]

    def _process(self, rival: Rival) -> RunnerProcess:
        python = Environment(rival.environment, self._cache).python if rival.environment else None
        return RunnerProcess(python, f"runners.{rival.runner}", self._logs / f"{rival.name}.log")

    def _setup(self, rival: Rival, materials: Materials, *, with_adapters: bool) -> Setup:
        environment = rival.environment or rival.name
        names = [adapter_name(index) for index in range(self._plan.adapters)] if with_adapters else []
        converted = materials.directory / "converted" / environment
        converted.mkdir(parents=True, exist_ok=True)
        return Setup(
            home=str(self._cache / environment),
            converted=str(converted),
            base=str(materials.base),
            gguf=str(materials.gguf),
            adapters={name: str(path) for name, path in materials.adapters.items()} if names else {},
            resident=tuple(names),
            max_concurrency=self._plan.max_concurrency,
            max_tokens=self._plan.prompt_tokens + max(self._plan.new_tokens, LOADING_TOKENS),
            threads=self._plan.threads,
            variant=rival.variant,
        )

    @contextmanager
    def _reported(self, rival: Rival) -> Iterator[None]:
        """What goes wrong inside becomes the rival's failure, and the others go on."""
        try:
            yield
        except (RunnerFailed, EnvironmentNotMade) as error:
            self.results.failures[rival.name] = str(error)
            self._say(f"{rival.name}: left out: {error}")

    def _tell(self, what: str, outcomes: dict[str, Outcome]) -> None:
        rates = [f"{name} {tokens_per_second(outcome):.0f}" for name, outcome in outcomes.items()]
        self._say(f"{what}: {', '.join(rates)} tokens/s")


def tokens_per_second(outcome: Outcome) -> float:
    """All tokens of a run over the time from sending the requests to the last token, prompts included."""
    tokens = sum(len(answer.tokens) for answer in outcome.answers)
    return tokens / max(answer.times[-1] for answer in outcome.answers)


@contextmanager
def _held(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
