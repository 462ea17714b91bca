"""hotshoe export: an adapter in the form that another tool reads."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server
from hotshoe.clients.cli.progress import byte_progress

# As hotshoe.clients.exchange.exports has them; importing that would cost every `--help` the time to import gRPC.
FORMATS = ("dir", "oci", "oci-archive", "modelcar", "ollama")


def export(
    reference: Reference,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="What to make; it must not be there yet.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")] = "dir",
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Write an adapter in a form that other tools read.

    dir: the files, for PEFT and vLLM. oci: an OCI image layout with the registry's digests, and the documents about the
    adapter, such as signatures. oci-archive: that in one tar file, for skopeo and podman. modelcar: an ordinary image
    with the files below /models. ollama: the files and a Modelfile.
    """
    from hotshoe.clients import Client
    from hotshoe.clients.exchange.exports import export as write

    with Client(server) as client, byte_progress() as update:
        adapter = write(
            client,
            reference,
            destination,
            form=form,
            progress=lambda step: update("downloading", step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json({"destination": str(destination), "format": form, "adapter": adapter})
    print(f"{destination}  {form}  {output.human_bytes(adapter.size_bytes)}\n{adapter.name}@{adapter.digest}")
