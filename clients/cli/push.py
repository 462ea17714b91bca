"""hotshoe push: an adapter of the server, copied to another registry."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress


def push(
    reference: Reference,
    remote: Annotated[
        str, typer.Argument(metavar="REMOTE", help="oci://HOST/PREFIX, s3://BUCKET/PREFIX or dir:///PATH")
    ],
    as_name: Annotated[
        str, typer.Option("--as", metavar="NAME[:TAG]", help="What it is called there; as here if not given.")
    ] = "",
    expect: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Where the tag must point there; '' for nowhere. Not for oci://."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Copy an adapter, and the documents about it, to another registry.

    REMOTE is one that the server was started with (hotshoe serve --remote), or lies below one.
    Only blobs that it lacks are sent.
    """
    from hotshoe.clients import Client, TransferProgress

    name, tag = _name_and_tag(as_name)
    new_bytes = 0
    with Client(server) as client, byte_progress() as update:

        def progress(step: TransferProgress) -> None:
            nonlocal new_bytes
            new_bytes = step.new_bytes
            update("pushing", step.completed_bytes, step.total_bytes)

        adapter = client.push_to(
            remote,
            reference,
            name=name,
            tags=[tag] if tag else (),
            expected_digest=expect,
            progress=progress,
        )
    if json:
        return output.print_json({**output.to_data(adapter), "new_bytes": new_bytes})
    there = f"{remote.rstrip('/')}//{name or adapter.name}"
    done = f"pushed {reference} to {remote}  {output.human_bytes(new_bytes)} new there"
    print(f"{done if new_bytes else f'{reference} is already at {remote}'}\n{there}@{adapter.digest}")


def _name_and_tag(text: str) -> tuple[str, str]:
    return name_and_tag(text, default_tag=None) if ":" in text else (text, "")
