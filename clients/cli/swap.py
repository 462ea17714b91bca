"""hotshoe bench swap: what fetching a cold adapter adds to the first token."""

from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import FAILED
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server


def swap(
    adapters: Annotated[str, typer.Option(metavar="REF,…", help="They are loaded and unloaded in turn.")],
    tries: Annotated[int, typer.Option(metavar="N", min=1, help="With an adapter in each place.")] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts.")] = 0,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Measure first tokens with adapters on the device, in host memory and on disk.

    Loads and unloads these adapters while nothing else should run there. Ends with 1 if a request failed.
    """
    import asyncio

    from hotshoe.clients.swaps import measure_swaps

    names = [name.strip() for name in adapters.split(",") if name.strip()]
    if not names:
        raise ValueError("--adapters: name one at least")
    found = asyncio.run(measure_swaps(server, names, tries=tries, seed=seed))
    if json:
        output.print_json({"seconds": found.seconds, "errors": dict(found.errors)})
    else:
        warm = found.medians.get("device", 0.0)
        rows = [
            (place, *(f"{1e3 * seconds:.1f} ms" for seconds in (middle, max(found.seconds[place]), middle - warm)))
            for place, middle in found.medians.items()
        ]
        output.print_table(("ADAPTER ON", "FIRST TOKEN", "WORST", "ADDED"), rows)
    if found.errors:
        raise typer.Exit(FAILED)
