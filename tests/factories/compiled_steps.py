"""Steps and caches for compiled layers."""

import torch
from decoder_inputs import PAGE, Chunk, decoder_input, paged_slots
from torch import Tensor

from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.loader import LoadedBase


def decode_step(contexts: tuple[int, ...], *, first_token: int = 7) -> DecoderInput:
    """One token of each sequence; no two are of one page."""
    chunks = [
        Chunk([(first_token + 13 * row) % 250], context - 1, paged_slots(64, first_page=1 + 4 * row))
        for row, context in enumerate(contexts)
    ]
    return decoder_input(chunks)


def filled_cache(base: LoadedBase) -> KvCache:
    """Random keys and values, always the same."""
    kv = base.decoder.new_kv_cache(64 * PAGE)
    generator = torch.Generator().manual_seed(5)
    for layer in kv.layers:
        layer[PAGE:] = 0.5 * torch.randn(layer[PAGE:].shape, generator=generator)
    return kv


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
