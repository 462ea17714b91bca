"""A real server in another process, on free ports of 127.0.0.1, and what tests do with it."""

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from hotshoe.clients.bound_process import bound
from hotshoe.protos.v1 import generation_pb2_grpc, registry_pb2, registry_pb2_grpc, residency_pb2_grpc

START_SECONDS = 240
END_SECONDS = 120


@dataclass
class ServerProcess:
    """A server that has said that it is ready; `log` is what it wrote to standard error so far."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log_file: Path
    channels: list[grpc.Channel] = field(default_factory=list)

    def channel(self, **options: int) -> grpc.Channel:
        channel = grpc.insecure_channel(
            self.ready["grpc"], options=[(key.replace("__", "."), value) for key, value in options.items()]
        )
        self.channels.append(channel)
        return channel

    @property
    def generation(self) -> Any:
        return generation_pb2_grpc.GenerationServiceStub(self.channel())

    @property
    def registry(self) -> Any:
        return registry_pb2_grpc.RegistryServiceStub(self.channel())

    @property
    def residency(self) -> Any:
        return residency_pb2_grpc.ResidencyServiceStub(self.channel())

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        request = urllib.request.Request(f"http://{self.ready['http']}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's samples that have all these values of labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.partition("{")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(f'"{label}"' in line for label in labels))

    def taken(self) -> float:
        """How many requests the engine has been given, as of one moment."""
        counts = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:request_success_total{")
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(counts)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = END_SECONDS) -> int:
        return self.process.wait(timeout)

    def end(self) -> None:
        for channel in self.channels:
            channel.close()
        if self.process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def until(condition: Callable[[], object], *, seconds: float = 200.0) -> None:
    """Waits until it holds. Raises AssertionError if it does not come to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def command(base: Path | str, registry: Path, *arguments: str) -> list[str]:
    """How a server of these tests is started."""
    fixed = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--threads", "1", "--check-every-step"]
    paths = ["--base", str(base), "--registry", str(registry), "--backend", "reference"]
    return [sys.executable, "-m", "hotshoe.server", *fixed, *paths, *arguments]


def limited(arguments: list[str], *, files: int, limit: str = "-n") -> list[str]:
    """A command whose process may have so many files open: by both limits, or with "-Sn" by the soft one alone."""
    return ["/bin/sh", "-c", f'ulimit {limit} {files} && exec "$@"', "sh", *arguments]


def launch(directory: Path, arguments: list[str]) -> ServerProcess:
    """Starts a server and waits for its ready line. Raises AssertionError, with its log, if it ends instead."""
    log_file = directory / f"server-{time.monotonic_ns()}.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            bound(arguments, parent=os.getpid()),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda stdout=process.stdout: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=START_SECONDS)
    except queue.Empty:
        line = ""
    if not line:
        process.kill()
        process.wait()
        raise AssertionError(f"the server did not start:\n{log_file.read_text()}")
    return ServerProcess(process, json.loads(line), log_file)


def upload(server: ServerProcess, path: Path) -> registry_pb2.Blob:
    """Uploads one file whole and returns what names it."""
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = registry_pb2.Blob(digest=digest, size_bytes=len(data), file_name=path.name)
    chunk = 1 << 18
    messages = [registry_pb2.UploadBlobRequest(blob=blob)]
    messages += [
        registry_pb2.UploadBlobRequest(data=data[start : start + chunk], offset=start)
        for start in range(0, len(data), chunk)
    ]
    response = server.registry.UploadBlob(iter(messages))
    assert response.committed_bytes == len(data)
    return blob


def publish(server: ServerProcess, name: str, directory: Path, *tags: str) -> registry_pb2.Adapter:
    """Publishes an adapter directory and returns the adapter."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    blobs = [upload(server, directory / file) for file in files]
    request = registry_pb2.PublishAdapterRequest(name=name, tags=tags or ("latest",), blobs=blobs)
    return server.registry.PublishAdapter(request).adapter
