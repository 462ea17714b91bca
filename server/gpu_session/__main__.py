"""What a short session on a GPU has to find out, in one command of under eight minutes, its table last.

    python -m hotshoe.server.gpu_session --out build/gpu [--dry-run]

    ours       decode steps and prompts of a random Llama-3.1-8B in NF4, with 0, 1, 8 and 32 adapters; rows apart, and
               whether their logits are right
    serve      `hotshoe serve` on such a base, asked by `hotshoe bench`: streams of the base and of 8 adapters, and what
               a cold adapter adds to the first token
    peft       the steps of `ours` through transformers, PEFT and bitsandbytes
    kernels    each Triton kernel against what a user would run instead (`kernels.bench`)
    fallback   our decoder with bitsandbytes' linears
    tests      those marked `gpu`, a process for each file

A part is a process of its own with a time limit, and writes each figure when it has it: one that fails, hangs or runs
out of time loses nothing of the others, and what it leaves of its time goes to those behind it. DIR gets PART.jsonl and
PART.log, results.csv, and results.md for kernels/RESULTS.md. A dry run goes the same way on the CPU, in Triton's
interpreter, with a tiny model; its server computes with plain torch.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from hotshoe.server.gpu_session.ours import Row
from hotshoe.server.gpu_session.report import write_results
from hotshoe.server.gpu_session.sizes import SessionSizes, device_of, sizes_of

PARTS = ("ours", "serve", "peft", "kernels", "fallback", "tests")
FALLBACK = "linear=bitsandbytes"
ROOT = Path(__file__).parents[2]
TEST_FOLDERS = ("tests/kernels/triton", "tests/server/triton", "tests/server/engine/triton")


def main(arguments: list[str] | None = None) -> int:
    """Runs the session, or one part of it. 0 if every part ended by itself and no test failed."""
    parser = argparse.ArgumentParser("python -m hotshoe.server.gpu_session", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; made if missing")
    parser.add_argument(
        "--scratch", type=Path, help="keep the random base there for the next session, gigabytes (default: nowhere)"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: all)")
    parser.add_argument("--in-process", choices=PARTS, help=argparse.SUPPRESS)  # what a part's own process is told
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device: only --dry-run runs here")
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, not {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        scratch = options.scratch or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="hotshoe-gpu-")))
        session = Session(options.out.resolve(), scratch.resolve(), dry_run=options.dry_run)
        if not options.in_process:
            return run_parts(parts, session)
        run_part(options.in_process, session)
    return 0


@dataclass(frozen=True, slots=True)
class Session:
    """Where a session leaves what it finds, and what it needs meanwhile."""

    out: Path
    scratch: Path
    dry_run: bool

    @property
    def sizes(self) -> SessionSizes:
        return sizes_of(dry_run=self.dry_run)


def run_parts(parts: list[str], session: Session) -> int:
    """Runs parts one after the other and writes their tables; 0 if every one ended by itself and no test failed."""
    device, sound = _device_name(session.dry_run), True  # asked first: a part may leave the device unable to answer
    due = time.monotonic()
    for part in parts:
        started = time.monotonic()
        due += session.sizes.part_seconds[part]
        ended = run_tests(session, due - started) if part == "tests" else run_process(part, session, due - started)
        sound = sound and ended
        print(f"{part}: {time.monotonic() - started:.0f} s{'' if ended else ', NOT WHOLE: see its log'}", flush=True)
    print(write_results(session.out, device), flush=True)
    return 0 if sound else 1


def run_part(part: str, session: Session) -> None:
    """Measures one part in this process; each row is on disk as soon as it is known."""
    with (session.out / f"{part}.jsonl").open("w") as file:
        for row in rows_of(part, session):
            file.write(json.dumps(row) + "\n")
            file.flush()


def rows_of(part: str, session: Session) -> Iterator[Row]:
    """A part's figures, as they come."""
    from hotshoe.server.gpu_session import kernel_rows, ours, serve, theirs

    sizes, device = session.sizes, device_of(dry_run=session.dry_run)
    if part == "ours":
        return ours.measure(sizes, device)
    if part == "serve":
        return serve.measure(sizes, device, session.scratch)
    if part == "fallback":
        return ours.measure(sizes, device, FALLBACK)
    if part == "peft":
        return theirs.measure(sizes, device)
    return kernel_rows.measure(sizes, device)


def run_process(part: str, session: Session, limit_seconds: float) -> bool:
    """Runs a part in a process of its own; whether it ended well and in time."""
    command = [sys.executable, "-m", "hotshoe.server.gpu_session", "--out", str(session.out), "--in-process", part]
    command += ["--scratch", str(session.scratch), *(["--dry-run"] if session.dry_run else [])]
    with (session.out / f"{part}.log").open("w") as log:
        return _await(_start(command, log, dry_run=session.dry_run), time.monotonic() + limit_seconds)


def run_tests(session: Session, limit_seconds: float) -> bool:
    """Runs the tests for a GPU, all files side by side; whether all passed in time."""
    out, dry_run = session.out, session.dry_run
    files = [path for folder in TEST_FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))]
    if dry_run:
        files = [path for path in files if path.stem == "test_triton_silu_mul"]
    deadline = time.monotonic() + limit_seconds
    running = {}
    for path in files:
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(path)]
        with (out / f"{path.stem}.log").open("w") as log:
            running[path] = _start(command, log, dry_run=dry_run)
    sound = all([_await(process, deadline) for process in running.values()])
    with (out / "tests.jsonl").open("w") as file:
        for path in files:
            lines = (out / f"{path.stem}.log").read_text(errors="replace").splitlines()
            found = {word: sum(f" {word} " in f"{line} " for line in lines if "::" in line) for word in _OUTCOMES}
            file.write(json.dumps({"system": "tests", "what": path.stem, **found}) + "\n")
    return sound


_OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")


def _start(command: list[str], log: IO[str], *, dry_run: bool) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    if dry_run:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _await(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    """Waits, and ends the process and all that it started at the deadline."""
    try:
        return process.wait(max(0.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def _device_name(dry_run: bool) -> str:
    return "dry run on the CPU: no figure means anything" if dry_run else torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())
