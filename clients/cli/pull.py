"""hotshoe pull: an adapter's files, back in a directory; or an adapter of another registry, copied to the server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.locations import split_location
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Adapter


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="REF|REMOTE/REF", help="name:tag, name@sha256:<hex>; oci://host/x:tag, oci://host//a/b:tag"
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="For REF: made if missing.", show_default=False, file_okay=False),
    ] = None,
    as_name: Annotated[
        str, typer.Option("--as", metavar="NAME[:TAG]", help="For REMOTE/REF: what it is called here.")
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Into a DIR with other files; those of the same names are replaced.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Write an adapter into a directory, or copy one to the server.

    A REF's files come from the server, a REMOTE/REF from another registry. Each file is verified against its digest,
    and a pull that broke goes on where it was. PEFT can load the directory. REMOTE is a registry that the server was
    started with (hotshoe serve --remote), or lies below one; all that stands before the last / belongs to it, or all
    before //.
    """
    if "://" in source:
        if overwrite:
            raise ValueError(f"--overwrite is for a DIR; {source} is pulled to the server")
        if directory is not None:
            raise ValueError(f"{directory}: a directory is for adapters of the server; pull {source} to it first")
        return _from_remote(source, as_name, server, json)
    if directory is None:
        raise ValueError(f"{source} is an adapter of the server: expected a DIR to write it into")
    if as_name:
        raise ValueError(f"--as is for a REMOTE/REF; {source} is written into {directory} as it is")
    from hotshoe.clients import Client

    with Client(server) as client, byte_progress() as update:
        adapter = client.get_adapter(source)
        if not overwrite:
            _check_free(directory, adapter)
        client.pull(
            f"{adapter.name}@{adapter.digest}",
            directory,
            progress=lambda step: update("downloading", step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json(adapter)
    print(f"{directory}  {output.human_bytes(adapter.size_bytes)}\n{adapter.name}@{adapter.digest}")


def _check_free(directory: Path, adapter: "Adapter") -> None:
    """Raises FileExistsError unless a directory is empty, or holds an earlier pull of an adapter."""
    from hotshoe.clients.downloads import foreign_file

    if (name := foreign_file(directory, adapter.blobs)) is not None:
        found = f"{directory}: its {name} is not of {adapter.name}@{adapter.digest}"
        raise FileExistsError(f"{found}; pull into an empty directory, or use --overwrite")


def _from_remote(location: str, as_name: str, server: str, json: bool) -> None:
    from hotshoe.clients import Client

    remote, reference = split_location(location)
    name, tag = name_and_tag(as_name, default_tag=None) if ":" in as_name else (as_name, "")
    with Client(server) as client, byte_progress() as update:
        pulled = client.pull_from(
            remote,
            reference,
            name=name,
            tags=[tag] if tag else (),
            progress=lambda step: update("pulling", step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json(pulled)
    adapter = pulled.adapter
    done = "pulled" if pulled.created else "already there"
    tags = ",".join(adapter.tags) or "-"
    size = output.human_bytes(adapter.size_bytes)
    print(f"{done} {adapter.name}:{tags}  {adapter.kind}  {size}\n{adapter.name}@{adapter.digest}")
