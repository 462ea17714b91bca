"""Kernels in Triton, one operation a module whose function has its name. Importing this table imports no Triton."""

from collections.abc import Mapping

KERNELS: Mapping[str, str] = {
    name: f"{__name__}.{name}"
    for name in (
        "nf4_linear",
        "dequantize_nf4",
        "add_low_rank",
        "scale_inputs",
        "paged_attention",
        "rms_norm",
        "rope_write_kv",
        "silu_mul",
        "gelu_tanh_mul",
        "logit_stats",
    )  # fmt: skip
}
