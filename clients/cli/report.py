"""hotshoe report: an evaluation's figures, kept with the adapter that they are about."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.inputs import read_bytes
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server


def report(
    reference: Reference,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.json", help="A JSON object, such as lm-evaluation-harness writes.")
    ],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Attach an evaluation's report to an adapter.

    `show` and `lineage` tell its first figures. The adapter's digest stays. A later report of the same file name is
    shown instead of it, and both are kept.
    """
    from hotshoe.clients import Client
    from hotshoe.clients.evaluations import SUMMARY

    with Client(server) as client:
        attached = client.report(reference, read_bytes(file), file_name=file.name)
    if json:
        return output.print_json(attached)
    summary = attached.referrer.annotations.get(SUMMARY, "no figures")
    print(f"attached to {attached.subject}\n{output.printable(summary)}")
