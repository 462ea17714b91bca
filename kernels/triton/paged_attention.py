"""Attention over the paged cache: online softmax in float32, the heads that share keys in one tile.

A tile is a few consecutive rows of one sequence: one row that decodes, or a chunk of a prompt behind whatever is cached
already. Decoding splits the context over programs, a number fixed beforehand, and a second launch combines their parts
in order; nothing of another sequence enters, so a row's bits do not depend on its neighbours.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.attention_batch import PREFILL_ROWS, AttentionBatch, PagedBatch, tile_sequences
from hotshoe.kernels.triton.precision import dot_type

BLOCK_KEYS = 64
DECODE_SPLITS = 8
MIN_DOT = 16  # the least rows that tl.dot takes
TILE_VALUES = 8192  # of a program's sums: as many as four warps keep in registers, and small cards' shared memory holds


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTiles:
    """A step's attention as tables on the device, shared by its layers."""

    num_rows: int
    num_decodes: int
    tiles: (
        Tensor  # [tiles, 4] int32, decodes first: first row, rows, line of tables, visible positions of its first row
    )
    tables: Tensor  # [sequences, pages] int32, of any strides: where each sequence's positions lie, page by page
    page_tokens: int
    window: int | None


def plan_tiles(batch: AttentionBatch | PagedBatch, *, window: int | None, device: torch.device) -> AttentionTiles:
    """The tables of a step."""
    paged = batch.by_pages() if isinstance(batch, AttentionBatch) else batch
    tiles = torch.from_numpy(tile_sequences(paged.rows, paged.contexts)).to(device)
    tables = torch.from_numpy(paged.tables).to(device)
    return AttentionTiles(paged.num_rows, batch.num_decodes, tiles, tables, paged.page_tokens, window)


def paged_attention(
    query: Tensor,
    kv: Tensor,
    batch: AttentionBatch | AttentionTiles,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """Attention of each row over its own sequence's part of the cache: [rows, heads, head_dim] in query's dtype.

    Args:
        query: [rows, heads, head_dim], contiguous.
        kv: [num_slots, 2, kv_heads, head_dim], contiguous, in query's dtype: keys and values.
        batch: or what `plan_tiles` made of it; the window then is the plan's.
        window: a row sees that many positions, itself included; None is all.
        cap: scores become cap · tanh(score / cap); None leaves them as they are.
    Raises:
        ValueError: shapes or dtypes disagree.
    """
    if not isinstance(batch, AttentionTiles):
        batch = plan_tiles(batch, window=window, device=query.device)
    rows, heads, head_dim = query.shape
    if rows != batch.num_rows or not query.is_contiguous():
        raise ValueError(f"query: expected {batch.num_rows} contiguous rows, not {list(query.shape)}")
    if kv.ndim != 4 or kv.shape[1] != 2 or kv.shape[3] != head_dim or heads % kv.shape[2] or not kv.is_contiguous():
        raise ValueError(f"kv: {list(kv.shape)} does not fit query {list(query.shape)}")
    if kv.dtype != query.dtype:
        raise ValueError(f"kv: expected {query.dtype}, not {kv.dtype}")
    out = torch.empty_like(query)
    if batch.num_decodes:
        _decode(query, kv, out, batch, scale, cap)
    prefills = batch.tiles[batch.num_decodes :]
    if prefills.shape[0]:
        programs, shape = _shape(query, kv, rows=PREFILL_ROWS)
        _attend[(prefills.shape[0], programs, 1)](
            query, kv, out, None, prefills, batch.tables, scale, batch.window, cap, *batch.tables.stride(),
            SPLITS=1, PAGE=batch.page_tokens, **shape, DOT=dot_type(query.dtype), num_warps=4,
        )  # fmt: skip
    return out


def _decode(query: Tensor, kv: Tensor, out: Tensor, batch: AttentionTiles, scale: float, cap: float | None) -> None:
    heads, head_dim = query.shape[1:]
    parts_shape = batch.num_decodes, heads, DECODE_SPLITS
    parts = torch.empty((*parts_shape, head_dim), dtype=torch.float32, device=query.device)
    sums = torch.empty((*parts_shape, 2), dtype=torch.float32, device=query.device)
    programs, shape = _shape(query, kv, rows=1)
    _attend[(batch.num_decodes, programs, DECODE_SPLITS)](
        query, kv, parts, sums, batch.tiles, batch.tables, scale, batch.window, cap, *batch.tables.stride(),
        SPLITS=DECODE_SPLITS, PAGE=batch.page_tokens, **shape, DOT=dot_type(query.dtype), num_warps=4,
    )  # fmt: skip
    _combine[(batch.num_decodes, heads)](
        parts, sums, out, HEADS=heads, HEAD_DIM=head_dim, BLOCK_DIM=max(MIN_DOT, triton.next_power_of_2(head_dim)),
        SPLITS=DECODE_SPLITS, num_warps=1,
    )  # fmt: skip


def _shape(query: Tensor, kv: Tensor, *, rows: int) -> tuple[int, dict[str, int]]:
    """Programs of a tile of `rows` positions, and their constants: large groups of large heads are divided."""
    heads, head_dim = query.shape[1:]
    group = heads // kv.shape[2]
    block_dim = max(MIN_DOT, triton.next_power_of_2(head_dim))
    block_group = min(triton.next_power_of_2(group), max(1, TILE_VALUES // (rows * block_dim)))
    return kv.shape[2] * triton.cdiv(group, block_group), {
        "HEADS": heads,
        "KV_HEADS": kv.shape[2],
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim,
        "BLOCK_GROUP": block_group,
        "BLOCK_KEYS": max(MIN_DOT, min(BLOCK_KEYS, TILE_VALUES // block_dim)),
        "MIN_DOT": MIN_DOT,
        "ROWS": rows,
    }


@triton.jit(do_not_specialize=["table_stride", "page_stride"])
def _attend(
    query, kv, out, sums, tiles, tables, scale, window, cap, table_stride, page_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr, BLOCK_KEYS: tl.constexpr, MIN_DOT: tl.constexpr,
    ROWS: tl.constexpr, SPLITS: tl.constexpr, PAGE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    parts: tl.constexpr = (group + BLOCK_GROUP - 1) // BLOCK_GROUP
    kv_head, of_group = tl.program_id(1) // parts, tl.program_id(1) % parts * BLOCK_GROUP
    lines: tl.constexpr = MIN_DOT if ROWS * BLOCK_GROUP < MIN_DOT else ROWS * BLOCK_GROUP
    first_row = tl.load(tiles + tile * 4)
    rows = tl.load(tiles + tile * 4 + 1)
    tables += tl.load(tiles + tile * 4 + 2).to(tl.int64) * table_stride
    visible = tl.load(tiles + tile * 4 + 3)
    line, d, j = tl.arange(0, lines), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_KEYS)
    row, of_group = line // BLOCK_GROUP, of_group + line % BLOCK_GROUP
    head = kv_head * group + of_group
    used = (row < rows) & (of_group < group)
    of_head = d < HEAD_DIM
    lies_at = (first_row + row).to(tl.int64) * HEADS + head
    q = tl.load(query + lies_at[:, None] * HEAD_DIM + d[None, :], mask=used[:, None] & of_head[None, :], other=0.0).to(
        DOT
    )
    last = visible + row - 1  # the line's own position
    start, end = _span(visible, rows, window, split, BLOCK_KEYS, SPLITS)
    peak = tl.full((lines,), float("-inf"), tl.float32)
    norm = tl.zeros((lines,), tl.float32)
    total = tl.zeros((lines, BLOCK_DIM), tl.float32)
    for block in range(start, end, BLOCK_KEYS):
        position = block + j
        inside = position < end
        key, value = _load_pair(
            kv, tables, page_stride, kv_head, position, inside, d, of_head, KV_HEADS, HEAD_DIM, PAGE, DOT
        )
        score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        if cap is not None:  # as 1 − 2 / (e^2x + 1), which stays in bounds where e^2x does not
            score = cap * (1.0 - 2.0 / (tl.exp(2.0 / cap * score) + 1.0))
        score = tl.where(_sees(last, position, inside, window), score, float("-inf"))
        peak, norm, total = _add_block(score, value, peak, norm, total, DOT)
    mask = used[:, None] & of_head[None, :]
    if SPLITS == 1:
        result = total / norm[:, None]
        tl.store(out + lies_at[:, None] * HEAD_DIM + d[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        part = lies_at * SPLITS + split
        tl.store(out + part[:, None] * HEAD_DIM + d[None, :], total, mask=mask)
        tl.store(sums + part * 2, peak, mask=used)
        tl.store(sums + part * 2 + 1, norm, mask=used)


@triton.jit
def _span(visible, rows, window, split, BLOCK_KEYS: tl.constexpr, SPLITS: tl.constexpr):
    """The positions, up to an end, that one split of a tile attends to."""
    start = visible * 0
    if window is not None:
        start = tl.maximum(visible - window, 0)
    end = visible + rows - 1
    each = tl.cdiv(tl.cdiv(end - start, BLOCK_KEYS), SPLITS) * BLOCK_KEYS
    start += split * each
    return start, tl.minimum(end, start + each)


@triton.jit
def _load_pair(
    kv, tables, page_stride, kv_head, position, inside, d, of_head,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Keys and values of a sequence's positions, zeros where they are not inside."""
    page = tl.load(tables + (position // PAGE) * page_stride, mask=inside, other=0)
    slot = page.to(tl.int64) * PAGE + position % PAGE
    source = kv + (slot * 2 * KV_HEADS + kv_head) * HEAD_DIM
    mask = inside[:, None] & of_head[None, :]
    key = tl.load(source[:, None] + d[None, :], mask=mask, other=0.0).to(DOT)
    value = tl.load(source[:, None] + KV_HEADS * HEAD_DIM + d[None, :], mask=mask, other=0.0).to(DOT)
    return key, value


@triton.jit
def _sees(last, position, inside, window):
    """[lines, positions]: whether a line, itself at `last`, attends to a position."""
    seen = inside[None, :] & (position[None, :] <= last[:, None])
    if window is not None:
        seen = seen & (position[None, :] > last[:, None] - window)
    return seen


@triton.jit
def _add_block(score, value, peak, norm, total, DOT: tl.constexpr):
    """The online softmax: a block's scores and values taken into peaks, sums of weights, and weighted values."""
    higher = tl.maximum(peak, tl.max(score, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a line that has seen nothing yet
    shift = tl.exp(peak - base)
    weight = tl.exp(score - base[:, None])
    norm = norm * shift + tl.sum(weight, axis=1)
    total = tl.dot(weight.to(DOT), value, acc=total * shift[:, None], input_precision="ieee")
    return higher, norm, total


@triton.jit
def _combine(
    parts, sums, out, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr
):
    lies_at = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    d, split = tl.arange(0, BLOCK_DIM), tl.arange(0, SPLITS)
    of_head = d < HEAD_DIM
    peaks = tl.load(sums + (lies_at * SPLITS + split) * 2)
    peak = tl.max(peaks, axis=0)
    norm = tl.sum(tl.load(sums + (lies_at * SPLITS + split) * 2 + 1) * tl.exp(peaks - peak), axis=0)
    total = tl.zeros((BLOCK_DIM,), tl.float32)
    for i in range(0, SPLITS):
        shift = tl.exp(tl.load(sums + (lies_at * SPLITS + i) * 2) - peak)
        total += tl.load(parts + (lies_at * SPLITS + i) * HEAD_DIM + d, mask=of_head, other=0.0) * shift
    tl.store(out + lies_at * HEAD_DIM + d, (total / norm).to(out.dtype.element_ty), mask=of_head)
