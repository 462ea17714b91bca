"""How well a model predicts a text: the mean loss of its tokens, in float32 through the reference backend."""

import torch

from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.decoder_input import DecoderInput
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.spec import ModelSpec

_UNUSED_SLOTS = 16  # the cache's first page


def probe_logits(checkpoint: Checkpoint, spec: ModelSpec, token_ids: list[int]) -> torch.Tensor:
    """[tokens, vocab] float32."""
    decoder = read_decoder(checkpoint, spec, reference_backend())
    count = len(token_ids)
    positions = torch.arange(count)
    slots = positions + _UNUSED_SLOTS
    attention = AttentionBatch(
        num_decodes=0,
        decode_slots=torch.zeros((0, 0), dtype=torch.int64),
        decode_lengths=torch.zeros(0, dtype=torch.int64),
        prefills=(PrefillSegment(0, count, slots),),
    )
    step = DecoderInput(torch.tensor(token_ids), positions, slots, attention, logit_rows=positions)
    return decoder.forward(step, decoder.new_kv_cache(count + _UNUSED_SLOTS))


def probe_loss(logits: torch.Tensor, token_ids: list[int]) -> float:
    """Mean negative log likelihood of each token but the first, in nats."""
    with torch.inference_mode():
        return float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(token_ids[1:])))
