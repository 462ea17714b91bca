"""Which implementation computes each operation of a decoder layer on a GPU: ours, or a library's behind it.

    linear      triton: nf4_linear; many rows by dequantize_nf4 and a GEMM
                bitsandbytes
                cublas: dequantize_nf4 and a GEMM, always
    norm        triton | torch: residual and RMSNorm
    rope        triton | torch: qk-norm, rotation, the write into the cache
    attention   triton | sdpa: gathers contexts on the host's word, so that no step is captured
    activation  triton | torch: silu(gate) ∘ up, or gelu(gate) ∘ up

What adapters add is always computed by Triton kernels, in the linear's epilogue or behind it.
"""

from collections.abc import Mapping

OP_CHOICES: Mapping[str, tuple[str, ...]] = {
    "linear": ("triton", "bitsandbytes", "cublas"),
    "norm": ("triton", "torch"),
    "rope": ("triton", "torch"),
    "attention": ("triton", "sdpa"),
    "activation": ("triton", "torch"),
}


def parse_ops(text: str) -> dict[str, str]:
    """Reads "linear=bitsandbytes,norm=torch"; operations that are not named get the first of their choices.

    Raises:
        ValueError: no such operation, no such implementation of it, or one named twice.
    """
    chosen: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, _, name = (piece.strip() for piece in part.partition("="))
        if op not in OP_CHOICES:
            raise ValueError(f"ops: expected one of {', '.join(OP_CHOICES)}, not {op!r}")
        if name not in OP_CHOICES[op]:
            raise ValueError(f"ops: {op} is one of {', '.join(OP_CHOICES[op])}, not {name!r}")
        if op in chosen:
            raise ValueError(f"ops: {op} is named twice")
        chosen[op] = name
    return {op: chosen.get(op, choices[0]) for op, choices in OP_CHOICES.items()}
