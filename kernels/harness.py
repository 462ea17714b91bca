"""Judges a kernel: format, compile, correct, no_op, speed, and one reward. One of ours, or a file from outside.

    python -m hotshoe.kernels.harness                                every kernel of the project
    python -m hotshoe.kernels.harness nf4_linear                     one of them
    python -m hotshoe.kernels.harness rms_norm --file candidate.py   a file that defines rms_norm

A file's function takes what `kernel_tasks.TASKS` draws, as keywords. It runs in a process of its own, with limits on
time and memory; without a GPU in Triton's interpreter, and what it launched is then compiled for a Hopper GPU. This
keeps mistakes and lazy cheating out; a file that means harm needs a sandbox around all of it.
"""

import argparse
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshoe.kernels import kernel_format
from hotshoe.kernels.triton import KERNELS

WEIGHTS = {"format": 0.1, "compile": 0.1, "correct": 0.5, "no_op": 0.1, "speed": 0.2}
FULL_SPEED = 2.0  # times the alternative's, for all of the speed's weight


@dataclass(frozen=True, slots=True)
class Limits:
    """What one judged process may use."""

    seconds: float = 120.0  # for the whole of one process
    memory_bytes: int = 8 << 30  # of address space; not applied with a GPU, whose driver reserves far more


@dataclass(frozen=True, slots=True)
class Reward:
    """What a kernel earned. A stage is False if it failed or an earlier one did; speed is None where no GPU is."""

    format: bool
    compile: bool
    correct: bool  # agrees with float64 on fresh inputs, whatever new memory holds, and leaves its inputs alone
    no_op: bool  # with launches that do nothing, the result is wrong: the kernels do the work
    speed: float | None  # times the named alternative's
    total: float  # 0 … 1
    log: tuple[str, ...]


def judge(
    op: str,
    file: Path | None = None,
    *,
    device: str | None = None,
    dtypes: tuple[str, ...] = ("float32", "float16"),
    num_seeds: int = 3,
    limits: Limits = Limits(),  # noqa: B008
) -> Reward:
    """Runs every stage on the project's own kernel for `op`, or on `file`.

    Args:
        device: "cuda", or "cpu" for the interpreter; the first if there is one.
        dtypes: of the inputs; the interpreter's dot is wrong for bfloat16.
        num_seeds: fresh inputs per dtype; drawn anew at every call.
    Raises:
        ValueError: no such op, or bfloat16 is asked of the interpreter.
        OSError: the file cannot be read.
    """
    if op not in KERNELS:
        raise ValueError(f"op: {op!r} is not one of {', '.join(KERNELS)}")
    device = device or _device()
    if device == "cpu" and "bfloat16" in dtypes:
        raise ValueError("dtypes: the interpreter computes bfloat16 products wrongly; take float32 or float16")
    if file is not None:
        broken = kernel_format.problems(file.read_text(), op)
        if broken:
            return _reward({"log": broken}, format=False, timed=device != "cpu")
    job = {
        "mode": "run",
        "op": op,
        "module": KERNELS[op],
        "file": None if file is None else str(file.resolve()),
        "device": device,
        "dtypes": dtypes,
        "seeds": [secrets.randbelow(1 << 31) for _ in range(num_seeds + 2)],
        "memory_bytes": limits.memory_bytes if device == "cpu" else None,
    }
    findings = _work(job, limits, interpret=device == "cpu")
    if device == "cpu" and findings.get("compile"):
        built = _work(job | {"mode": "build", "launches": findings.get("launches", [])}, limits, interpret=False)
        findings["log"] += built["log"]
        if not built.get("compile"):
            findings |= {"compile": False, "correct": False, "no_op": False}
    return _reward(findings, format=True, timed=device != "cpu")


def _reward(findings: dict[str, Any], *, format: bool, timed: bool) -> Reward:
    passed = {"format": format} | {stage: bool(findings.get(stage)) for stage in ("compile", "correct", "no_op")}
    speed = findings.get("speed")
    earned = {stage: WEIGHTS[stage] * passed[stage] for stage in passed}
    if not passed["no_op"]:
        earned["correct"] = 0.0  # right, but not by its kernels
    if timed:
        earned["speed"] = WEIGHTS["speed"] * min((speed or 0.0) / FULL_SPEED, 1.0)
    total = sum(earned.values()) / sum(WEIGHTS[stage] for stage in earned)
    return Reward(**passed, speed=speed, total=round(total, 4), log=tuple(findings["log"]))


def _work(job: dict[str, Any], limits: Limits, *, interpret: bool) -> dict[str, Any]:
    """One worker process on that job; what it found, with a line in the log if it did not end well."""
    with tempfile.TemporaryDirectory(prefix="hotshoe-kernel-") as folder:
        found = Path(folder, f"{secrets.token_hex(8)}.json")
        process = subprocess.Popen(
            [sys.executable, "-m", "hotshoe.kernels.harness_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder, interpret=interpret),
            text=True,
            start_new_session=True,
        )
        ended = None
        try:
            printed, _ = process.communicate(json.dumps(job | {"findings": str(found)}), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            ended = f"took longer than {limits.seconds:g} s"
            printed = ""
        finally:
            _end(process)
        findings: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {"log": []}
        if ended is None and process.returncode and not findings["log"]:
            ended = f"ended with status {process.returncode}: {printed.strip()[-1000:]}"
        if ended is not None:
            findings["log"].append(ended)
        return findings


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends the process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _environment(folder: str, *, interpret: bool) -> dict[str, str]:
    kept = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": folder, "TRITON_CACHE_DIR": f"{folder}/triton", "PYTHONSAFEPATH": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return environment


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: list[str] | None = None) -> int:
    """Judges what the command line names and prints the rewards."""
    parser = argparse.ArgumentParser("python -m hotshoe.kernels.harness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("op", nargs="?", choices=KERNELS, help="all if left out")
    parser.add_argument("--file", type=Path, help="a kernel file from outside the project; needs an op")
    parser.add_argument("--dtype", action="append", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=Limits().seconds)
    parser.add_argument("--memory-gib", type=float, default=Limits().memory_bytes / (1 << 30))
    options = parser.parse_args(arguments)
    if options.file is not None and options.op is None:
        parser.error("--file needs an op")
    dtypes = tuple(options.dtype or ("float32", "float16"))
    limits = Limits(options.seconds, int(options.memory_gib * (1 << 30)))
    rewards = {}
    for op in [options.op] if options.op else KERNELS:
        rewards[op] = judge(
            op, options.file, device=options.device, dtypes=dtypes, num_seeds=options.seeds, limits=limits
        )
    shown = {op: dataclasses.asdict(reward) for op, reward in rewards.items()}
    print(json.dumps(shown[options.op] if options.op else shown, indent=2))
    return 0 if all(reward.no_op for reward in rewards.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
