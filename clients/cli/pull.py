"""hotshoe pull: an adapter's files, back in a directory."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server
from hotshoe.clients.cli.progress import byte_progress


def pull(
    reference: Reference,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made if missing.")],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Write an adapter's files into a directory.

    Each is verified against its digest. PEFT can load the directory.
    """
    from hotshoe.clients import Client

    with Client(server) as client, byte_progress() as update:
        adapter = client.pull(
            reference,
            directory,
            progress=lambda step: update("downloading", step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json(adapter)
    print(f"{directory}  {output.human_bytes(adapter.size_bytes)}\n{adapter.name}@{adapter.digest}")
