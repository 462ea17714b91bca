"""hotshoe doctor: what an adapter does to the base's weights. The server looks, for it has the weights."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, ApproximateRank, Json, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.clients import Client
    from hotshoe.protos.v1.registry_pb2 import Diagnosis, LinearDiagnosis, MitigateAdapterResponse

COLUMNS = (
    *("LAYER", "TARGET", "RANK", "ALPHA/R", "NORM", "SPIKE", "STRENGTH", "STABLE RANK"),
    *("PREDICTED", "EXACT", "RESEMBLANCE", "NF4 KEEPS", "NOTE"),
)
_NEAR = 0.8  # of its threshold


def doctor(
    adapter: Annotated[str, typer.Argument(metavar="DIR|REF", help="A PEFT directory, or a published adapter.")],
    exact: Annotated[bool, typer.Option("--exact", help="Count intruder dimensions; takes minutes.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a heat map by layer and module.")] = None,
    mitigate: Annotated[
        float | None,
        typer.Option(metavar="KEEP", help="Publish it anew with its intruders at KEEP of their strength, e.g. 0.75."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME[:TAG]", help="For --mitigate: what to call it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Tell of every linear, not only of those to look at.")] = False,
    approximate_rank: ApproximateRank = 0,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Examine an adapter: intruder dimensions, scale, dead modules.

    Damaged modules, too, and what NF4 would keep. NORM is the update's by the weight's, SPIKE its largest singular
    value by the weight's, STRENGTH by the threshold at which an intruder is predicted (many of nearly equal size count
    together). A directory is sent, but not published.
    """
    from hotshoe.clients import Client
    from hotshoe.clients.heat_map import draw_heat_map, require_matplotlib

    if png is not None:
        require_matplotlib()
    if (mitigate is None) != (name is None):
        raise ValueError("--mitigate and --as go together")
    if not adapter:
        raise ValueError("DIR|REF: expected a directory or a reference, not ''")
    if mitigate is not None and _is_directory(adapter):
        raise ValueError(f"--mitigate: expected a published adapter, not the directory {adapter}; publish it first")
    if approximate_rank and not _is_directory(adapter):
        raise ValueError("--approximate-rank: expected none with a REF: a published adapter has its own")
    corrected: MitigateAdapterResponse | None = None
    not_kept = ""
    with Client(server) as client:
        if mitigate is not None and name is not None:
            corrected = _mitigate(client, adapter, keep=mitigate, name=name)
            diagnosis = corrected.diagnosis
        elif _is_directory(adapter):
            diagnosis = _diagnose_directory(client, adapter, exact=exact, approximate_rank=approximate_rank)
        else:
            response = client.diagnose(adapter, exact=exact)
            diagnosis, not_kept = response.diagnosis, response.not_kept
    if png is not None:
        draw_heat_map(diagnosis, png)
    if not_kept:
        print(output.printable(f"hotshoe: the report is not kept: {not_kept}"), file=sys.stderr)
    if json:
        return output.print_json(corrected or diagnosis)
    _print_diagnosis(diagnosis, every=every)
    if corrected:
        print(f"{corrected.shrunk} intruders shrunk, {corrected.energy_kept:.1%} of the correction kept at its rank")
        print(f"{corrected.adapter.name}@{corrected.adapter.digest}")


def _is_directory(text: str) -> bool:
    """As opposed to a reference, which may be the name of a folder here, but begins with neither dot nor slash."""
    return text.startswith((".", "/")) or (Path(text) / "adapter_config.json").is_file()


def _diagnose_directory(client: "Client", directory: str, *, exact: bool, approximate_rank: int) -> "Diagnosis":
    with byte_progress() as update:
        return client.diagnose_directory(
            directory,
            exact=exact,
            approximate_rank=approximate_rank,
            progress=lambda step: update(step.stage, step.completed_bytes, step.total_bytes),
        )


def _mitigate(client: "Client", reference: str, *, keep: float, name: str) -> "MitigateAdapterResponse":
    """The corrected adapter of a published one."""
    name, tag = name_and_tag(name)
    return client.mitigate(reference, name, keep=keep, tags=[tag])


def _print_diagnosis(diagnosis: "Diagnosis", *, every: bool) -> None:
    _print_linears([one for one in diagnosis.linears if every or _is_notable(one)], len(diagnosis.linears))
    print(f"{output.enum_word(diagnosis, 'grade').upper()}: {diagnosis.headline}")
    for line in diagnosis.advice:
        print(f"- {line}")


def _is_notable(one: "LinearDiagnosis") -> bool:
    """Whether something is wrong with a linear, or nearly so."""
    return bool(one.predicted or one.exact or one.strength >= _NEAR or one.is_dead or not one.is_finite)


def _print_linears(linears: Sequence["LinearDiagnosis"], count: int) -> None:
    """Prints a table of these out of `count`, without the columns that say nothing of any."""
    rows = [_row(one) for one in linears]
    if rows:
        kept = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows)]
        output.print_table([COLUMNS[column] for column in kept], [[row[column] for column in kept] for row in rows])
    if left := count - len(rows):
        print(f"{left} {'more linears' if rows else 'linears'}, of which nothing bad is known: --all")


def _row(one: "LinearDiagnosis") -> tuple[object, ...]:
    return (
        str(one.layer),
        one.target,
        one.rank or "",
        _figure(one, "scale", "g"),
        _figure(one, "relative_norm", ".2%"),
        _figure(one, "relative_largest", ".2%"),
        _figure(one, "strength", ".2f"),
        _figure(one, "stable_rank", ".1f"),
        _figure(one, "predicted", "d"),
        _figure(one, "exact", "d"),
        _figure(one, "resemblance", ".2f"),
        _figure(one, "nf4_kept", ".0%"),
        one.note,
    )


def _figure(one: "LinearDiagnosis", name: str, form: str) -> str:
    return format(getattr(one, name), form) if one.HasField(name) else ""
