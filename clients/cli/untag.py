"""hotshoe untag: removes a tag."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag


def untag(
    target: Annotated[str, typer.Argument(metavar="NAME:TAG")], server: Server = DEFAULT_SERVER, json: Json = False
) -> None:
    """Remove a tag. The adapter stays, and can be named by its digest."""
    from hotshoe.clients import Client

    name, tag = name_and_tag(target, default_tag=None)
    with Client(server) as client:
        client.delete_tag(name, tag)
    if json:
        return output.print_json({"name": name, "tag": tag})
    print(f"removed {name}:{tag}")
