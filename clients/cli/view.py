"""hotshoe view, hotshoe unview: an adapter as a directory on the server's machine."""

import os
from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server


def view(
    reference: Reference,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Also a symbolic link to it here; the server must be, too.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Make a directory of an adapter on the server, without copying.

    PEFT and vLLM can read it. Its files are the registry's own, read-only: do not write to them. The adapter is not
    collected until unview.
    """
    from hotshoe.clients import Client

    if destination is not None and os.path.lexists(destination) and not destination.is_symlink():
        raise FileExistsError(f"{destination}: is there already; expected a new name")
    with Client(server) as client:
        made = client.view(reference)
    if destination is not None:
        _link(destination, Path(made.path))
    if json:
        return output.print_json(made)
    print(destination or made.path)


def unview(
    reference: Reference,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Also the symbolic link to it here that view made.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Remove the directory that view made. The adapter stays."""
    from hotshoe.clients import Client

    with Client(server) as client:
        if destination is not None:
            _check_link(destination, client.get_adapter(reference).digest)
        deleted = client.unview(reference)
    if destination is not None:
        destination.unlink()
    if json:
        return output.print_json({"reference": reference, "deleted": deleted})
    print(f"removed the view of {reference}" if deleted else f"{reference} has no view")


def _check_link(destination: Path, digest: str) -> None:
    if not destination.is_symlink() or destination.readlink().name != digest.removeprefix("sha256:"):
        raise ValueError(f"{destination}: expected the link to the view of {digest} that hotshoe view made")


def _link(destination: Path, path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{path} is on the server's machine, which is not this one: use hotshoe pull")
    if destination.is_symlink() and destination.readlink() == path:
        return
    if destination.is_symlink():
        raise FileExistsError(f"{destination}: a link to {destination.readlink()}; expected a new name")
    destination.symlink_to(path)
