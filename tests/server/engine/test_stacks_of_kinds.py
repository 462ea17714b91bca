"""Stacks of different kinds: the effects of their adapters, each times its weight, as one dense model has them.

What acts on a linear's inputs, and what acts on its outputs, adds up by itself; the one acts before the other.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_logprobs import logprobs_by_peft, logprobs_of
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS
from running_engine import RunningEngine, make_request
from tiny_models import ModelWeights
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear, OutputSwap, ScaledCopies
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes.dense_update import dense_update
from hotshoe.server.engine.request import AdapterUse

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
PROMPT = [25, 68, 4, 118, 25, 9, 7, 23, 3, 5, 118]
NAMES = [
    "rank-stabilized lora with patterns",
    "rank-stabilized dora with patterns",
    "lora with every bias",
    "ia3 on everything",
    "oft",
    "road",
    "glora of matrices",
    "vera",
    "hra",
    "ln-tuning",
    "trainable tokens",
    "lora with other tokens of the head",
    "rank-stabilized lora on embedding and head alone",
]
WEIGHTS = (0.0, -0.7, 0.5, 1.0, 1.8)


def around(one: float, parts: list[tuple[Tensor | None, float]]) -> Tensor | None:
    found = [weight * (part - one) for part, weight in parts if part is not None]
    return one + sum(found[1:], start=found[0]) if found else None


def combined(parts: list[tuple[LoweredLinear, float]]) -> LoweredLinear:
    """One linear of a stack, without its low-rank part."""
    rotations = [(part.input_rotation, weight) for part, weight in parts if part.input_rotation is not None]
    whole = [(torch.block_diag(*matrices), weight) for matrices, weight in rotations]
    one = torch.eye(len(whole[0][0])) if whole else torch.zeros(0)
    swaps = [(part.output_swap, weight) for part, weight in parts if part.output_swap is not None]
    copies = [(part.copies, weight) for part, weight in parts if part.copies is not None]
    assert max(len(swaps), len(copies)) <= 1
    return LoweredLinear(
        input_scale=around(1.0, [(part.input_scale, weight) for part, weight in parts]),
        output_scale=around(1.0, [(part.output_scale, weight) for part, weight in parts]),
        input_rotation=(one + sum(weight * (turned - one) for turned, weight in whole))[None] if whole else None,
        output_swap=OutputSwap(swaps[0][0].partners, swaps[0][1] * swaps[0][0].gains) if swaps else None,
        copies=ScaledCopies(copies[0][1] * copies[0][0].outputs, copies[0][0].inputs) if copies else None,
    )


def put(model: PreTrainedModel, base: ModelWeights, stack: list[tuple[LoweredAdapter, float]]) -> None:
    """Changes a model as a stack does; `base` is the model that adapters were lowered on."""
    modules = dict(model.named_modules())
    for linear, shape in base.shape.linears.items():
        part, weight = modules[shape.module], base.weight(linear)
        own = [(adapter.linears[linear], share) for adapter, share in stack if linear in adapter.linears]
        if (update := dense_update(combined(own), weight)) is not None:
            part.weight += update
        for lowered, share in own:
            if (factors := lowered.factors) is not None:
                a, b = factors
                part.weight += share * b @ a
            if lowered.bias_delta is not None:
                if part.bias is None:
                    part.bias = torch.nn.Parameter(torch.zeros(part.out_features))
                part.bias += share * lowered.bias_delta
    for adapter, share in stack:
        for norm, added in adapter.norms.items():
            modules[base.shape.norms[norm].module].weight += share * added
        for module, rows, tokens in (
            (model.get_input_embeddings(), adapter.embedding_rows, adapter.embedding_update),
            (model.get_output_embeddings(), adapter.head_rows, adapter.head_update),
        ):
            if rows is not None:
                module.weight[rows.token_ids] += share * (rows.rows - rows.base)
            if tokens is not None:
                module.weight += share * tokens.rows @ tokens.directions


@pytest.mark.parametrize("seed", range(2))
def test_a_stack_of_any_kinds_has_the_weighted_effects_of_each(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    base = ModelWeights(model)
    lowered = {}
    places = {name: tmp_path / name.replace(" ", "-") for name in NAMES}
    for name in NAMES:
        save_peft(places[name], copy.deepcopy(model), CONFIGS[name]())
        lowered[name] = lower_adapter(adapter_files(places[name]), base)
    stacks = [
        [(name, generator.choice(WEIGHTS)) for name in generator.sample(NAMES, generator.choice((1, 2, 3)))]
        for _ in range(8)
    ]
    asked = {"max_new_tokens": 3, "logprobs": 0, "prompt_logprobs": 0}
    uses = [[publish(places[name], weight=weight) for name, weight in stack] for stack in stacks]
    with start_engine() as running:
        answers = running.run(*(make_request(PROMPT, adapters=stack, **asked) for stack in uses))
    for stack, answer in zip(stacks, answers, strict=True):
        dense = copy.deepcopy(model)
        with torch.no_grad():
            put(dense, base, [(lowered[name], weight) for name, weight in stack])
        expected = logprobs_by_peft(dense, [*PROMPT, *answer.token_ids])
        assert (logprobs_of(answer) - expected).abs().max() < 1e-4, stack
