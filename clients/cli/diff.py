"""hotshoe diff: how two adapters differ."""

from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import CompareAdaptersResponse, LinearDifference

REFERENCE = typer.Argument(metavar="REF", help="name, name:tag or name@sha256:…")


def diff(
    first: Annotated[str, REFERENCE],
    second: Annotated[str, REFERENCE],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Compare two adapters: their configs, and their updates.

    For each linear, COSINE is that of the angle between the updates, DISTANCE how far apart they are by the larger
    one's norm.
    """
    from hotshoe.clients import Client

    with Client(server) as client:
        found = client.compare_adapters(first, second)
    if json:
        return output.print_json(found)
    output.print_table(("FIELD", "FIRST", "SECOND"), [("digest", found.first.digest, found.second.digest)])
    if found.fields:
        print()
        output.print_table(("CONFIG", "FIRST", "SECOND"), [(one.field, one.first, one.second) for one in found.fields])
    print()
    rows = [(f"{one.layer}.{one.target}", *_figures(one)) for one in found.linears]
    whole = ("all", "", "", *_angle(found))
    output.print_table(("LINEAR", "NORM 1", "NORM 2", "COSINE", "DISTANCE"), [*rows, whole])
    if found.others:
        print(f"\nnot compared: {', '.join(found.others)}")


def _figures(one: "LinearDifference") -> tuple[str, str, str, str]:
    return f"{one.first_norm:.4g}", f"{one.second_norm:.4g}", *_angle(one)


def _angle(one: "LinearDifference | CompareAdaptersResponse") -> tuple[str, str]:
    return f"{one.cosine:.4f}" if one.HasField("cosine") else "", f"{one.distance:.4f}"
