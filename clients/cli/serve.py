"""hotshoe serve: becomes the server's process."""

import os
import sys

import typer


def serve(context: typer.Context) -> None:
    """Serve a base model and its adapters; --help lists all."""
    # -P: the working directory must not be importable, its folders could shadow the server's modules.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "hotshoe.server", *context.args])
