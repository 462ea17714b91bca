"""Sixteen values looked up by byte permutation: two nibbles of each of four bytes, without touching memory.

A bfloat16 of NF4 is two bytes, and PRMT picks four bytes by four selectors out of eight. So eight tables' bytes (the
high ones and the low ones of values 0 … 7 and 8 … 15) give four weights in seven permutations. After the idea of
lookups in registers for 4-bit GEMMs; the tables are NF4_VALUES rounded to bfloat16.
"""

import triton
import triton.language as tl

_HALF = """
    and.b32 s, q, 0x7777;
    shr.u32 t, q, 1;
    and.b32 t, t, 0x4444;
    or.b32 t, t, 0x3210;
    prmt.b32 a, h0, h1, s;
    prmt.b32 b, h2, h3, s;
    prmt.b32 h, a, b, t;
    prmt.b32 a, l0, l1, s;
    prmt.b32 b, l2, l3, s;
    prmt.b32 l, a, b, t;
    prmt.b32 {high}, l, h, 0x7351;
    prmt.b32 {low}, l, h, 0x6240;"""
INSTRUCTIONS = (
    """
    mov.b32 h0, 0xbebfbfbf;
    mov.b32 h1, 0x00bdbebe;
    mov.b32 h2, 0x3e3e3e3d;
    mov.b32 h3, 0x3f3f3f3e;
    mov.b32 l0, 0xca063280;
    mov.b32 l1, 0x00ba3d92;
    mov.b32 l2, 0xad7c25a3;
    mov.b32 l3, 0x803910e2;
    mov.b32 q, $4;"""
    + _HALF.format(high="$0", low="$2")
    + """
    shr.u32 q, q, 16;"""
    + _HALF.format(high="$1", low="$3")
)
ASSEMBLY = tl.constexpr("{\n    .reg .b32 h0, h1, h2, h3, l0, l1, l2, l3, q, s, t, a, b, h, l;" + INSTRUCTIONS + "\n}")


@triton.jit
def look_up_nf4(codes):
    """The values of the high nibbles, and of the low ones, of bytes: two bfloat16 tensors of codes' shape."""
    return tl.inline_asm_elementwise(
        ASSEMBLY, "=&r,=&r,=&r,=&r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
    )
