"""Resources of the store's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hotshoe.registry.registry import Registry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store of a test lies."""
    return tmp_path / "store"


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    store = Registry(root)
    yield store
    store.close()
