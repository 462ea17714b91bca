"""hotshoe registry: becomes a registry's process, without a base model."""

import os
import sys

import typer


def registry(context: typer.Context) -> None:
    """Serve a registry without a model, make its users, or check it."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "hotshoe.registry", *context.args])
