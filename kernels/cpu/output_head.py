"""The output head on the CPU: every logit from a bfloat16 product, the likeliest ones again in float32.

oneDNN rounds a bfloat16 product's result to bfloat16, a step of 1/8 for logits of 16 to 32: enough to swap the two
likeliest tokens in one of a hundred steps. The few that decide are worth a second, exact look. Compiled steps read an
8-bit copy instead, and have a second look of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hotshoe.kernels.cpu import dense_linear
from hotshoe.kernels.cpu.dense_linear import PackedDense

REFINED = 16  # logits of each row that are computed in float32
_BLOCK = 64  # tokens of which only the likeliest is compared first


@dataclass(frozen=True, slots=True, eq=False)
class PackedHead:
    """A head [vocab, hidden] packed for the product, and its rows as they are."""

    shape: tuple[int, int]
    packed: PackedDense | Tensor
    rows: Tensor  # [vocab, hidden]; the embedding itself, if the head is tied
    tiles: Tensor | None = None  # the same as `int8_head` has it, where compiled steps can run it


def pack(weight: Tensor, *, tiled: bool = False) -> PackedHead:
    """A bfloat16 head [vocab, hidden] for `linear`; if `tiled`, rather for compiled steps, where those can run it."""
    rows, shape = weight.to(torch.bfloat16), (weight.shape[0], weight.shape[1])
    tiles = _tiles(rows) if tiled else None
    if tiles is not None:
        return PackedHead(shape, rows, rows, tiles)
    return PackedHead(shape, dense_linear.pack(rows, torch.bfloat16), rows)


def _tiles(rows: Tensor) -> Tensor | None:
    """The rows for compiled steps, None where those cannot use them."""
    try:
        from hotshoe.kernels.cpu import int8_head
    except ImportError:  # no numba
        return None
    return int8_head.pack(rows) if int8_head.available() and int8_head.fits(rows) else None


def linear(x: Tensor, head: PackedHead) -> Tensor:
    """Logits [rows, vocab] float32 of x [rows, hidden] float32; each row's likeliest 16 or so are exact to float32."""
    packed = head.packed
    if isinstance(packed, PackedDense):
        logits = dense_linear.linear(x, packed)
    else:
        logits = dense_linear.plain_linear(x, packed)
    if x.shape[0] == 0:
        return logits
    tokens = _likeliest(logits)
    rows = head.rows.index_select(0, tokens.view(-1)).to(x.dtype).view(*tokens.shape, -1)
    return logits.scatter_(1, tokens, torch.bmm(rows, x.unsqueeze(2)).squeeze(2))


def _likeliest(logits: Tensor) -> Tensor:
    """[rows, REFINED] int64: tokens among which are each row's REFINED / 2 largest logits."""
    rows, vocab = logits.shape
    if vocab % _BLOCK or vocab < _BLOCK * REFINED:
        return logits.topk(min(REFINED, vocab), dim=1, sorted=False).indices
    # the k largest lie in the k blocks of the largest maxima: far less to sort than the vocabulary
    blocked = logits.view(rows, vocab // _BLOCK, _BLOCK)
    blocks = blocked.amax(dim=2).topk(REFINED // 2, dim=1, sorted=False).indices
    within = blocked.gather(1, blocks[..., None].expand(-1, -1, _BLOCK)).view(rows, -1)
    best = within.topk(REFINED, dim=1, sorted=False).indices
    return blocks.gather(1, best // _BLOCK) * _BLOCK + best % _BLOCK
