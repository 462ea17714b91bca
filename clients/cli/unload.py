"""hotshoe unload: lets go of an adapter."""

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server


def unload(reference: Reference, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Unpin an adapter; drop it when no request uses it."""
    from hotshoe.clients import Client

    with Client(server) as client:
        client.unload(reference)
    if json:
        return output.print_json({"reference": reference})
    print(f"unloaded {reference}")
