"""The README's Python, and the registry's README's commands on exports, imports and signatures, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotshoe.clients import Client
from hotshoe.clients.local_server import LocalServer

README = Path(__file__).parents[2] / "README.md"
OF_THE_REGISTRY = README.parent / "registry" / "README.md"
MARK = "<!-- tests/clients/test_readme.py runs this -->\n```sh\n"
TOOLS = ("skopeo", "umoci")


def test_the_readmes_python_runs(
    server: LocalServer, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, sweep = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(first.replace("127.0.0.1:50051", server.grpc).replace("my-lora/", str(adapters["amber"])), names)
    told = capsys.readouterr().out
    with Client(server.grpc) as client:
        assert client.get_adapter("team/pirate:v1").digest in told and "completion_tokens: " in told
        client.publish_directory(adapters["birch"], "team/json", tags=["v1"])
        exec(sweep, names | {"client": client})
    assert sweep.startswith("for t in (0, 0.25, 0.5, 0.75, 1):") and capsys.readouterr().out


@pytest.mark.skipif(None in map(shutil.which, TOOLS), reason=f"not installed: one of {', '.join(TOOLS)}")
def test_its_commands_do_what_the_registry_says(server: LocalServer, adapters: dict[str, Path], tmp_path: Path) -> None:
    blocks = [block.partition("```")[0] for block in OF_THE_REGISTRY.read_text().split(MARK)[1:]]
    assert [len(re.findall(r"^hotshoe ", block, re.MULTILINE)) for block in blocks] == [6, 4]
    with Client(server.grpc) as client:
        published = client.publish_directory(adapters["amber"], "team/pirate", tags=["v1"]).adapter
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "hotshoe"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m hotshoe.clients.cli "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOTSHOE_SERVER": server.grpc}
    for block in blocks:
        subprocess.run(["sh", "-euc", block], cwd=tmp_path, env=environment, check=True, timeout=240)
    with Client(server.grpc) as client:
        assert client.get_adapter("team/pirate:again").digest == published.digest
    weights = (adapters["amber"] / "adapter_model.safetensors").read_bytes()
    for place in ("pirate", "pirate.ollama", "unpacked/rootfs/models"):
        assert (tmp_path / place / "adapter_model.safetensors").read_bytes() == weights
