"""hotshoe bench: how fast the server is under load."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import FAILED
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, whole_numbers

if TYPE_CHECKING:
    from hotshoe.clients.bench import BenchReport, Figures, LevelReport

COLUMNS = ("STREAMS", "TOKENS/S", "RANGE", "TTFT P50", "TTFT P99", "INTER-TOKEN P50", "P99", "CLIENT CPU", "ERRORS")


def bench(
    context: typer.Context,
    concurrency: Annotated[str, typer.Option(metavar="N,…", help="Streams at a time; each is measured.")] = "1,8,16",
    adapters: Annotated[str, typer.Option(metavar="REF,…", help="Adapters to mix; base is the model alone.")] = "base",
    pattern: Annotated[
        str, typer.Option(metavar="fixed|round-robin|zipf", help="Of each stream, of each request in turn, at random.")
    ] = "round-robin",
    zipf_exponent: Annotated[float, typer.Option(metavar="S", help="The k-th adapter has weight 1/k^S.")] = 1.0,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Random tokens; no two prompts are equal.")] = 64,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Of each answer; the end token is ignored.")] = 64,
    requests: Annotated[int, typer.Option(metavar="N", help="In a round; 0: one for each stream.")] = 0,
    warmup: Annotated[int, typer.Option(metavar="N", help="Rounds that do not count.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds that count; medians are told.")] = 5,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts and of the zipf pattern.")] = 0,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Measure speed under load.

    Tokens per second end to end, time to first token, time between tokens. Ends with 1 if a request failed.
    """
    if context.invoked_subcommand is not None:
        return  # compare, or scenario
    import asyncio

    from hotshoe.clients.bench import BenchPlan, Pattern, run_bench

    if pattern not in list(Pattern):
        raise ValueError(f"--pattern: {pattern!r} is none of {', '.join(Pattern)}")
    plan = BenchPlan(
        concurrency=whole_numbers("concurrency", concurrency),
        adapters=tuple(name.strip() for name in adapters.split(",") if name.strip()),
        pattern=Pattern(pattern),
        zipf_exponent=zipf_exponent,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        requests=requests,
        warmup=warmup,
        rounds=rounds,
        seed=seed,
    )
    report = asyncio.run(run_bench(server, plan, _tell_round))
    if json:
        output.print_json(asdict(report))
    else:
        _print_report(report)
    if report.num_errors:
        raise typer.Exit(FAILED)


def _tell_round(concurrency: int, number: int, figures: "Figures") -> None:
    import sys

    if sys.stderr.isatty():
        print(f"round {number}, {concurrency} streams: {figures.tokens_per_second:.1f} tokens/s", file=sys.stderr)


def _print_report(report: "BenchReport") -> None:
    plan, server = report.plan, report.server
    mix = f"{len(plan.adapters)} adapters {plan.pattern}" if len(plan.adapters) > 1 else ", ".join(plan.adapters)
    print(
        f"{server['base_model']} {server['quantization']} on {server['device']}; {mix or 'base'}; "
        f"{plan.prompt_tokens} prompt tokens, {plan.new_tokens} new, medians of {plan.rounds} rounds\n"
    )
    output.print_table(COLUMNS, [_row(level) for level in report.levels])
    if first := next((level.first_error for level in report.levels if level.first_error), ""):
        print(f"\nthe first error: {output.printable(first)}")


def _row(level: "LevelReport") -> tuple[str, ...]:
    rates = [figures.tokens_per_second for figures in level.rounds]
    errors = ", ".join(f"{count} {name}" for name, count in level.errors.items())
    return (
        str(level.concurrency),
        f"{level.median.tokens_per_second:.1f}",
        f"{min(rates):.1f}–{max(rates):.1f}",
        _milliseconds(level.median.ttft_p50),
        _milliseconds(level.median.ttft_p99),
        _milliseconds(level.median.inter_token_p50),
        _milliseconds(level.median.inter_token_p99),
        f"{level.median.client_cpu:.0%}",
        errors or "0",
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
