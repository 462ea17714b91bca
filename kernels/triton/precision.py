"""In which type a kernel multiplies: the interpreter's `tl.dot` is wrong for bfloat16, so there it is float32."""

import torch
import triton
import triton.language as tl


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type of a dot's operands for tensors of `dtype`; it accumulates in float32.

    Raises:
        TypeError: no kernel takes tensors of that type.
    """
    if dtype not in _DOT_TYPES:
        raise TypeError(f"dtype: expected one of {[str(known) for known in _DOT_TYPES]}, not {dtype}")
    return tl.float32 if interpreted() and dtype == torch.bfloat16 else _DOT_TYPES[dtype]


_DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
