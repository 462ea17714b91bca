"""A step's plan as flat arrays: what the decoder and the adapter tables read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch, PagedBatch, PrefillSegment
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.prefix_cache import VIRTUAL_TOKEN
from hotshoe.server.engine.replaced_rows import found_rows
from hotshoe.server.engine.step_plan import Chunk
from hotshoe.server.model.decoder_input import DecoderInput, HeadRows, HeadUpdate


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's rows, and which adapters each segment of them uses."""

    inputs: DecoderInput
    segments: tuple[AdapterSegment, ...]

    @property
    def num_rows(self) -> int:
        return self.inputs.token_ids.shape[0]


Attention = Callable[[KvBlocks, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], AttentionBatch | PagedBatch]


def build_step_batch(
    chunks: Sequence[Chunk], blocks: KvBlocks, attention: Attention, *, embedding_scale: float = 1.0
) -> StepBatch:
    """Lays chunks out as rows in their order; those of one row must come first.

    Args:
        attention: `by_slots` or `by_pages`, as the decoder takes it.
        embedding_scale: what the decoder multiplies rows of its embedding by: other rows in their place have it too,
            learned prompts do not.
    """
    starts = np.array([chunk.start for chunk in chunks])
    lengths = np.array([chunk.num_rows for chunk in chunks])
    num_logits = np.array([chunk.num_logits for chunk in chunks])
    tables = np.array([chunk.sequence.table for chunk in chunks])
    row_ends = lengths.cumsum()
    positions = _ranges(starts, lengths)
    token_ids = [token for chunk in chunks for token in chunk.sequence.tokens_at(chunk.start, chunk.end)]
    embedding_rows, embeddings = _given_embeddings(chunks, row_ends - lengths, embedding_scale)
    added_rows, added = _added_embeddings(chunks, row_ends - lengths, embedding_scale)
    inputs = DecoderInput(
        token_ids=torch.from_numpy(np.maximum(token_ids, 0)),  # VIRTUAL_TOKEN is in no vocabulary
        positions=torch.from_numpy(positions),
        kv_slots=torch.from_numpy(_slots(blocks, np.repeat(tables, lengths), positions)),
        attention=attention(blocks, tables, starts, lengths),
        logit_rows=torch.from_numpy(_ranges(row_ends - num_logits, num_logits)),
        embedding_rows=embedding_rows,
        embeddings=embeddings,
        added_rows=added_rows,
        added=added,
        far_rows=_far_rows(chunks, lengths),
        head_rows=_head_rows(chunks),
        head_updates=_head_updates(chunks),
    )
    segments = tuple(
        AdapterSegment(start=end - chunk.end + first, end=end - chunk.end + last, stack=stack)
        for chunk, end in zip(chunks, row_ends.tolist(), strict=True)
        for first, last, stack in chunk.sequence.stacks(chunk.start, chunk.end)
    )
    return StepBatch(inputs, segments)


def position_slots(blocks: KvBlocks, table: int, start: int, end: int) -> NDArray[np.int64]:
    """The kv slots of positions start … end−1 of one table."""
    return _slots(blocks, table, np.arange(start, end))


def page_slots(blocks: KvBlocks, pages: Sequence[int]) -> NDArray[np.int64]:
    """All kv slots of some pages."""
    return _page_slots(blocks, np.asarray(pages)).reshape(-1)


def _slots(blocks: KvBlocks, tables: int | NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    pages: NDArray[np.int64] = blocks.tables[tables, positions // blocks.page_tokens].astype(np.int64)
    return pages * blocks.page_tokens + positions % blocks.page_tokens


def _page_slots(blocks: KvBlocks, pages: NDArray[np.integer]) -> NDArray[np.int64]:  # [*pages.shape, page_tokens]
    return pages.astype(np.int64)[..., None] * blocks.page_tokens + np.arange(blocks.page_tokens)


def by_pages(
    blocks: KvBlocks, tables: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> PagedBatch:
    """Who attends to what, by block tables."""
    contexts = starts + lengths
    pages = blocks.tables[tables, : blocks.pages_for(int(contexts.max()))]
    return PagedBatch(blocks.page_tokens, pages, tuple(lengths.tolist()), tuple(contexts.tolist()))


def by_slots(
    blocks: KvBlocks, tables: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> AttentionBatch:
    """Who attends to what, slot by slot."""
    num_decodes = int((lengths == 1).sum())
    contexts = starts + lengths
    longest = int(contexts[:num_decodes].max(initial=0))
    pages = blocks.tables[tables[:num_decodes], : blocks.pages_for(longest)]
    slots = _page_slots(blocks, pages).reshape(num_decodes, pages.shape[1] * blocks.page_tokens)[:, :longest]
    slots = np.where(np.arange(longest) < contexts[:num_decodes, None], slots, 0)
    prefills = []
    row = num_decodes
    for table, length, context in zip(tables[num_decodes:], lengths[num_decodes:], contexts[num_decodes:], strict=True):
        context_slots = torch.from_numpy(position_slots(blocks, int(table), 0, int(context)))
        prefills.append(PrefillSegment(start=row, end=row + int(length), slots=context_slots))
        row += int(length)
    return AttentionBatch(
        num_decodes=num_decodes,
        decode_slots=torch.from_numpy(slots),
        decode_lengths=torch.from_numpy(contexts[:num_decodes]),
        prefills=tuple(prefills),
    )


def _given_embeddings(
    chunks: Sequence[Chunk], row_starts: NDArray[np.int64], scale: float
) -> tuple[Tensor | None, Tensor | None]:
    """The rows that stand for learned embeddings, or for tokens with other ones, and those; None, None if none do."""
    rows: list[int] = []
    parts: list[Tensor] = []
    for chunk, row_start in zip(chunks, row_starts.tolist(), strict=True):
        sequence = chunk.sequence
        start, end = chunk.start, min(chunk.end, sequence.virtual_tokens)
        if start < end:
            learned = [soft.prompt_embeddings for soft in sequence.terms if soft.prompt_embeddings is not None]
            parts.append(torch.cat(learned)[start - sequence.prefix_tokens : end - sequence.prefix_tokens])
            rows.extend(range(row_start, row_start + end - start))
        if sequence.embedding_rows is not None:
            places, values = found_rows(sequence.tokens_at(chunk.start, chunk.end), sequence.embedding_rows)
            parts.append(values * scale if scale != 1.0 else values)
            rows.extend(row_start + place for place in places)
    if not rows:
        return None, None
    return torch.tensor(rows), torch.cat(parts)


def _added_embeddings(
    chunks: Sequence[Chunk], row_starts: NDArray[np.int64], scale: float
) -> tuple[Tensor | None, Tensor | None]:
    """The rows of tokens whose embeddings adapters add to, and what; None, None if none do."""
    rows: list[Tensor] = []
    parts: list[Tensor] = []
    for chunk, row_start in zip(chunks, row_starts.tolist(), strict=True):
        if chunk.sequence.embedding_updates and chunk.end > chunk.sequence.virtual_tokens:
            tokens = torch.tensor(chunk.sequence.tokens_at(chunk.start, chunk.end))
            places = (tokens != VIRTUAL_TOKEN).nonzero()[:, 0]
            updates = [c * scale * (f.rows[tokens[places]] @ f.directions) for f, c in chunk.sequence.embedding_updates]
            rows.append(places + row_start)
            parts.append(sum(updates[1:], updates[0]))
    return (torch.cat(rows), torch.cat(parts)) if rows else (None, None)


def _far_rows(chunks: Sequence[Chunk], lengths: NDArray[np.int64]) -> Tensor | None:
    """Which rows are of far sequences; None if none is."""
    far = np.array([chunk.sequence.far for chunk in chunks])
    return torch.from_numpy(np.repeat(far, lengths)) if far.any() else None


def _head_updates(chunks: Sequence[Chunk]) -> tuple[HeadUpdate, ...]:
    found, end = [], 0
    for chunk in chunks:
        start, end = end, end + chunk.num_logits
        if start < end and chunk.sequence.head_updates:
            found.append(HeadUpdate(start, end, chunk.sequence.head_updates))
    return tuple(found)


def _head_rows(chunks: Sequence[Chunk]) -> tuple[HeadRows, ...]:
    found, end = [], 0
    for chunk in chunks:
        start, end = end, end + chunk.num_logits
        if start < end and chunk.sequence.head_rows is not None:
            found.append(HeadRows(start, end, *chunk.sequence.head_rows))
    return tuple(found)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranges start … start + length − 1, one behind the other."""
    ends = lengths.cumsum()
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
