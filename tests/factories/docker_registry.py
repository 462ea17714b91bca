"""Debian's docker-registry (distribution 2.8.2) in a process of its own, on a free port of 127.0.0.1."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from free_ports import free_ports

from hotshoe.clients.bound_process import bound

TOOL = "docker-registry"
START_SECONDS = 100


class DockerRegistry:
    """A registry in `directory`; whoever starts it again finds what it held.

    Args:
        auth: the `auth` part of its configuration.
        mirrors: the URL of the registry that it pulls through from.
        tls: certificate and key.
    """

    def __init__(
        self,
        directory: Path,
        *,
        auth: Mapping[str, Any] | None = None,
        mirrors: str = "",
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        [self.port] = free_ports(1)
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.data)},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.host, "secret": "of these tests"},
        }
        if auth:
            config["auth"] = dict(auth)
        if mirrors:
            config["proxy"] = {"remoteurl": mirrors}
        if tls:
            config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "config.yml"
        self._config.write_text(json.dumps(config))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            command = bound([str(shutil.which(TOOL)), "serve", str(self._config)], parent=os.getpid())
            self._process = subprocess.Popen(command, stderr=log, env=_environment())
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"{TOOL} did not start:\n{(self.directory / 'log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def collect_garbage(self) -> None:
        """Removes what no tag reaches, beneath the running registry."""
        command = [TOOL, "garbage-collect", "--delete-untagged", str(self._config)]
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=_environment())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=100, **options)


def is_missing() -> bool:
    return shutil.which(TOOL) is None


def _environment() -> dict[str, str]:
    # It panics at the start where this is set.
    return {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
