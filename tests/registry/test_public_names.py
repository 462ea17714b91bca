"""What `hotshoe.registry` names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from store_adapters import lora_files, publish

from hotshoe import registry as names
from hotshoe.registry import errors
from hotshoe.registry.registry import Registry

README = Path(__file__).parents[2] / "registry" / "README.md"


def test_what_the_registry_names_is_imported_when_it_is_used() -> None:
    program = (
        "import sys; from hotshoe import registry; heavy = {'numpy', 'sqlite3', 'rfc8785'}; "
        "print(heavy & {*sys.modules}, {*registry.__all__} - {*dir(registry)}, "
        "{getattr(registry, name).__name__ for name in registry.__all__} ^ {*registry.__all__}, heavy - {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["set()"] * 4
    with pytest.raises(ImportError, match="Regsitry"):
        from hotshoe.registry import Regsitry  # type: ignore[attr-defined]  # noqa: F401


def test_every_error_of_the_registry_is_among_them() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in classes if issubclass(getattr(errors, name), errors.RegistryError)} <= {*names.__all__}


def test_the_readmes_python_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Registry(tmp_path / "registry") as registry:
        record, _ = publish(registry, "team/pirate", lora_files(), tags=["v1"])
    [block] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.startswith(f"LORA {record.digest} ")
