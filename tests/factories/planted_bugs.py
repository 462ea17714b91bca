"""Bugs that are planted in servers which a test starts, to see that it finds them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

_LEAK = """
import asyncio
kept, create = [], asyncio.Event.__init__
def create_and_keep(self):
    create(self)
    kept.append(b"x" * {size})
asyncio.Event.__init__ = create_and_keep
"""
_PAGES_OF_ANYBODY = """
import sys
if "hotshoe.server" in sys.orig_argv:
    from hotshoe.server.engine import prefix_cache
    seed = prefix_cache.chain_seed
    prefix_cache.chain_seed = lambda base, adapters, tenant: seed(base, [], tenant)
"""


def leak(size: int) -> contextlib.AbstractContextManager[None]:
    """Servers that are started in the block lose so many bytes with each request."""
    return _planted(_LEAK.format(size=size))


def pages_of_anybody() -> contextlib.AbstractContextManager[None]:
    """Servers that are started in the block find cached pages whatever adapter they are of."""
    return _planted(_PAGES_OF_ANYBODY)


@contextlib.contextmanager
def _planted(program: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        Path(directory, "sitecustomize.py").write_text(program)
        paths = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
        with mock.patch.dict(os.environ, PYTHONPATH=paths):
            yield
