"""What the next token's choice needs of a whole row of logits: one program a row, always in the same order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def logit_stats(logits: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: the likeliest token, whether all of it is finite, and Σ exp((l − largest l) / temperature).

    Args:
        logits: [rows, vocab_size] float32, columns contiguous.
        temperatures: [rows] float32, above 0.
    Returns:
        [rows] int32, of equal logits the lowest id; [rows] int32, 1 or 0; [rows] float32. The first and the last
        mean nothing where a row is not finite.
    Raises:
        ValueError: shapes or dtypes disagree.
    """
    if logits.ndim != 2 or logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise ValueError(f"logits: expected [rows, vocab_size] float32, not {list(logits.shape)} {logits.dtype}")
    if temperatures.shape != (logits.shape[0],):
        raise ValueError(f"temperatures: expected [{logits.shape[0]}], not {list(temperatures.shape)}")
    rows, vocab_size = logits.shape
    ids, finite = (torch.empty(rows, dtype=torch.int32, device=logits.device) for _ in range(2))
    totals = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _logit_stats[(rows,)](
        logits, temperatures, ids, finite, totals, logits.stride(0), vocab_size, BLOCK=BLOCK, num_warps=8
    )
    return ids, finite, totals


@triton.jit
def _logit_stats(logits, temperatures, ids, finite, totals, stride, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    column = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    fine = tl.full((BLOCK,), 1, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        value = tl.load(logits + start + column, mask=start + column < vocab_size, other=-3.0e38)
        fine = tl.where(tl.abs(value) <= 3.4028234663852886e38, fine, 0)  # neither infinite nor NaN
        best_at = tl.where(value > best, start + column, best_at)
        best = tl.where(value > best, value, best)
    largest = tl.max(best, axis=0)
    tl.store(ids + row, tl.min(tl.where(best == largest, best_at, 2147483647), axis=0))
    tl.store(finite + row, tl.min(fine, axis=0))
    temperature = tl.load(temperatures + row)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        inside = start + column < vocab_size
        value = tl.load(logits + start + column, mask=inside, other=0.0)
        total += tl.where(inside, tl.exp((value - largest) / temperature), 0.0)
    tl.store(totals + row, tl.sum(total, axis=0))
