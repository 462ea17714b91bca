"""The benchmark's cases of attention."""

from collections.abc import Iterator

import torch

from hotshoe.kernels import sdpa_attention
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.kernels.bench.case import Case, Sizes
from hotshoe.kernels.kernel_task import Draw


def attention_cases(draw: Draw, sizes: Sizes) -> Iterator[Case]:
    """Decode and prefill attention."""
    for context in sizes.contexts:
        for rows in (1, max(sizes.adapters)):
            slots = torch.arange(rows * context, device=draw.device).view(rows, context) + 1
            lengths = torch.full((rows,), context, dtype=torch.int64, device=draw.device)
            shape = f"{rows} decoding, context {context}"
            yield _attention_case(draw, sizes, shape, AttentionBatch(rows, slots, lengths), rows * context, 1)
    slots = torch.arange(sizes.prompt, device=draw.device) + 1
    nothing = torch.zeros(0, dtype=torch.int64, device=draw.device)
    batch = AttentionBatch(0, nothing.view(0, 1), nothing, (PrefillSegment(0, sizes.prompt, slots),))
    yield _attention_case(draw, sizes, f"prompt of {sizes.prompt}", batch, sizes.prompt, sizes.prompt // 2)


def _attention_case(
    draw: Draw, sizes: Sizes, shape: str, batch: AttentionBatch, positions: int, rows_of_position: int
) -> Case:
    from hotshoe.kernels.triton.paged_attention import paged_attention, plan_tiles

    query = draw.normal(batch.num_rows, sizes.heads, sizes.head_dim)
    kv = draw.normal(positions + 1, 2, sizes.kv_heads, sizes.head_dim)
    scale, dtype = sizes.head_dim**-0.5, query.dtype
    tiles = plan_tiles(batch, window=None, device=draw.device)
    sdpa = sdpa_attention.plan_padded(batch, window=None, device=draw.device, dtype=dtype)
    return Case(
        "paged_attention",
        shape,
        lambda: paged_attention(query, kv, tiles, scale=scale),
        {"torch, gather + sdpa": lambda: sdpa_attention.paged_attention(query, kv, sdpa, scale=scale)},
        bytes=(kv.numel() + 2 * query.numel()) * query.element_size(),
        flops=4 * positions * rows_of_position * sizes.heads * sizes.head_dim,
    )
