"""hotshoe bench compare: the same load on hotshoe and on its rivals."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import FAILED, INTERRUPTED
from hotshoe.clients.cli.options import Json, whole_numbers

if TYPE_CHECKING:
    from hotshoe.clients.compare.plan import ComparePlan
    from hotshoe.clients.compare.report import Agreement, CompareReport

DEFAULT_CACHE = Path("~/.cache/hotshoe/rivals")
DEFAULT_OUTPUT = Path("comparison")
COLUMNS = ("RIVAL", "ADAPTERS", "STREAMS", "TOKENS/S", "RANGE", "HOTSHOE ÷", "TTFT P50", "INTER-TOKEN P50", "P99")
AGREEMENT_COLUMNS = ("RIVAL", "TOKENS AS", "BASE", "ADAPTERS", "AS IF WITHOUT", "")
LOADING_COLUMNS = ("RIVAL", "QUIET P50", "P99", "MAX", "WHILE LOADING P50", "P99", "MAX", "ONE LOAD")


def compare(
    rivals: Annotated[str, typer.Option(metavar="NAME,…", help="Which; empty: all. hotshoe always runs.")] = "",
    concurrency: Annotated[str, typer.Option(metavar="N,…", help="Streams at a time; each is measured.")] = "1,8,16",
    adapters: Annotated[int, typer.Option(metavar="N", help="Distinct adapters; the base alone comes first.")] = 8,
    fewer_adapters: Annotated[
        str, typer.Option(metavar="N,…", help="Measured too, at the most streams; may be empty.")
    ] = "1,2,4",
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Random tokens; no two prompts are equal.")] = 64,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Of each answer; the end token is ignored.")] = 64,
    warmup: Annotated[int, typer.Option(metavar="N", help="Rounds that do not count.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds that count; medians are told.")] = 5,
    loads: Annotated[int, typer.Option(metavar="N", help="Adapters to load while others answer; 0: none.")] = 8,
    threads: Annotated[int, typer.Option(metavar="N", help="Of each rival; 0: as many as there are cores.")] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the prompts.")] = 0,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Rivals and models, kept for later.")] = DEFAULT_CACHE,
    directory: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Gets the JSON, CSV, charts and logs.")
    ] = DEFAULT_OUTPUT,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hold its lock in each round: for shared machines.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure hotshoe beside other engines, on this machine.

    Builds each rival in an environment of its own (once; minutes), gives all the same prompts in turn, checks their
    tokens, and writes compare.json, compare.csv and charts, also when it is interrupted. Ends with 1 if a rival could
    not be measured.
    """
    import os

    from hotshoe.clients.compare.plan import ComparePlan

    plan = ComparePlan(
        concurrency=whole_numbers("concurrency", concurrency),
        adapters=adapters,
        fewer_adapters=whole_numbers("fewer-adapters", fewer_adapters),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        warmup=warmup,
        rounds=rounds,
        loads=loads,
        threads=threads or os.cpu_count() or 1,
        seed=seed,
    )
    report, interrupted = _measure(plan, rivals, cache=cache.expanduser(), directory=directory, lock=lock)
    if json:
        output.print_json(report.to_data())
    else:
        _print_report(report)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(rival["failure"] for rival in report.rivals):
        raise typer.Exit(FAILED)


def _measure(
    plan: "ComparePlan", rivals: str, *, cache: Path, directory: Path, lock: Path | None
) -> "tuple[CompareReport, bool]":
    """Measures and writes the files; gives the report, and whether it was interrupted."""
    from hotshoe.clients.compare.charts import CHARTS_NEED, can_draw, draw_charts
    from hotshoe.clients.compare.comparison import Comparison
    from hotshoe.clients.compare.report import make_report, write_report
    from hotshoe.clients.compare.rivals import RIVALS, rivals_named

    chosen = rivals_named(rivals) if rivals else RIVALS
    directory.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(plan, chosen, cache=cache, logs=directory, lock=lock, say=_say)
    interrupted = False
    try:
        comparison.run()
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted: this is what was measured so far")
    report = make_report(plan, chosen, comparison.results)
    written = write_report(report, directory)
    if can_draw():
        written += draw_charts(report, directory)
    else:
        _say(CHARTS_NEED)
    _say(f"wrote {', '.join(map(str, written))}")
    return report, interrupted


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_report(report: "CompareReport") -> None:
    for rival in report.rivals:
        facts = rival["facts"].get("version", "not started")
        print(f"{rival['name']}: {rival['weights']}, {facts}; adapters {rival['mixes']}")
        if rival["failure"]:
            print(f"    left out: {rival['failure'].splitlines()[0]}")
    plan = report.plan
    print(f"\n{plan.prompt_tokens} prompt tokens, {plan.new_tokens} new, greedy; medians of {plan.rounds} rounds\n")
    rows = [
        (
            one.rival,
            one.adapters,
            one.concurrency,
            f"{one.tokens_per_second:.0f}",
            f"{one.slowest_round:.0f}–{one.fastest_round:.0f}",
            "-" if one.hotshoe_ratio is None else f"{one.hotshoe_ratio:.2f}",
            _milliseconds(one.ttft_p50),
            _milliseconds(one.inter_token_p50),
            _milliseconds(one.inter_token_p99),
        )
        for one in report.cases
    ]
    output.print_table(COLUMNS, rows)
    print("\nTokens in common: the likeliest next one after each of many stretches of text\n")
    output.print_table(
        AGREEMENT_COLUMNS,
        [
            (one.rival, one.oracle, *map(_share, (one.base, one.adapters, one.adapters_as_base)), _doubt(one))
            for one in report.agreement
        ],
    )
    if report.loading:
        print(f"\nTime between tokens of other streams while {plan.loads} adapters load\n")
        output.print_table(
            LOADING_COLUMNS,
            [(one.rival, *map(_milliseconds, one.seconds)) for one in report.loading],
        )


def _doubt(agreement: "Agreement") -> str:
    return "look before you quote it" if agreement.doubtful else "as it should be"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
