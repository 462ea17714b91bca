"""hotshoe load: brings an adapter into memory ahead of its first request."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, TaskReference, one_task
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.protos.v1.residency_pb2 import LoadAdapterResponse


class TierChoice(StrEnum):
    """Where an adapter may be loaded to."""

    HOST = "host"
    DEVICE = "device"


def load(
    reference: TaskReference,
    tier: Annotated[TierChoice, typer.Option(help="Host memory, or the device that computes.")] = TierChoice.DEVICE,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it there until it is unloaded.")] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Load an adapter ahead of its first request."""
    from hotshoe.clients import Client

    named, task = one_task(reference)
    with Client(server) as client, byte_progress() as update:
        adapter = client.load(
            named,
            task=task,
            tier="host" if tier is TierChoice.HOST else "device",
            pin=pin,
            progress=lambda step: update(_doing(step), step.completed_bytes, step.total_bytes),
        )
    if json:
        return output.print_json(adapter)
    where = output.enum_word(adapter, "tier") + (", pinned" if adapter.pinned else "")
    # By the name that was asked for: the server tells one of those that the digest has.
    print(f"{reference}  {where}  {output.human_bytes(adapter.size_bytes)}")
    print(f"{re.split('[:@]', named)[0]}@{adapter.digest}")


def _doing(step: "LoadAdapterResponse") -> str:
    return "fetching" if output.enum_word(step, "stage") == "downloading" else "loading"
