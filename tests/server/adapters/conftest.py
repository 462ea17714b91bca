"""Resources of the tests of adapters in use."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from residency_house import House


@pytest.fixture
def new_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def build(**options: int | bool) -> House:
        houses.append(House(tmp_path / str(len(houses)), **options))
        return houses[-1]

    yield build
    for house in houses:
        house.close()
