"""hotshoe tag: moves a tag by compare-and-set."""

from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server, name_and_tag

if TYPE_CHECKING:
    from hotshoe.clients import Client


def tag(
    reference: Reference,
    target: Annotated[str, typer.Argument(metavar="NAME:TAG", help="The tag to move; made if missing.")],
    expect: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Only if the tag points at this digest now.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Only if there is no such tag.")] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Point a tag at an adapter.

    Requests under way finish on the adapter they began with, new ones get the new one.
    Without --expect or --new the tag is read first, and moved only if nobody moved it in between.
    """
    from hotshoe.clients import Client

    if new and expect is not None:
        raise ValueError("--new and --expect exclude each other")
    name, tag_name = name_and_tag(target, default_tag=None)
    with Client(server) as client:
        digest = client.get_adapter(reference).digest
        expected = "" if new else expect if expect is not None else _digest_now(client, target)
        adapter = client.update_tag(name, tag_name, digest, expected_digest=expected)
    if json:
        return output.print_json({"previous_digest": expected or None, "adapter": adapter})
    moved = "there already" if expected == digest else f"moved from {output.short_digest(expected)}"
    print(f"{name}:{tag_name}  {moved if expected else 'new'}\n{name}@{adapter.digest}")


def _digest_now(client: "Client", target: str) -> str:
    """Where the tag points; "" when there is none."""
    from hotshoe.clients import NotFound

    try:
        return client.get_adapter(target).digest
    except NotFound:
        return ""
