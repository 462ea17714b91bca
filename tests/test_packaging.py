"""The wheel ships every package: setuptools has no prefix discovery, so the list is by hand."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "registry", "protos", "kernels", "clients", "signing")


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(("hotshoe", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for name in ("*.py", "*.txt", "adapter_config.json")
        for path in (ROOT / folder).rglob(name)
        if path.name != "generate.py"
    }
    assert found == set(listed)
