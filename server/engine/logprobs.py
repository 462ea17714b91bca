"""Log-probabilities of tokens under the model's own distribution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotshoe.server.engine.request import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenLogprob]:
    """The log-probability of one token per row, under log_softmax of the unmodified logits.

    Temperature, penalties, bias and filters do not show in it, so that it compares between requests.

    Args:
        logits: [len(token_ids), vocab_size] float32.
        token_ids: the token of each row; its rank is 1 + the number of strictly likelier ones.
        num_alternatives: how many of the likeliest tokens to report for each row.
    """
    if not token_ids:
        return []
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    normalizers = logits.logsumexp(dim=-1, keepdim=True)
    ranks = ((logits > chosen).sum(dim=-1) + 1).tolist()
    logprobs = (chosen - normalizers)[:, 0].tolist()
    top = logits.topk(min(max(num_alternatives), logits.shape[-1]), dim=-1)
    top_ids, top_logprobs = top.indices.tolist(), (top.values - normalizers).tolist()
    return [
        TokenLogprob(
            token_id=token,
            logprob=logprobs[row],
            rank=ranks[row],
            alternatives=tuple(zip(top_ids[row][:count], top_logprobs[row][:count], strict=True)),
        )
        for row, (token, count) in enumerate(zip(token_ids, num_alternatives, strict=True))
    ]
