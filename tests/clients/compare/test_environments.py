"""Environments of pinned packages. Real ones take gigabytes: here they hold no package, or one that does not exist."""

import subprocess
from pathlib import Path

import pytest

from hotshoe.clients.compare import environments
from hotshoe.clients.compare.environments import Environment, EnvironmentNotMade
from hotshoe.clients.compare.rivals import RIVALS


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environments, "PINS", tmp_path / "pins")
    (tmp_path / "pins").mkdir()
    return tmp_path / "pins"


def test_it_is_made_once_and_again_when_its_pins_change(pins: Path, tmp_path: Path) -> None:
    (pins / "empty.txt").write_text("# nothing\n")
    environment = Environment("empty", tmp_path / "cache")
    assert not environment.complete
    environment.make()
    assert environment.complete
    subprocess.run([environment.python, "-c", "import pip"], check=True)
    mark = environment.home / "venv" / "mark"
    mark.touch()
    environment.make()
    assert mark.exists()
    (pins / "empty.no-deps.txt").write_text("# nothing either\n")
    assert not environment.complete
    environment.make()
    assert environment.complete and not mark.exists()


def test_a_package_that_is_not_to_be_had_is_told_and_leaves_it_incomplete(pins: Path, tmp_path: Path) -> None:
    (pins / "wrong.txt").write_text("./no-such-directory\n")
    environment = Environment("wrong", tmp_path / "cache")
    with pytest.raises(EnvironmentNotMade, match="pip install .* ended with 1\n.*no-such-directory"):
        environment.make()
    assert not environment.complete


@pytest.mark.parametrize("name", sorted({rival.environment for rival in RIVALS if rival.environment}))
def test_every_package_is_pinned_exactly(name: str) -> None:
    paths = [environments.PINS / f"{name}{suffix}.txt" for suffix in ("", ".no-deps")]
    lines = [
        line.partition("#")[0].strip() for path in paths if path.exists() for line in path.read_text().splitlines()
    ]
    names = [line.partition("==")[0].lower() for line in lines if line]
    assert names and all("==" in line for line in lines if line)
    assert len(set(names)) == len(names)


def test_every_rival_has_its_runner() -> None:
    runners = Path(environments.__file__).parent / "runners"
    assert all((runners / f"{rival.runner}.py").exists() for rival in RIVALS)
