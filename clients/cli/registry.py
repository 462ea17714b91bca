"""hotshoe registry: becomes a registry's process, without a base model."""

import os
import sys

import typer


def registry(context: typer.Context) -> None:
    """Serve a registry alone to OCI clients, make its users, or check it; registry --help."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "hotshoe.registry", *context.args])
