"""hotshoe ls: the registry's adapters."""

from collections.abc import Sequence
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, FullDigests, Json, Server


def ls(
    name: Annotated[str, typer.Argument(metavar="TEXT", help="Only names that contain this.")] = "",
    kind: Annotated[str, typer.Option(metavar="KIND", help="Only this kind: LORA, IA3, PREFIX_TUNING, …")] = "",
    full: FullDigests = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """List the adapters of the registry, newest first."""
    from hotshoe.clients import Client

    with Client(server) as client:
        adapters = list(client.list_adapters(name_contains=name, kind=kind.upper()))
        if kind and not adapters:
            _check_kind(kind, client.model_info().adapter_kinds)
    if json:
        return output.print_json(adapters)
    rows = [
        (
            adapter.name,
            ",".join(adapter.tags),
            adapter.kind,
            adapter.rank or "",
            output.human_bytes(adapter.size_bytes),
            adapter.base_model,
            output.short_digest(adapter.digest, full=full),
        )
        for adapter in adapters
    ]
    output.print_table(("NAME", "TAGS", "KIND", "RANK", "SIZE", "BASE", "DIGEST"), rows)


def _check_kind(kind: str, kinds: Sequence[str]) -> None:
    if kind.upper() not in kinds:
        raise ValueError(f"--kind: {kind!r} is none of {', '.join(kinds)}")
