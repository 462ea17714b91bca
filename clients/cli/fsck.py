"""hotshoe fsck: the server reads and hashes all that its registry has."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server
from hotshoe.clients.cli.progress import byte_progress


def fsck(
    refetch: Annotated[
        bool, typer.Option("--refetch", help="Fetch what is damaged or lost from the server's remotes.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Check every byte that the registry has. What is damaged goes to its quarantine; a publish, too, heals it.

    Others publish, load and answer meanwhile. Exit code 1: something is damaged or lost, and not healed.
    """
    from hotshoe.clients import Client

    with Client(server) as client, byte_progress() as update:
        report = client.check_store(
            heal=refetch, progress=lambda step: update("checking", step.checked_bytes, step.total_bytes)
        )
    found = {"damaged": report.corrupt_digests, "missing": report.missing_digests}
    unhealed = {digest for digests in found.values() for digest in digests} - set(report.healed_digests)
    if json:
        output.print_json(report)
    else:
        for word, digests in found.items():
            for digest in digests:
                print(f"{word}  {digest}" + ("" if digest in unhealed else "  fetched again"))
        print(f"{report.blobs} blobs are sound, {output.human_bytes(report.blob_bytes)}")
        if report.quarantined_files:
            kept = f"{report.quarantined_files} damaged files, {output.human_bytes(report.quarantined_bytes)}"
            print(f"in quarantine {kept}; the only copies of {len(report.only_damaged_digests)} blobs")
    if unhealed:
        raise typer.Exit(1)
