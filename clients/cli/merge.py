"""hotshoe merge: a new adapter from published ones, made by the server."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag, stacked


def merge(
    sources: Annotated[list[str], typer.Argument(metavar="REF[#TASK][=WEIGHT]", help="Two adapters or more.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME[:TAG]", help="What to call the new one.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Of low-rank adapters: linear, cat (never cut), svd (cut to rank=N), slerp, nuslerp, karcher, "
            "model_stock, ties, dare_linear, dare_ties, della or breadcrumbs. Of IA3: linear, with space=geometric for "
            "products of powers. Of DoRA, biases, norms, token rows, embedding and head, alone or with low-rank "
            "adapters: linear, cat or svd. Of rotations and all else on weights: svd. Of prefixes, or of soft prompts: "
            "cat, in order.",
        ),
    ] = "linear",
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the method, or rank=N to cut to; may be repeated."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Merge adapters of one sort into a new one.

    Its manifest names its parents and the recipe. The same recipe over the same parents gives the same digest.
    """
    from hotshoe.clients import Client

    new_name, tag = name_and_tag(name)
    parameters = dict(map(_parameter, param or []))
    with Client(server) as client:
        response = client.merge_adapters(
            [stacked(source) for source in sources], new_name, method=method, parameters=parameters, tags=[tag]
        )
    if json:
        return output.print_json(response)
    adapter = response.adapter
    print(f"{adapter.name}@{adapter.digest}")
    size = f"{adapter.kind}, {output.human_bytes(adapter.size_bytes)}"
    print(f"{size}, rank {adapter.rank}, {response.energy_kept:.1%} of the merge kept" if adapter.rank else size)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--param: {text!r} is not NAME=VALUE")
    return name, value
