"""llama.cpp's own server, compiled from the tree that the llama-cpp-python sdist carries, asked over HTTP."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from .protocol import Answer, Outcome, Request, RunClock, Setup, Workload, made_once, serve

SDIST = "llama-cpp-python==0.3.36"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
# gcc 12 thinks that ldtilecfg reads 8 of its 64 bytes, drops the stores of the rest, and AMX faults when it is used.
TILE_CONFIG_HEADER = """\
#ifdef __AMX_TILE__
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
"""
START_SECONDS = 120.0


class LlamaCppServer:
    """Adapters can be given at its start only. Requests name theirs by its place in that list."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._loop = asyncio.new_event_loop()

    def prepare(self, setup: Setup) -> None:
        tree = made_once(Path(setup.home) / "source", unpack_sdist) / "vendor" / "llama.cpp"
        build = Path(setup.home) / "build"
        if not (build / "complete").exists():
            compile_server(tree, build)
        converted = Path(setup.converted)
        made_once(converted / "base-q4_0.gguf", partial(quantize, build, setup))
        for name, directory in setup.adapters.items():
            made_once(converted / f"{name}.gguf", partial(convert_lora, tree, setup, directory))

    def start(self, setup: Setup) -> dict[str, str]:
        converted, program = Path(setup.converted), Path(setup.home) / "build" / "bin" / "llama-server"
        self._ids = {name: number for number, name in enumerate(setup.resident)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [str(program), "--model", str(converted / "base-q4_0.gguf")]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--threads", str(setup.threads), "--threads-batch", str(setup.threads)]
        command += ["--parallel", str(setup.max_concurrency)]
        command += ["--ctx-size", str(setup.max_concurrency * setup.max_tokens)]
        command += ["--batch-size", "2048", "--ubatch-size", "512", "--cache-ram", "0", "--no-ui"]
        if setup.resident:
            files = ",".join(str(converted / f"{name}.gguf") for name in setup.resident)
            command += ["--lora", files, "--lora-init-without-apply"]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        self._wait_until_ready()
        told = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
        version = next(line for line in (told.stdout + told.stderr).splitlines() if "version" in line)
        return {"version": f"{version.removeprefix('version: ')} in {SDIST}"}

    def run(self, workload: Workload) -> Outcome:
        return self._loop.run_until_complete(self._run(workload))

    def close(self) -> None:
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._loop.close()

    def _wait_until_ready(self) -> None:
        assert self._server is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self._server.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"llama-server: not ready after {START_SECONDS:g} s")

    async def _run(self, workload: Workload) -> Outcome:
        import aiohttp

        bodies = [json.dumps(self._body(request, workload.new_tokens)) for request in workload.requests]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._port}", connector=connector) as session:
            await (await session.get("/health")).read()
            clock = RunClock()
            chunks = await asyncio.gather(*(self._chunks(session, body, clock) for body in bodies))
        return Outcome([_answer(of_one) for of_one in chunks])

    async def _chunks(self, session: Any, body: str, clock: RunClock) -> list[tuple[float, bytes]]:
        chunks = []
        async with session.post("/completion", data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: "):
                    chunks.append((clock.seconds(), line))
        return chunks

    def _body(self, request: Request, new_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": request.prompt,
            "n_predict": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }
        if self._ids:  # those that a request does not name keep the scale of the server's start, 0
            scales = {self._ids[request.adapter]: 1.0} if request.adapter else {}
            body["lora"] = [{"id": number, "scale": scale} for number, scale in scales.items()]
        return body


def _answer(chunks: list[tuple[float, bytes]]) -> Answer:
    answer = Answer()
    for seconds, line in chunks:
        data = json.loads(line.removeprefix(b"data: "))
        if data.get("stop"):  # the last event may repeat what came before
            continue
        answer.tokens += data["tokens"]
        answer.times += [seconds] * len(data["tokens"])
    return answer


def unpack_sdist(directory: Path) -> None:
    """Fetches the source package through pip and unpacks it as `directory`."""
    download = directory.with_name("download")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(download), SDIST], check=True, stdout=sys.stderr)
    [archive] = download.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    [inner] = directory.iterdir()
    for path in list(inner.iterdir()):
        path.rename(directory / path.name)
    inner.rmdir()
    shutil.rmtree(download)


def compile_server(tree: Path, build: Path) -> None:
    """Compiles for this very CPU, with the environment's own cmake and ninja and the system's compiler; ten minutes."""
    build.mkdir(exist_ok=True)
    header = build / "tile_config.h"
    header.write_text(TILE_CONFIG_HEADER)
    tools = Path(sys.executable).parent
    environ = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-G", "Ninja", "-S", str(tree), "-B", str(build)]
    configure += [f"-D{name}={value}" for name, value in OPTIONS.items()]
    configure += [f"-DCMAKE_CXX_FLAGS=-include {header} -w"]
    compile_ = ["cmake", "--build", str(build), "--target", "llama-server", "llama-quantize"]
    for command in (configure, [*compile_, "--parallel", str(os.cpu_count() or 1)]):
        subprocess.run(command, check=True, env=environ, stdout=sys.stderr)
    (build / "complete").touch()


def quantize(build: Path, setup: Setup, path: Path) -> None:
    """Q4_0: of its 4-bit types the one with the fast kernels, much faster than the Q4_1 that the package ships."""
    command = [str(build / "bin" / "llama-quantize"), "--allow-requantize", setup.gguf, str(path), "Q4_0"]
    subprocess.run([*command, str(setup.threads)], check=True, stdout=sys.stderr)


def convert_lora(tree: Path, setup: Setup, directory: str, path: Path) -> None:
    """A PEFT LoRA as GGUF in float16, by the script of the tree."""
    command = [sys.executable, str(tree / "convert_lora_to_gguf.py"), "--base", setup.base, "--outtype", "f16"]
    environ = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'gguf-py'}"}
    subprocess.run([*command, "--outfile", str(path), directory], check=True, env=environ, stdout=sys.stderr)


if __name__ == "__main__":
    serve(LlamaCppServer())
