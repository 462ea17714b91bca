"""hotshoe bench scenario: hard traffic on a server of its own, each figure beside its bar."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import FAILED
from hotshoe.clients.cli.options import Json

if TYPE_CHECKING:
    from hotshoe.clients.scenarios.report import ScenarioReport

# As hotshoe.clients.scenarios.table has them, which is not needed for `--help`.
NAMES = (
    "long-prompt",
    "many-adapters",
    "slots",
    "tenants",
    "loading",
    "memory",
    "prefix",
    "publishing",
    "first-token",
    "transfer",
)


def scenario(
    name: Annotated[str, typer.Argument(metavar="|".join(NAMES))],
    server_arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARG", help="For the server, behind the scenario's own.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the registry, so that the next run publishes nothing.")
    ] = None,
    scale: Annotated[float, typer.Option(metavar="X", min=0.001, help="Less than 1: a quick look.")] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts and of orders.")] = 0,
    json: Json = False,
) -> None:
    """Measure one promise under hard traffic.

    Starts a server with the default base, or one of random weights, on free ports, publishes random adapters, and ends
    it again. Ends with 1 if a request failed; a bar that is missed is told, and is no failure.
    """
    import asyncio
    import sys

    from hotshoe.clients.scenarios.stage import StageSettings
    from hotshoe.clients.scenarios.table import SCENARIOS, run_scenario

    if name not in SCENARIOS:
        raise ValueError(f"{name!r} is none of {', '.join(SCENARIOS)}")

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr)

    settings = StageSettings(
        directory=keep, server_arguments=tuple(server_arguments or ()), scale=scale, seed=seed, tell=tell
    )
    report = asyncio.run(run_scenario(name, settings))
    if json:
        output.print_json(report.as_data())
    else:
        _print_report(report)
    if report.errors:
        raise typer.Exit(FAILED)


def _print_report(report: "ScenarioReport") -> None:
    conditions = ((key.replace("_", " "), value) for key, value in report.conditions.items())
    output.print_fields(conditions)
    print()
    output.print_fields((key.replace("_", " "), f"{value:.4g}") for key, value in report.figures.items())
    print()
    rows = [
        (bar.promise, f"{bar.measured:.3f} {bar.unit}".strip(), f"{bar.sense} {bar.limit:g}", _verdict(bar.met))
        for bar in report.bars
    ]
    output.print_table(("PROMISE", "MEASURED", "BAR", ""), rows)
    if report.errors:
        print("failed requests: " + ", ".join(f"{count} {name}" for name, count in report.errors.items()))


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
