"""hotshoe log: what became of a name's tags."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, FullDigests, Json, Server


def log(
    name: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="All of a name, or one tag.")],
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Moves at most, up to 1000.")] = 100,
    full: FullDigests = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Tell when a name was published, tagged, untagged or collected.

    The latest comes first.
    """
    from hotshoe.clients import Client

    bare, colon, tag = name.partition(":")
    if colon and not tag:
        raise ValueError(f"{name!r} is not NAME or NAME:TAG")
    with Client(server) as client:
        moves = client.list_tag_moves(bare, tag, limit=limit)
    if json:
        return output.print_json(moves)
    if not moves:
        return print(f"nothing is known of {name}")
    rows = []
    for move in moves:
        old, new = (output.short_digest(digest, full=full) for digest in (move.old_digest, move.new_digest))
        what = move.tag or ("published" if new else "collected")
        rows.append((move.time.ToJsonString(), what, old, new))
    output.print_table(("TIME", "TAG", "FROM", "TO"), rows)
