"""The process in which the harness runs a kernel: a job as JSON on stdin, findings into the job's file as they come.

{"mode": "run", ...}      imports the kernel, runs it on fresh inputs, compares, stubs it, times it
{"mode": "build", ...}    compiles the launches that a run in the interpreter recorded, for a GPU that is not here
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import resource
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction, KernelInterface

from hotshoe.kernels.kernel_task import TOLERANCE, Draw, Inputs, KernelTask
from hotshoe.kernels.kernel_tasks import TASKS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TRITON_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.bool: "i1",
    torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
MEMORY_OPERATORS = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros", "zeros_like", "new_zeros",
    "full", "full_like", "fill_", "fill", "zero_", "arange", "scalar_tensor", "lift_fresh", "lift_fresh_copy",
    "detach", "alias", "view", "_unsafe_view", "reshape", "as_strided", "slice", "select", "narrow", "permute",
    "transpose", "t", "expand", "unsqueeze", "squeeze", "unbind", "split", "split_with_sizes", "unflatten",
    "clone", "_to_copy", "contiguous",
}  # fmt: skip
LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
BUILD_CAPABILITY = 90  # Hopper


class Findings:
    """What is known so far, on disk after every change: a process that dies leaves what it had found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"log": []}

    def put(self, **values: Any) -> None:
        """Adds to what is known, or changes it."""
        self.values.update(values)
        self.path.write_text(json.dumps(self.values))

    def log(self, line: str) -> None:
        """Adds a line for whoever reads the verdict."""
        self.values["log"].append(line)
        self.put()


class Launches:
    """Stands between wrappers and kernels: counts launches, records them, or drops them."""

    def __init__(self) -> None:
        self.count = 0
        self.dropped = False
        self.recorded: dict[str, dict[str, Any]] = {}

    def install(self, classes: list[type]) -> None:
        for kind in classes:
            run = kind.run  # type: ignore[attr-defined]
            kind.run = self._between(run)  # type: ignore[attr-defined]

    def _between(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            self.count += 1
            if self.dropped:
                return None
            launch = describe(kernel, args, kwargs)
            self.recorded.setdefault(json.dumps(launch, sort_keys=True), launch)
            return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

        return launch


def describe(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A launch as JSON: enough to compile it again without its arguments."""
    parameters = inspect.signature(kernel.fn).parameters
    given = dict(zip(parameters, args, strict=False)) | {k: v for k, v in kwargs.items() if k in parameters}
    types, constants, ones, aligned = {}, {}, [], []
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        if parameter.annotation in (tl.constexpr, "tl.constexpr") or value is None:
            types[name] = "constexpr"
            constants[name] = {"dtype": str(value)} if isinstance(value, tl.dtype) else value
        else:
            types[name] = _type_of(value)
            whole = value.data_ptr() if isinstance(value, Tensor) else value if type(value) is int else None
            ones += [name] if whole == 1 else []
            aligned += [name] if whole is not None and whole % 16 == 0 else []
    options = {name: kwargs[name] for name in LAUNCH_OPTIONS if name in kwargs}
    kernel_name = {"module": kernel.fn.__module__, "name": kernel.fn.__name__}
    found = {"types": types, "constants": constants, "ones": ones, "aligned": aligned, "options": options}
    return {**kernel_name, **found}


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TRITON_TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def build(
    module: ModuleType | None, launches: Iterable[dict[str, Any]], *, capability: int = BUILD_CAPABILITY
) -> list[Any]:
    """Compiles every launch to machine code, as a GPU of that capability would; `module` is the candidate's.

    Raises what the compiler raises.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    built = []
    for launch in launches:
        candidates = module is not None and launch["module"] == module.__name__
        kernel = getattr(module if candidates else importlib.import_module(launch["module"]), launch["name"])
        assert isinstance(kernel, JITFunction)
        index = {name: i for i, name in enumerate(launch["types"])}
        constants = {
            (index[name],): getattr(tl, _DTYPE_NAMES[value["dtype"]]) if isinstance(value, dict) else value
            for name, value in launch["constants"].items()
        }
        general = {kernel.arg_names[one] if isinstance(one, int) else one for one in kernel.do_not_specialize or ()}
        types, ones = dict(launch["types"]), [name for name in launch["ones"] if name not in general]
        constants |= {(index[name],): 1 for name in ones}
        types |= dict.fromkeys(ones, "constexpr")
        aligned = {(index[name],): [["tt.divisibility", 16]] for name in launch["aligned"] if name not in general}
        source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
        built.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch["options"]))
    return built


_DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Candidate:
    """The function under test, on inputs that nobody has seen."""

    def __init__(self, task: KernelTask, function: Callable[..., Any], device: torch.device) -> None:
        self.task, self.function, self.device = task, function, device

    def inputs(self, seed: int, dtype: torch.dtype, *, small: bool = True) -> Inputs:
        return self.task.inputs(Draw(torch.Generator().manual_seed(seed), self.device, dtype, small))

    def run(self, given: Inputs) -> tuple[Tensor, ...]:
        """What it returns and writes, with all memory that it allocates full of NaN (integers: their maximum)."""
        torch.set_deterministic_debug_mode("warn")  # what fills new memory
        try:
            returned = self.function(**given)
        finally:
            torch.set_deterministic_debug_mode("default")
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        outputs = () if returned is None else returned if isinstance(returned, tuple) else (returned,)
        return (*outputs, *(given[name] for name in self.task.writes))

    def compare(self, outputs: tuple[Tensor, ...], given: Inputs, dtype: torch.dtype) -> str | None:
        """What is wrong with the outputs; None if they are right. `given` is untouched inputs of the same seed."""
        expected = self.task.expected(given)
        if len(outputs) != len(expected):
            return f"expected {len(expected)} outputs, not {len(outputs)}"
        for i, (actual, truth) in enumerate(zip(outputs, expected, strict=True)):
            if not isinstance(actual, Tensor) or actual.shape != truth.shape or actual.dtype != dtype:
                shape = f"{list(actual.shape)} {actual.dtype}" if isinstance(actual, Tensor) else type(actual).__name__
                return f"output {i}: expected {list(truth.shape)} {dtype}, not {shape}"
            error = (actual.double() - truth).abs().max().item() / max(truth.abs().max().item(), 1e-30)
            if not error <= TOLERANCE[dtype]:  # also NaN
                return f"output {i}: off by {error:.3g} of its largest value, more than {TOLERANCE[dtype]:g}"
        return None


def checksums(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The path and digest of each tensor in a tree of dataclasses, tuples and dicts."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield path, hashlib.sha256(data).hexdigest()
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from checksums(item, f"{path}.{name}" if path else name)
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from checksums(item, f"{path}[{i}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from checksums(getattr(value, field.name), f"{path}.{field.name}")


def is_correct(candidate: Candidate, seeds: list[int], dtypes: list[torch.dtype], launches: Launches) -> str | None:
    """What is wrong on any of the seeds; None if nothing."""
    for dtype in dtypes:
        for seed in seeds:
            given, kept = candidate.inputs(seed, dtype), candidate.inputs(seed, dtype)
            launches.count = 0
            outputs = candidate.run(given)  # before the expected values exist: freed memory could hold them
            where = f"{dtype}, seed {seed}: "
            if launches.count == 0:
                return where + "launches no kernel"
            before = {k: v for k, v in checksums(kept) if k not in candidate.task.writes}
            changed = [name for name, digest in checksums(given) if before.get(name, digest) != digest]
            if changed:
                return where + f"changes its input {changed[0]}"
            wrong = candidate.compare(outputs, kept, dtype)
            if wrong is not None:
                return where + wrong
    return None


class Computed(TorchDispatchMode):
    """The names of torch's operators that ran, except those that only make or view memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in MEMORY_OPERATORS:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def without_kernels(
    candidate: Candidate, seed: int, dtype: torch.dtype, launches: Launches, *, trusted: bool
) -> str | None:
    """What is wrong if every launch does nothing, on inputs not seen before: the result may not be right.

    A wrapper that is not trusted may not compute by torch either, whatever syntax hides it.
    """
    launches.dropped = True
    computed = Computed()
    given = candidate.inputs(seed, dtype)
    try:
        with computed:
            outputs = candidate.run(given)
    except Exception:  # without its kernels it may fail in any way
        outputs = ()
    finally:
        launches.dropped = False
    if computed.names and not trusted:
        return f"the wrapper computes by torch: {', '.join(sorted(computed.names))}"
    if candidate.compare(outputs, candidate.inputs(seed, dtype), dtype) is None:
        return "the result is the same without its kernels"
    return None


def speed(candidate: Candidate, seed: int, dtype: torch.dtype) -> tuple[float, float]:
    """Median milliseconds of the candidate and of the alternative, at sizes of a model of 8 billion weights."""
    from triton.testing import do_bench

    given = candidate.inputs(seed, dtype, small=False)
    ours = do_bench(lambda: candidate.function(**given), return_mode="median")
    theirs = do_bench(lambda: candidate.task.run_alternative(given), return_mode="median")
    return float(ours), float(theirs)


def load(job: dict[str, Any]) -> ModuleType:
    """The module that a job is about, by its name or from its file."""
    if job["file"] is None:
        return importlib.import_module(job["module"])
    spec = importlib.util.spec_from_file_location("candidate", job["file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["candidate"] = module  # triton reads a kernel's source by its module
    spec.loader.exec_module(module)
    return module


def run(job: dict[str, Any], findings: Findings) -> None:
    """All stages that run the kernel, each only if those before it passed."""
    device = torch.device(job["device"])
    task, launches = TASKS[job["op"]], Launches()
    dtypes = [DTYPES[name] for name in job["dtypes"]]
    launches.install(_launchers())
    candidate = Candidate(task, getattr(load(job), task.name), device)
    seeds = job["seeds"]
    candidate.run(candidate.inputs(seeds[0], dtypes[0]))
    findings.put(compile=True)
    wrong = is_correct(candidate, seeds[1:-1], dtypes, launches)
    findings.put(correct=wrong is None, launches=list(launches.recorded.values()))
    if wrong is not None:
        return findings.log(wrong)
    idle = without_kernels(candidate, seeds[-1], dtypes[-1], launches, trusted=job["file"] is None)
    findings.put(no_op=idle is None)
    if idle is not None:
        return findings.log(idle)
    if device.type == "cuda":
        ours, theirs = speed(candidate, seeds[-1], dtypes[-1])
        findings.put(speed=round(theirs / ours, 3))
        findings.log(f"{ours:.4f} ms against {theirs:.4f} ms of {task.alternative}")
        if theirs > 10 * ours:
            findings.log("more than 10 times as fast: look at it")


def _launchers() -> list[type]:
    from triton.runtime.interpreter import InterpretedFunction

    assert issubclass(InterpretedFunction, KernelInterface)
    return [JITFunction, InterpretedFunction]


def main() -> int:
    """Judges the kernel of the job on standard input, within its limit of memory; gives the exit code."""
    job = json.load(sys.stdin)
    if job["memory_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    torch.set_num_threads(1)
    findings = Findings(Path(job["findings"]))
    findings.put()
    try:
        if job["mode"] == "build":
            build(load(job), job["launches"])
            findings.put(compile=True)
        else:
            run(job, findings)
    except Exception:
        findings.log(traceback.format_exc(limit=-6).strip())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
