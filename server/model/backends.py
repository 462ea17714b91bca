"""How the base's linears are held and run: chosen once, when the base is loaded."""

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotshoe.kernels import bnb_linear, reference
from hotshoe.kernels.cpu import dense_linear as cpu_dense
from hotshoe.kernels.cpu import nf4_linear as cpu_nf4
from hotshoe.kernels.cpu import output_head as cpu_head
from hotshoe.kernels.cpu.dense_linear import PackedDense
from hotshoe.kernels.ops import AttentionKind
from hotshoe.kernels.weights import Nf4Weight
from hotshoe.server.model.op_choices import parse_ops

_LOG = logging.getLogger(__name__)
LinearTensor = Nf4Weight | Tensor  # a linear as a checkpoint holds it
_TRITON_CAPABILITY = (8, 0)  # from there on tensor cores multiply bfloat16


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run the decoder. Activations have `dtype`, and so have keys and values unless `kv_dtype` is set."""

    name: str
    device: torch.device
    dtype: torch.dtype
    attention: AttentionKind
    pack: Callable[[Sequence[LinearTensor]], Sequence[Any]]  # a site's linears → weights for ops.linear, in order
    pack_head: Callable[[Tensor], Any]
    compile_steps: Callable[..., Any] | None = None  # (spec, layers, norm=, head=) → CompiledSteps, None if they cannot
    kv_dtype: torch.dtype | None = None
    ops: Mapping[str, str] | None = None  # of a TritonDecoder: what computes each of OP_CHOICES


def reference_backend() -> Backend:
    """Plain torch in float32 on the dequantized weights: slow and exact, what tests compare with."""

    def pack(parts: Sequence[LinearTensor]) -> Sequence[Tensor]:
        return [torch.cat([dequantized(part) for part in parts])]

    return Backend(
        name="reference",
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="reference",
        pack=pack,
        pack_head=dequantized,
    )


def cpu_nf4_backend(*, dense_copy_bytes: int = 1 << 30) -> Backend:
    """4-bit weights through bitsandbytes' AVX512-BF16 kernel; linears that do not fit its tiles are dense bfloat16.

    Up to `dense_copy_bytes` of the linears are held in bfloat16 too, for prompts and large batches.
    """
    if cpu_nf4.kernel() is None:
        raise ValueError("backend: cpu_nf4 needs a CPU with AVX512-BF16 and bitsandbytes' CPU library")
    left = dense_copy_bytes

    def dense_copy(parts: Sequence[Nf4Weight]) -> PackedDense | None:
        nonlocal left
        size = sum(2 * part.out_features * part.in_features for part in parts)
        if size > left:
            return None
        copy = cpu_dense.pack(torch.cat([dequantized(part) for part in parts]), torch.bfloat16)
        if not isinstance(copy, PackedDense):
            return None
        left -= size
        return copy

    def pack(parts: Sequence[LinearTensor]) -> Sequence[Any]:
        fitting = [part for part in parts if isinstance(part, Nf4Weight) and cpu_nf4.fits(part)]
        if len(fitting) == len(parts):
            return [cpu_nf4.pack(fitting, dense=dense_copy(fitting))]
        return [
            cpu_nf4.pack([part], dense=dense_copy([part]))
            if isinstance(part, Nf4Weight) and cpu_nf4.fits(part)
            else cpu_dense.pack(dequantized(part), torch.bfloat16)
            for part in parts
        ]

    # float16 keys and values: half the memory to read, at a fraction of the error of bfloat16 products
    backend = _cpu_backend("cpu_nf4", pack, partial(cpu_head.pack, tiled=True))
    return replace(backend, compile_steps=_compile_steps, kv_dtype=torch.float16)


def _compile_steps(spec: Any, layers: Any, *, norm: Tensor, head: Any) -> Any:
    """Compiled steps on as many threads as torch has; None where numba or the shapes lack."""
    try:
        from hotshoe.server.model.compiled_steps import compile_steps
    except ImportError:
        _LOG.warning("numba is not installed: decode steps run operation by operation, at a fraction of the speed")
        return None
    return compile_steps(spec, layers, norm=norm, head=head, threads=torch.get_num_threads())


def cpu_dense_backend() -> Backend:
    """Weights dequantized once and prepacked: bfloat16 where the CPU multiplies it in hardware, float32 elsewhere."""
    dtype = torch.bfloat16 if cpu_nf4.kernel() else torch.float32

    def pack(parts: Sequence[LinearTensor]) -> Sequence[Any]:
        return [cpu_dense.pack(torch.cat([dequantized(part) for part in parts]), dtype)]

    if dtype is torch.bfloat16:
        return _cpu_backend("cpu_dense", pack, cpu_head.pack)
    return _cpu_backend("cpu_dense", pack, lambda weight: cpu_dense.pack(weight, dtype))


def _cpu_backend(
    name: str, pack: Callable[[Sequence[LinearTensor]], Sequence[Any]], pack_head: Callable[[Tensor], Any]
) -> Backend:
    return Backend(
        name=name,
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="grouped",
        pack=pack,
        pack_head=pack_head,
    )


def dequantized(part: LinearTensor) -> Tensor:
    """[out_features, in_features] float32."""
    return reference.dequantize_nf4(part) if isinstance(part, Nf4Weight) else part.float()


def cuda_backend(device: torch.device) -> Backend:
    """torch's and bitsandbytes' own kernels in bfloat16; runs wherever they do, so tests run it on the CPU."""

    def pack(parts: Sequence[LinearTensor]) -> Sequence[Any]:
        fitting = [part for part in parts if isinstance(part, Nf4Weight) and bnb_linear.fits(part)]
        if len(fitting) == len(parts):
            return [bnb_linear.pack(fitting, device)]
        return [torch.cat([dequantized(part) for part in parts]).to(device, torch.bfloat16)]

    return Backend(
        name="cuda",
        device=device,
        dtype=torch.bfloat16,
        attention="padded",
        pack=pack,
        pack_head=lambda weight: weight.to(device, torch.bfloat16),
    )


def triton_backend(device: torch.device, ops: str = "") -> Backend:
    """Our Triton kernels in bfloat16; on the CPU in float32, where Triton's interpreter runs them.

    Args:
        ops: what computes which operation instead, as `parse_ops` reads it.
    """
    from hotshoe.kernels.triton import nf4_linear

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    choices = parse_ops(ops)
    kernel: Any = bnb_linear if choices["linear"] == "bitsandbytes" else nf4_linear

    def pack(parts: Sequence[LinearTensor]) -> Sequence[Any]:
        fitting = [part for part in parts if isinstance(part, Nf4Weight) and kernel.fits(part)]
        if len(fitting) == len(parts):
            return [kernel.pack(fitting, device)]
        return [torch.cat([dequantized(part) for part in parts]).to(device, dtype)]

    return Backend(
        name="triton",
        device=device,
        dtype=dtype,
        attention="padded",
        pack=pack,
        pack_head=lambda weight: weight.to(device, dtype),
        ops=choices,
    )


def triton_lacks() -> str | None:
    """What the Triton kernels would need on this machine and do not find, in words; None if they can run."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package"
    if not any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return "a C compiler, gcc or clang, that builds its launchers"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's, as Triton reads it
    if not Path(sysconfig.get_path("include", scheme), "Python.h").exists():
        return "Python's C headers (a package named like python3-dev), for its launchers"
    capability = torch.cuda.get_device_capability()
    if capability < _TRITON_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (_TRITON_CAPABILITY, capability))
        return f"a GPU of compute capability {least} or more, for bfloat16; {torch.cuda.get_device_name()} has {found}"
    try:
        _try_triton()
    except Exception as error:  # whatever a compiler, a driver or the cache's directory may refuse
        reason = str(error).partition("\n")[0]
        return f"a kernel to run, and the first one fails: {type(error).__name__}: {reason}"
    return None


def _try_triton() -> None:
    """Compiles a small kernel and runs it."""
    from hotshoe.kernels.triton.silu_mul import silu_mul

    silu_mul(torch.ones(1, 2, device="cuda"))
    torch.cuda.synchronize()


BACKENDS: dict[str, Callable[[], Backend]] = {
    "reference": reference_backend,
    "cpu_nf4": cpu_nf4_backend,
    "cpu_dense": cpu_dense_backend,
    "cuda": lambda: cuda_backend(torch.device("cuda")),
    "triton": lambda: triton_backend(torch.device("cuda")),
}


def choose_backend(device: str, name: str, ops: str = "") -> Backend:
    """The backend of that name, or the best that this machine has.

    Args:
        device: "auto", "cpu" or "cuda".
        name: "auto" or one of BACKENDS.
        ops: of the triton backend, what computes which operation, as `parse_ops` reads it.
    Raises:
        ValueError: no such device, backend or operation, or not on this machine, or not together.
    """
    parse_ops(ops)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, not {device}")
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend: expected auto or one of {', '.join(BACKENDS)}, not {name}")
    on_cuda = name in ("cuda", "triton")
    if name != "auto" and device != "auto" and (device == "cuda") != on_cuda:
        raise ValueError(f"backend: {name} does not run on device {device}")
    if ops and name not in ("auto", "triton"):
        raise ValueError(f"ops: only the triton backend has a choice, not {name}")
    if device == "cuda" or on_cuda:
        _check_cuda()
    if name == "auto":
        name = _best(device)
        if ops and name != "triton":
            raise ValueError(f"ops: only the triton backend has a choice, not {name}")
    elif name == "triton" and (lacking := triton_lacks()) is not None:
        raise ValueError(f"backend: triton needs {lacking}; cuda does without")
    return triton_backend(torch.device("cuda"), ops) if name == "triton" else BACKENDS[name]()


def _check_cuda() -> None:
    """Raises ValueError with the reason if torch computes nothing on a GPU: no driver, one too old, none visible, …"""
    try:
        torch.cuda.init()
        torch.ones(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: cuda is not available on this machine: {reason}") from error


def _best(device: str) -> str:
    """The fastest backend that this machine has."""
    if device == "cpu" or not (device == "cuda" or torch.cuda.is_available()):
        return "cpu_nf4" if cpu_nf4.kernel() else "cpu_dense"
    lacking = triton_lacks()
    if lacking is None:
        return "triton"
    _LOG.warning("backend cuda in place of triton, at a fraction of the speed: that needs %s", lacking)
    return "cuda"
