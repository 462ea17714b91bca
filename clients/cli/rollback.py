"""hotshoe rollback: moves a tag back."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag


def rollback(
    target: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help=":latest if it has no tag.")],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Point a tag where it pointed before; again undoes that.

    Before its latest move, that is, or its removal. Requests under way finish on the adapter they began with, new ones
    get the old one.
    """
    from hotshoe.clients import Client

    name, tag = name_and_tag(target)
    with Client(server) as client:
        response = client.roll_back_tag(name, tag)
    if json:
        return output.print_json(response)
    left = f"back from {output.short_digest(response.previous_digest)}" if response.previous_digest else "there again"
    print(f"{name}:{tag}  {left}\n{name}@{response.adapter.digest}")
