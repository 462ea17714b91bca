"""Two replicas over one registry, each ended and started anew again and again, under clients that name both.

    PYTHONPATH=tests/factories python tests/factories/rolling.py

Ten times each, by SIGTERM: no request fails, each is answered as it was before, and both ends exit with 0. Exits with
1, and says what was wrong.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from free_ports import free_ports
from model_directories import tiny_model, write_tiny_model
from peft_adapters import write_lora, write_prefix
from server_process import ServerProcess, command, launch, publish, until

from hotshoe.clients import Client, RetryPolicy
from hotshoe.protos.v1 import registry_pb2

CALLERS = 8
PROMPTS = [f"What is asked the {number}th time" for number in range(6)]
ADAPTERS = ([], ["poet"], ["prefixed"], ["poet", "prefixed"])
TOKENS = 12
ANSWERS = 100  # while one drains
PATIENCE_SECONDS = 200.0
PATIENT = RetryPolicy(max_attempts=10)  # a busy machine may have both say for a moment that they do not serve


class Replicas:
    """Two servers on ports that stay theirs."""

    def __init__(self, directory: Path, base: Path, cache: Path) -> None:
        self._directory = directory
        self._commands = []
        for port in free_ports(2):
            flags = ("--base-cache", str(cache), "--listen", f"127.0.0.1:{port}")
            self._commands.append(command(base, directory / "registry", *flags))
        self.servers: list[ServerProcess] = [launch(directory, arguments) for arguments in self._commands]

    @property
    def target(self) -> str:
        return "ipv4:" + ",".join(server.ready["grpc"] for server in self.servers)

    def restart(self, number: int, meanwhile: Callable[[], object]) -> int:
        """Ends one, which drains for as long as `meanwhile` takes; gives its exit code when it is there again."""
        server, release = self.servers[number], threading.Event()
        upload = server.registry.UploadBlob.future(_held_upload(release))
        until(lambda: server.metric("grpc_server_started_total", "UploadBlob") > 0)
        server.terminate()
        until(lambda: "draining" in server.log)
        try:
            meanwhile()
        finally:
            release.set()
        upload.result()
        code = server.wait()
        server.end()
        self.servers[number] = launch(self._directory, self._commands[number])
        return code

    def end(self) -> None:
        for server in self.servers:
            server.end()


def _held_upload(release: threading.Event) -> Iterator[registry_pb2.UploadBlobRequest]:
    yield registry_pb2.UploadBlobRequest(blob={"digest": f"sha256:{'1' * 64}", "size_bytes": 1, "file_name": "x"})
    release.wait(PATIENCE_SECONDS)


class Callers:
    """Threads that ask the same again and again, and know what they were answered before. `wrong` must stay empty."""

    def __init__(self, target: str, *, seed: int) -> None:
        self.answers: Counter[str] = Counter()  # by what was done meanwhile
        self.wrong: list[str] = []
        self.meanwhile = "nothing"
        self._target, self._seed = target, seed
        self._known: dict[tuple[str, ...], str] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until there are `ANSWERS` more while this is done."""
        before = self.answers[self.meanwhile]
        until(lambda: self.answers[self.meanwhile] >= before + ANSWERS or self.wrong)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        draw = random.Random(f"{self._seed} {number}")
        with Client(self._target, retry=PATIENT) as client:
            while not self._over.is_set():
                try:
                    self._ask(client, draw)
                except Exception as error:
                    self.wrong.append(f"{self.meanwhile}: {error!r}")

    def _ask(self, client: Client, draw: random.Random) -> None:
        prompt, adapters = draw.choice(PROMPTS), draw.choice(ADAPTERS)
        options: Any = {"adapters": adapters, "max_new_tokens": TOKENS, "ignore_eos": True}
        if draw.random() < 0.5:
            text = client.generate(prompt, **options).completions[0].text
        else:
            with client.stream(prompt, **options) as stream:
                text = "".join(delta.text_delta for delta in stream)
        with self._lock:
            self.answers[self.meanwhile] += 1
            known = self._known.setdefault((prompt, *adapters), text)
        if text != known:
            self.wrong.append(f"{self.meanwhile}: {prompt} {adapters}: {text!r}, before {known!r}")


def roll(replicas: Replicas, directory: Path, restarts: int, *, seed: int = 1) -> Callers:
    """Restarts one replica and then the other, so many times in all, under callers; gives these, ended."""
    model = tiny_model()
    publish(replicas.servers[0], "poet", write_lora(directory / "poet", model))
    publish(replicas.servers[0], "prefixed", write_prefix(directory / "prefixed", model))
    callers = Callers(replicas.target, seed=seed)
    try:
        for turn in range(restarts):
            callers.meanwhile = f"restart {turn}"
            if code := replicas.restart(turn % 2, callers.wait):
                callers.wrong.append(f"{callers.meanwhile}: exit code {code}")
    finally:
        callers.end()
    return callers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rolls", type=int, default=10)
    rolls = parser.parse_args().rolls
    with tempfile.TemporaryDirectory(prefix="rolling-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        write_tiny_model(directory / "tiny")
        replicas = Replicas(directory, directory / "tiny", directory / "bases")
        stack.callback(replicas.end)
        started = time.monotonic()
        callers = roll(replicas, directory, 2 * rolls)
        seconds = time.monotonic() - started
    print(*callers.wrong[:8], sep="\n")
    print(
        f"{callers.answers.total()} answers while each of two replicas was started anew {rolls} times, in "
        f"{seconds:.0f} s, {min(callers.answers.values())} at least in each restart: {len(callers.wrong)} wrong"
    )
    return 1 if callers.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
