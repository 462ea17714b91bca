"""Steps for the decoder, built by hand: what the engine's step batch would be for a few sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.server.model.decoder_input import DecoderInput

PAGE = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens that a step adds to one sequence; `slots` are all its slots, from position 0."""

    token_ids: Sequence[int]
    start: int  # position of the first of them
    slots: Tensor  # [at least start + len(token_ids)] int64
    far: bool = False  # of a sequence that is longer than the model's first context


def paged_slots(count: int, *, first_page: int, stride: int = 1) -> Tensor:
    """Slots of `count` positions in pages first_page, first_page + stride, …"""
    position = torch.arange(count)
    return (first_page + position // PAGE * stride) * PAGE + position % PAGE


def decoder_input(chunks: Sequence[Chunk], *, all_logits: bool = False) -> DecoderInput:
    """One step: chunks of one token come first, as decodes. Logits of each chunk's last row, or of all rows."""
    ordered = [c for c in chunks if len(c.token_ids) == 1] + [c for c in chunks if len(c.token_ids) > 1]
    assert list(chunks) == ordered, "one-token chunks come first"
    decodes = [c for c in chunks if len(c.token_ids) == 1]
    lengths = [c.start + 1 for c in decodes]
    decode_slots = torch.zeros((len(decodes), max(lengths, default=0)), dtype=torch.int64)
    for row, chunk in enumerate(decodes):
        decode_slots[row, : chunk.start + 1] = chunk.slots[: chunk.start + 1]
    prefills, last, row = [], [], len(decodes)
    last.extend(range(len(decodes)))
    for chunk in chunks[len(decodes) :]:
        end = row + len(chunk.token_ids)
        prefills.append(PrefillSegment(row, end, chunk.slots[: chunk.start + len(chunk.token_ids)]))
        row = end
        last.append(row - 1)
    return DecoderInput(
        token_ids=torch.tensor([t for c in chunks for t in c.token_ids]),
        positions=torch.cat([torch.arange(c.start, c.start + len(c.token_ids)) for c in chunks]),
        kv_slots=torch.cat([c.slots[c.start : c.start + len(c.token_ids)] for c in chunks]),
        attention=AttentionBatch(
            num_decodes=len(decodes),
            decode_slots=decode_slots,
            decode_lengths=torch.tensor(lengths, dtype=torch.int64),
            prefills=tuple(prefills),
        ),
        far_rows=torch.tensor([c.far for c in chunks for _ in c.token_ids]) if any(c.far for c in chunks) else None,
        logit_rows=torch.arange(row) if all_logits else torch.tensor(last),
    )
