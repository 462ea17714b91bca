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
        Path | None,
        typer.Argument(
            metavar="DEST", help="Also make this directory, of links to its files; the server must be here."
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Make a directory of an adapter on the server, without copying.

    PEFT, vLLM and SGLang can read it. Its files are the registry's own, read-only: do not write to them. The adapter
    is not collected until unview.
    """
    from hotshoe.clients import Client

    if destination is not None and os.path.lexists(destination) and not _may_be_ours(destination):
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
        Path | None, typer.Argument(metavar="DEST", help="Also the directory of links that view made.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Remove the directory that view made. The adapter stays."""
    from hotshoe.clients import Client

    with Client(server) as client:
        if destination is not None:
            _check_links(destination, client.get_adapter(reference).digest)
        deleted = client.unview(reference)
    if destination is not None:
        _unlink(destination)
    if json:
        return output.print_json({"reference": reference, "deleted": deleted})
    print(f"removed the view of {reference}" if deleted else f"{reference} has no view")


def _check_links(destination: Path, digest: str) -> None:
    """Raises ValueError unless it is what `_link` made, or what it made before it made directories: a link."""
    view = digest.removeprefix("sha256:")
    if destination.is_symlink():
        is_ours = destination.readlink().name == view
    else:
        is_ours = destination.is_dir() and all(_target(entry).parent.name == view for entry in destination.iterdir())
    if not is_ours:
        raise ValueError(f"{destination}: expected the links to the view of {digest}, and no other files")


def _may_be_ours(destination: Path) -> bool:
    """Whether it is a link, or a directory of nothing else."""
    return destination.is_symlink() or (destination.is_dir() and all(one.is_symlink() for one in destination.iterdir()))


def _unlink(destination: Path) -> None:
    if destination.is_symlink():
        return destination.unlink()
    for entry in destination.iterdir():
        entry.unlink()
    destination.rmdir()


def _link(destination: Path, path: Path) -> None:
    """Makes a directory of links to the files of a view.

    A link to the view itself would not do: vLLM's resolver takes no directory that really lies outside its own, and
    llama.cpp's converter would write its file into the registry.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is on the server's machine, which is not this one: use hotshoe pull")
    links = {destination / file.name: file for file in path.iterdir()}
    if destination.is_symlink() and destination.readlink() == path:
        return
    if destination.is_symlink():
        raise FileExistsError(f"{destination}: a link to {destination.readlink()}; expected a new name")
    if destination.is_dir() and all(_target(link) == file for link, file in links.items()):
        return
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination}: has links to something else; expected a new name")
    destination.mkdir()
    for link, file in links.items():
        link.symlink_to(file)


def _target(entry: Path) -> Path:
    return entry.readlink() if entry.is_symlink() else entry
