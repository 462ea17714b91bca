"""What a comparison found: medians, ratios and agreement, as JSON, CSV and a table."""

import csv
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hotshoe.clients.bench import percentile
from hotshoe.clients.compare.comparison import Results, tokens_per_second
from hotshoe.clients.compare.plan import Case, ComparePlan
from hotshoe.clients.compare.rivals import HOTSHOE, Rival
from hotshoe.clients.compare.runners.protocol import Outcome

SCHEMA = "hotshoe.compare/1"
ORACLES = ("peft-bf16", HOTSHOE)  # the first that answered is what all are checked against
DOUBTFUL = 0.5  # of the tokens: an engine that agrees less is likely to compute something else


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """One rival in one case. Medians over rounds; times in seconds."""

    rival: str
    adapters: int
    concurrency: int
    rounds: int
    tokens_per_second: float
    slowest_round: float
    fastest_round: float
    hotshoe_ratio: float | None  # hotshoe ÷ this one: the median of the ratios round by round
    ttft_p50: float
    inter_token_p50: float | None
    inter_token_p99: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the tokens that were checked are the oracle's. Shares, 0 to 1; None for what it did not serve.

    Other 4-bit weights are another model: a sound engine misses some. One that ignores adapters gives, with
    adapters, the oracle's tokens of the base alone at least as often as those it should.
    """

    rival: str
    oracle: str
    base: float | None
    adapters: float | None
    adapters_as_base: float | None  # with adapters, but equal to the oracle's tokens of the base alone

    @property
    def doubtful(self) -> bool:
        return any(share is not None and share < DOUBTFUL for share in (self.base, self.adapters))


@dataclass(frozen=True, slots=True)
class LoadingFigures:
    """Gaps between the tokens of streams, in seconds: with nothing else, and from the first load to the last."""

    rival: str
    quiet_p50: float
    quiet_p99: float
    quiet_max: float
    loading_p50: float
    loading_p99: float
    loading_max: float
    load_p50: float  # what one load takes

    @property
    def seconds(self) -> tuple[float, ...]:
        """All figures, in their order."""
        return astuple(self)[1:]


@dataclass(frozen=True, slots=True)
class CompareReport:
    """All of it, and of what."""

    machine: dict[str, Any]
    plan: ComparePlan
    rivals: list[dict[str, Any]]  # the table's entry, what the rival says of itself, and why it failed
    cases: list[CaseFigures]
    agreement: list[Agreement]
    loading: list[LoadingFigures]
    schema: str = SCHEMA

    def to_data(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def make_report(plan: ComparePlan, rivals: Sequence[Rival], results: Results) -> CompareReport:
    """The figures of what was measured."""
    described = [
        {**asdict(rival), "facts": results.facts.get(rival.name, {}), "failure": results.failures.get(rival.name)}
        for rival in rivals
    ]
    cases = [
        figures
        for case, rounds in results.outcomes.items()
        for rival in rivals
        if (figures := case_figures(case, rival.name, rounds)) is not None
    ]
    return CompareReport(
        describe_machine(),
        plan,
        described,
        cases,
        list(agreements(results)),
        [loading_figures(name, results.quiet[name], results.loading[name]) for name in results.loading],
    )


def case_figures(case: Case, rival: str, rounds: Sequence[dict[str, Outcome]]) -> CaseFigures | None:
    """Of the rounds that the rival finished; None when there is none."""
    finished = [outcomes for outcomes in rounds if rival in outcomes]
    if not finished:
        return None
    rates = [tokens_per_second(outcomes[rival]) for outcomes in finished]
    both = [outcomes for outcomes in finished if HOTSHOE in outcomes]
    ratios = [tokens_per_second(one[HOTSHOE]) / tokens_per_second(one[rival]) for one in both]
    answers = [answer for outcomes in finished for answer in outcomes[rival].answers]
    gaps = [later - earlier for answer in answers for earlier, later in pairwise(answer.times)]
    return CaseFigures(
        rival=rival,
        adapters=case.adapters,
        concurrency=case.concurrency,
        rounds=len(finished),
        tokens_per_second=statistics.median(rates),
        slowest_round=min(rates),
        fastest_round=max(rates),
        hotshoe_ratio=statistics.median(ratios) if ratios else None,
        ttft_p50=statistics.median(answer.times[0] for answer in answers),
        inter_token_p50=percentile(gaps, 0.50),
        inter_token_p99=percentile(gaps, 0.99),
    )


def agreements(results: Results) -> Iterator[Agreement]:
    """Every rival that was checked, against the oracle; none without one."""
    base, adapters = results.base_checks, results.adapter_checks
    oracle = next((name for name in ORACLES if name in base and name in adapters), None)
    if oracle is None:
        return
    as_base = base[oracle] * (len(adapters[oracle]) // len(base[oracle]))
    for rival in base | adapters:
        of_base, of_adapters = base.get(rival), adapters.get(rival)
        yield Agreement(
            rival=rival,
            oracle=oracle,
            base=same_share(of_base, base[oracle]),
            adapters=same_share(of_adapters, adapters[oracle]),
            adapters_as_base=same_share(of_adapters, as_base),
        )


def same_share(tokens: Sequence[int] | None, expected: Sequence[int]) -> float | None:
    """Share of places where both have the same."""
    if tokens is None:
        return None
    return sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True)) / len(expected)


def loading_figures(rival: str, quiet: Sequence[Outcome], loading: Sequence[Outcome]) -> LoadingFigures:
    """The gaps of all streams together, those of loading as far as they lie between the first load and the last."""
    calm = [gap for outcome in quiet for gap in _gaps(outcome, 0.0, float("inf"))]
    busy, loads = [], []
    for outcome in loading:
        first, last = min(load.started for load in outcome.loads), max(load.finished for load in outcome.loads)
        busy += _gaps(outcome, first, last)
        loads += [load.finished - load.started for load in outcome.loads]
    return LoadingFigures(
        rival=rival,
        quiet_p50=percentile(calm, 0.50) or 0.0,
        quiet_p99=percentile(calm, 0.99) or 0.0,
        quiet_max=max(calm),
        loading_p50=percentile(busy, 0.50) or 0.0,
        loading_p99=percentile(busy, 0.99) or 0.0,
        loading_max=max(busy),
        load_p50=statistics.median(loads),
    )


def _gaps(outcome: Outcome, start: float, end: float) -> list[float]:
    """Gaps between tokens that overlap the time from start to end."""
    pairs = [pair for answer in outcome.answers for pair in pairwise(answer.times)]
    return [later - earlier for earlier, later in pairs if later >= start and earlier <= end]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on and a reader cannot see."""
    model, flags = "", set[str]()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model, flags = fields.get("model name", ""), set(fields.get("flags", "").split())
    telling = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in telling if flag in flags],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def write_report(report: CompareReport, directory: Path) -> list[Path]:
    """Writes compare.json and compare.csv, one line a rival and case; returns their paths."""
    whole, table = directory / "compare.json", directory / "compare.csv"
    whole.write_text(json.dumps(report.to_data(), indent=2) + "\n", encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*CaseFigures.__dataclass_fields__])
        writer.writeheader()
        writer.writerows(asdict(figures) for figures in report.cases)
    return [whole, table]
