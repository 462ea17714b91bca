"""hotshoe unload: lets go of an adapter."""

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, TaskReference, one_task


def unload(reference: TaskReference, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Unpin an adapter; drop it when no request uses it."""
    from hotshoe.clients import Client

    named, task = one_task(reference)
    with Client(server) as client:
        unloaded = client.unload(named, task=task)
    if json:
        return output.print_json({"reference": reference, **output.to_data(unloaded)})
    if unloaded.in_use:
        print(f"{reference} is in use; unloaded once it is not")
    else:
        print(f"unloaded {reference}" if unloaded.found else f"{reference} is not loaded")
