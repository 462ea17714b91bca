"""hotshoe unload: lets go of an adapter."""

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, TaskReference, one_task


def unload(reference: TaskReference, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Unpin an adapter; drop it when no request uses it."""
    from hotshoe.clients import Client

    named, task = one_task(reference)
    with Client(server) as client:
        client.unload(named, task=task)
    if json:
        return output.print_json({"reference": reference})
    print(f"unloaded {reference}")
