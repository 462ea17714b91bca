"""The `hotshoe` command: its verbs, and how it fails."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from hotshoe.clients.cli.bench import bench
from hotshoe.clients.cli.chat import chat
from hotshoe.clients.cli.compare import compare
from hotshoe.clients.cli.demo import demo
from hotshoe.clients.cli.diff import diff
from hotshoe.clients.cli.doctor import doctor
from hotshoe.clients.cli.export import export
from hotshoe.clients.cli.extract import extract
from hotshoe.clients.cli.failures import EXIT_CODES, told_clearly
from hotshoe.clients.cli.fsck import fsck
from hotshoe.clients.cli.gc import gc
from hotshoe.clients.cli.import_ import import_
from hotshoe.clients.cli.key import key
from hotshoe.clients.cli.key import new as new_key
from hotshoe.clients.cli.key import show as show_keys
from hotshoe.clients.cli.lease import lease, leases, unlease
from hotshoe.clients.cli.lineage import lineage
from hotshoe.clients.cli.load import load
from hotshoe.clients.cli.log import log
from hotshoe.clients.cli.ls import ls
from hotshoe.clients.cli.merge import merge
from hotshoe.clients.cli.mirror import mirror
from hotshoe.clients.cli.ps import ps
from hotshoe.clients.cli.publish import publish
from hotshoe.clients.cli.pull import pull
from hotshoe.clients.cli.push import push
from hotshoe.clients.cli.registry import registry
from hotshoe.clients.cli.report import report
from hotshoe.clients.cli.rollback import rollback
from hotshoe.clients.cli.run import run
from hotshoe.clients.cli.scenario import scenario
from hotshoe.clients.cli.serve import serve
from hotshoe.clients.cli.show import show
from hotshoe.clients.cli.sign import sign
from hotshoe.clients.cli.swap import swap
from hotshoe.clients.cli.tag import tag
from hotshoe.clients.cli.token import new as new_token
from hotshoe.clients.cli.token import show as show_token
from hotshoe.clients.cli.token import token
from hotshoe.clients.cli.top import top
from hotshoe.clients.cli.unload import unload
from hotshoe.clients.cli.untag import untag
from hotshoe.clients.cli.verify import verify
from hotshoe.clients.cli.version import version
from hotshoe.clients.cli.view import unview, view

VERBS = (
    serve,
    registry,
    publish,
    pull,
    export,
    import_,
    ls,
    show,
    lineage,
    diff,
    doctor,
    merge,
    extract,
    report,
    tag,
    untag,
    push,
    mirror,
    key,
    sign,
    verify,
    token,
    rollback,
    log,
    view,
    unview,
    lease,
    unlease,
    leases,
    gc,
    fsck,
    run,
    chat,
    ps,
    load,
    unload,
    top,
    bench,
    demo,
    version,
)
# Verbs that have others below them.
BELOW: Mapping[object, Mapping[str, Callable[..., None]]] = {
    bench: {"compare": compare, "scenario": scenario, "swap": swap},
    key: {"new": new_key, "show": show_keys},
    token: {"new": new_token, "show": show_token},
}
PASS_ON = (serve, registry)  # they read their own arguments, --help too


class Verbs(TyperGroup):
    """Runs a verb, and turns its failure into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with told_clearly():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb.__name__ for verb in VERBS]  # in the order of a first day's use, not of the alphabet


def command_line() -> typer.Typer:
    """The command with all its verbs."""
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    app = typer.Typer(
        cls=Verbs,
        help="Serve one 4-bit base model and hundreds of adapters, any mix in one batch.",
        epilog=f"Exit codes: {codes}.",
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help needs no rich, and is there in half the time
        pretty_exceptions_enable=False,
    )
    for verb in VERBS:
        if verb in BELOW:
            app.add_typer(_group(verb), name=verb.__name__)
            continue
        passes_on = verb in PASS_ON
        settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
        app.command(context_settings=settings if passes_on else None, add_help_option=not passes_on)(verb)
    return app


def _group(above: Callable[..., None]) -> typer.Typer:
    """A verb with those below it. Only bench does something by itself."""
    alone = above is bench
    group = typer.Typer(callback=above, invoke_without_command=alone, no_args_is_help=not alone, rich_markup_mode=None)
    for name, verb in BELOW[above].items():
        group.command(name)(verb)
    return group


def main() -> None:
    """The console script's entry."""
    if sys.argv[1:2] not in (["serve"], ["registry"]):  # whose processes take over the environment
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a failure is one line, and has what gRPC says
    command_line()(prog_name="hotshoe")


if __name__ == "__main__":
    main()
