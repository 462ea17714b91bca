"""Phi-3's long contexts: a sequence beyond the first one turns otherwise, all of it, whoever else is in its batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_logprobs import logprobs_of
from model_directories import write_tiny_model
from peft import PeftModel
from peft_adapters import write_lora, write_prefix, write_prompt
from running_engine import Answer, RunningEngine, make_request
from tiny_models import base_shape
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config

StartEngine = Callable[..., RunningEngine]
NEAR = 24  # positions of the first context
ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.4, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
}
PROMPTS = [[(7 * i + 31 * length) % 250 for i in range(length)] for length in (20, 3, 24, 25, 23, 60, 8)]
COUNTS = (12, 8, 6, 6, 2, 5, 30)  # of new tokens: most begin near and end far, some stay what they are


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp("phi3")
    fields = {"rope_parameters": ROPE, "original_max_position_embeddings": NEAR}
    model = write_tiny_model(directory, "phi3", seed=3, **fields)
    checkpoint = DirectoryCheckpoint(directory)
    decoder = read_decoder(checkpoint, spec_from_config(checkpoint.config), reference_backend())
    shape = base_shape(model)
    weights = CheckpointWeights(checkpoint, shape)
    return SimpleNamespace(model=model, directory=directory, decoder=decoder, weights=weights, shape=shape)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """Each token by a forward pass over the whole sequence, and its log-probability."""
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        row = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        tokens.append(int(row.argmax()))
        logprobs.append(row.max().item())
    return tokens[len(prompt) :], logprobs


def requests(**fields) -> list:
    return [make_request(p, max_new_tokens=n, logprobs=1, **fields) for p, n in zip(PROMPTS, COUNTS, strict=True)]


def logprobs(answer: Answer) -> list[float]:
    return [entry.logprob for entry in answer.logprobs]


@pytest.mark.parametrize("config", [{}, {"max_step_tokens": 16, "max_running_requests": 3}, {"kv_tokens": 96}])
def test_tokens_are_those_of_transformers_before_and_beyond_the_first_context(
    start_engine: StartEngine, model: PreTrainedModel, config: dict[str, int]
) -> None:
    with start_engine(**config) as running:
        answers = running.run(*requests())
    for prompt, count, answer in zip(PROMPTS, COUNTS, answers, strict=True):
        tokens, expected = greedy(model, prompt, count)
        assert answer.error is None and answer.token_ids == tokens
        assert logprobs(answer) == pytest.approx(expected, abs=1e-4)


def test_they_are_those_of_its_own_generate(start_engine: StartEngine, model: PreTrainedModel) -> None:
    with start_engine() as running:
        (answer,) = running.run(make_request(PROMPTS[0], max_new_tokens=12))
    prompt = torch.tensor([PROMPTS[0]])
    theirs = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None)
    assert answer.token_ids == theirs[0, len(PROMPTS[0]) :].tolist()


def test_a_sequence_is_computed_once_more_when_it_becomes_far_and_no_oftener(start_engine: StartEngine) -> None:
    with start_engine() as running:
        running.run(make_request(PROMPTS[0], max_new_tokens=12))
    assert running.total("rows") == len(PROMPTS[0]) + (NEAR - len(PROMPTS[0])) + NEAR + 1 + (12 - 6)
    assert running.total("preemptions") == 0


def test_near_and_far_sequences_share_no_cached_page(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[5]
    with start_engine(page_tokens=4) as running:
        (near,) = running.run(make_request(prompt[:20], max_new_tokens=2))
        (far,) = running.run(make_request(prompt, max_new_tokens=4))
        (again,) = running.run(make_request(prompt, max_new_tokens=4))
        (near_again,) = running.run(make_request(prompt[:20], max_new_tokens=2))
    assert (near.cached_prompt_tokens, far.cached_prompt_tokens) == (0, 0)
    assert again.cached_prompt_tokens >= 56 and 0 < near_again.cached_prompt_tokens <= 20
    assert again.token_ids == far.token_ids == greedy(model, prompt, 4)[0]
    assert near_again.token_ids == near.token_ids == greedy(model, prompt[:20], 2)[0]


def test_answers_to_one_prompt_become_far_each_by_itself(start_engine: StartEngine, model: PreTrainedModel) -> None:
    request = make_request(PROMPTS[4], max_new_tokens=9, n=3)
    with start_engine() as running:
        running.run(request)
    assert [answer.token_ids for answer in running.all_answers(request)] == [greedy(model, PROMPTS[4], 9)[0]] * 3


@pytest.mark.parametrize("write", [write_lora, write_prefix, write_prompt])
def test_virtual_tokens_count_and_adapters_act_as_in_peft(
    write: Callable[..., Path], start_engine: StartEngine, base: SimpleNamespace, publish: Callable, tmp_path: Path
) -> None:
    fields = {"targets": ("qkv_proj", "gate_up_proj", "down_proj")} if write is write_lora else {"tokens": 6}
    use = publish(write(tmp_path / "adapter", base.shape, **fields))
    asked = [
        make_request(prompt, max_new_tokens=3, adapters=[use], logprobs=1, prompt_logprobs=1)
        for prompt in (PROMPTS[0], PROMPTS[6], PROMPTS[3])
    ]
    with start_engine() as running:
        answers = running.run(*asked, make_request(PROMPTS[0]))
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.directory), tmp_path / "adapter")
    for request, answer in zip(asked, answers, strict=False):
        prompt = list(request.prompt_token_ids)
        tokens = [*prompt, *answer.token_ids]
        expected = following(wrapped.eval(), prompt)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        expected += [following(wrapped, tokens[:i])[-1, tokens[i]].item() for i in range(len(prompt), len(tokens))]
        assert logprobs_of(answer).tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def following(wrapped: PeftModel, tokens: Sequence[int]) -> Tensor:
    """[len(tokens), vocab]: log-probabilities of what follows each of them."""
    return wrapped(input_ids=torch.tensor([tokens])).logits[0, -len(tokens) :].log_softmax(-1)
