"""hotshoe mirror: all that a name's tags point at on another registry, copied to the server."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.locations import split_location
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server
from hotshoe.clients.cli.progress import byte_progress


def mirror(
    location: Annotated[
        str, typer.Argument(metavar="REMOTE/NAME", help="REMOTE//NAME if there is a / in NAME; oci://host//team/a")
    ],
    as_name: Annotated[str, typer.Option("--as", metavar="NAME", help="What it is called here.")] = "",
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Copy a name's tags from another registry, with their adapters.

    Tags that are only here stay; others move to where they point there. REMOTE is one that the server was started
    with (hotshoe serve --remote), or lies below one.
    """
    from hotshoe.clients import Client

    remote, name = split_location(location)
    with Client(server) as client, byte_progress() as update:
        pulled = client.mirror_from(
            remote,
            name,
            as_name=as_name,
            progress=lambda step: update("mirroring", step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json([{"adapter": one.adapter, "created": one.created} for one in pulled])
    columns = ("NAME", "TAGS", "DIGEST", "NEW")
    rows = [
        (one.adapter.name, ",".join(one.adapter.tags), output.short_digest(one.adapter.digest), "yes" * one.created)
        for one in pulled
    ]
    output.print_table(columns, rows)
