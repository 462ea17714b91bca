"""The benchmark of copies, and what it is there to show: a pull holds little of an adapter in memory, however large."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20


@pytest.mark.parametrize("kind", ["dir", "oci", "s3"])
def test_a_pull_holds_little_in_memory(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    match kind:
        case "dir":
            url = f"dir://{tmp_path / 'remote'}"
        case "oci":
            url = f"oci://{request.getfixturevalue('docker').host}/bench"
        case _:
            url = str(request.getfixturevalue("s3")().url)
    command = [sys.executable, "-P", "-m", "hotshoe.registry.bench", "--remote", url, "--megabytes", "9", "40"]
    done = subprocess.run([*command, "--rounds", "1", "--json"], check=True, stdout=subprocess.PIPE, timeout=120)
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert (small["size_bytes"], large["size_bytes"]) > (8 * MIB, 32 * MIB)
    assert small["pull_growth_bytes"] < 12 * MIB and large["pull_growth_bytes"] < 12 * MIB
    assert all(large[field] > 0 for field in ("push_seconds", "push_ratio", "pull_seconds", "pull_ratio"))
