"""The benchmark of copies, and what it is there to show: a pull holds little of an adapter in memory, however large."""

import json
import subprocess
import sys
from collections.abc import Callable

from docker_registry import DockerRegistry

from hotshoe.registry.remotes.s3 import S3Remote

MIB = 1 << 20


def test_a_pull_holds_little_in_memory(docker: DockerRegistry, s3: Callable[[], S3Remote]) -> None:
    remotes = [f"oci://{docker.host}/bench", str(s3().url)]
    command = [sys.executable, "-P", "-m", "hotshoe.registry.bench", "--remote", remotes[0], "--remote", remotes[1]]
    arguments = ["--megabytes", "45", "--rounds", "1", "--json"]
    done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, timeout=250)
    copied = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["remote"] for one in copied] == remotes
    for one in copied:
        assert one["size_bytes"] > 40 * MIB and 0 < one["pull_growth_bytes"] < 20 * MIB
        assert all(one[field] > 0 for field in ("push_seconds", "push_ratio", "pull_seconds", "pull_ratio"))
