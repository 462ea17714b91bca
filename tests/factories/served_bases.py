"""What a served base is to transformers, and what it and a server make of a prompt."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hotshoe.clients import Client
from hotshoe.server.model.loader import open_base


def served_model(directory: Path, bases: Path) -> PreTrainedModel:
    """The base as transformers has it, of the weights that are served: dequantized linears, the rest in bfloat16."""
    base = open_base(str(directory), cache=bases)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        for linear, shape in base.weights.shape.linears.items():
            model.get_submodule(shape.module).weight.copy_(base.weights.weight(linear))
    return model


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: Sequence[int], count: int = 6) -> tuple[list[int], list[float]]:
    """Each token by a forward pass over the whole sequence, and its log-probability."""
    tokens, found = list(prompt), []
    for _ in range(count):
        row = model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        tokens.append(int(row.argmax()))
        found.append(row.max().item())
    return tokens[len(prompt) :], found


def answer(
    client: Client, prompt: Sequence[int], adapters: Sequence[object], *, count: int = 6
) -> tuple[list[int], list[float]]:
    """As many tokens of a server's answer, and their log-probabilities."""
    response = client.generate(list(prompt), adapters=adapters, max_new_tokens=count, ignore_eos=True, logprobs=0)
    tokens = response.completions[0].tokens
    return [token.token_id for token in tokens], [token.logprob for token in tokens]
