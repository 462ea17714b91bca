"""hotshoe gc: removes from the registry what nothing reaches."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, FullDigests, Json, Server


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and change nothing.")] = False,
    grace: Annotated[
        float, typer.Option(metavar="HOURS", min=1, help="What was published, uploaded or untagged so lately stays.")
    ] = 24,
    full: FullDigests = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Remove what no tag, view or running server reaches.

    Adapters that kept ones were made from stay. An adapter without a tag is kept for the grace, so tag what you want
    to keep. What goes lies in the registry's .trash until the next collection. Damaged files go from its quarantine
    once what they were is sound again, or nobody's.
    """
    from hotshoe.clients import Client

    with Client(server) as client:
        collected = client.collect_garbage(dry_run=dry_run, grace_seconds=grace * 3600)
    if json:
        return output.print_json(collected)
    for adapter in collected.adapters:
        print(f"{adapter.name}@{output.short_digest(adapter.digest, full=full)}")
    verb = "would remove" if dry_run else "removed"
    freed = output.human_bytes(collected.removed_bytes)
    print(f"{verb} {len(collected.adapters)} adapters, {collected.removed_blobs} blobs, {freed}")
    emptied = output.human_bytes(collected.emptied_bytes)
    print(f"{'would empty' if dry_run else 'emptied'} the trash of {collected.emptied_blobs} blobs, {emptied}")
    if collected.discarded_files:
        discarded = output.human_bytes(collected.discarded_bytes)
        verb = "would discard" if dry_run else "discarded"
        print(f"{verb} {collected.discarded_files} damaged files from quarantine, {discarded}")
