"""hotshoe top: a live view of the server."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hotshoe.protos.v1.residency_pb2 import ResidentAdapter, WatchStatusResponse

COLUMNS = ("ADAPTER", "KIND", "TIER", "RUNNING", "WAITING", "SIZE", "IDLE", "DIGEST")


def top(
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Between two frames.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, then end.")] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Watch requests, tokens per second, cache and adapters.

    With --json each frame is one line.
    """
    from hotshoe.clients import Client

    with Client(server) as client, client.watch_status(interval_seconds=interval) as frames:
        if not (once or json):
            return _watch(frames, server)
        for frame in frames:
            if json:
                output.print_json(frame)
            else:
                print(_totals(frame, server), end="\n\n")
                output.print_table(COLUMNS, _rows(frame))
            if once:
                return


def _watch(frames: "Iterable[WatchStatusResponse]", server: str) -> None:
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        for frame in frames:
            live.update(_view(frame, server), refresh=True)


def _view(frame: "WatchStatusResponse", server: str) -> "RenderableType":
    """One frame on a terminal: a line of totals over a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in _rows(frame):
        table.add_row(*(Text(output.printable(cell)) for cell in row))
    return Group(Text(_totals(frame, server)), Text(), table)


def _totals(frame: "WatchStatusResponse", server: str) -> str:
    on_device = sum(output.enum_word(adapter, "tier") == "device" for adapter in frame.adapters)
    return (
        f"hotshoe {server}   running {frame.running_requests}   waiting {frame.waiting_requests}   "
        f"{frame.generation_tokens_per_second:.1f} tokens/s   kv {frame.kv_cache_usage:.0%}   "
        f"adapters {on_device}/{frame.max_resident_adapters}"
    )


def _rows(frame: "WatchStatusResponse") -> list[tuple[str, ...]]:
    """The adapters in memory, the busiest first."""
    by_load = sorted(frame.adapters, key=lambda one: (-one.running_requests, -one.waiting_requests, one.name))
    return [_cells(adapter) for adapter in by_load]


def _cells(adapter: "ResidentAdapter") -> tuple[str, ...]:
    busy = adapter.running_requests or not adapter.HasField("last_use_time")
    idle = "" if busy else f"{max(0.0, time.time() - adapter.last_use_time.ToNanoseconds() / 1e9):.0f} s"
    return (
        output.resident_name(adapter),
        adapter.kind,
        output.enum_word(adapter, "tier") + (" pinned" if adapter.pinned else ""),
        str(adapter.running_requests),
        str(adapter.waiting_requests),
        output.human_bytes(adapter.size_bytes),
        idle,
        output.short_digest(adapter.digest),
    )
