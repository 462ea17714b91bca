"""hotshoe lease, unlease, leases: who uses an adapter elsewhere, so that it is not collected."""

import getpass
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, FullDigests, Json, Reference, Server

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Lease

MAX_HOURS = 30 * 24  # as the server has it

Holder = Annotated[
    str,
    typer.Option("--holder", metavar="NAME", help="Who holds it; default: you, on this machine.", show_default=False),
]


def lease(
    reference: Reference,
    hours: Annotated[
        float, typer.Option("--for", metavar="HOURS", min=0.001, max=MAX_HOURS, help="For how long, from now.")
    ] = 24,
    holder: Holder = "",
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Keep an adapter from being collected for a time.

    So is all that it was made from. To lease it again is for so long from then on.
    """
    from hotshoe.clients import Client

    with Client(server) as client:
        leased = client.lease(reference, holder or _myself(), ttl_seconds=hours * 3600)
    if json:
        return output.print_json(leased)
    print(f"{leased.digest}\nis kept for {output.printable(leased.holder)} until {_until(leased)} UTC")


def unlease(reference: Reference, holder: Holder = "", server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """End a lease before its time."""
    from hotshoe.clients import Client

    with Client(server) as client:
        released = client.release_lease(holder or _myself(), reference)
    if json:
        return output.print_json({"reference": reference, "released": released})
    print("released" if released else f"{holder or _myself()} has no lease of {reference}")


def leases(
    holder: Annotated[str, typer.Option("--holder", metavar="NAME", help="Only this one's.")] = "",
    full: FullDigests = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """List what is leased, by whom and until when.

    Servers lease what they have in memory.
    """
    from hotshoe.clients import Client

    with Client(server) as client:
        held = client.leases(holder)
    if json:
        return output.print_json(held)
    rows = [(one.holder, output.short_digest(one.digest, full=full), _until(one)) for one in held]
    output.print_table(("HOLDER", "DIGEST", "UNTIL (UTC)"), rows)


def _until(lease: "Lease") -> str:
    """To the second."""
    return str(lease.expire_time.ToJsonString()).partition(".")[0].removesuffix("Z")


def _myself() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
