"""Log-probabilities of a prompt and its answer: PEFT's, a canonical form's, and an engine's."""

from collections.abc import Sequence

import torch
from canonical import canonical_logits
from peft import PeftModel
from running_engine import Answer
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.registry.formats.lowered import LoweredAdapter


@torch.no_grad()
def logprobs_by_peft(wrapped: PeftModel, tokens: Sequence[int], task: int | None = None) -> Tensor:
    """Of each token but the first, given those before it; virtual tokens are left out."""
    chosen = {} if task is None else {"task_ids": torch.tensor([task])}
    return _chosen(wrapped(input_ids=torch.tensor([tokens]), **chosen).logits[0, -len(tokens) :], tokens)


def logprobs_by_canonical_form(model: PreTrainedModel, adapter: LoweredAdapter, tokens: Sequence[int]) -> Tensor:
    """The same of a model under a canonical form."""
    return _chosen(canonical_logits(model, adapter, torch.tensor([tokens]))[0], tokens)


def _chosen(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def logprobs_of(answer: Answer) -> Tensor:
    """Of the prompt's tokens but the first, and of the answer's; both were asked for."""
    assert answer.error is None and answer.prompt_logprobs is not None
    known = [entry.logprob for entry in answer.prompt_logprobs if entry is not None]
    return torch.tensor(known + [entry.logprob for entry in answer.logprobs])
