"""hotshoe ps: the adapters in the server's memory."""

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, FullDigests, Json, Server


def ps(full: FullDigests = False, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """List the adapters in the server's memory."""
    from hotshoe.clients import Client

    with Client(server) as client:
        adapters = list(client.list_resident())
    if json:
        return output.print_json(adapters)
    rows = [
        (
            output.resident_name(adapter),
            adapter.kind,
            output.enum_word(adapter, "tier"),
            "yes" if adapter.pinned else "",
            adapter.running_requests,
            adapter.waiting_requests,
            output.human_bytes(adapter.size_bytes),
            output.short_digest(adapter.digest, full=full),
        )
        for adapter in adapters
    ]
    output.print_table(("NAME", "KIND", "TIER", "PINNED", "RUNNING", "WAITING", "SIZE", "DIGEST"), rows)
