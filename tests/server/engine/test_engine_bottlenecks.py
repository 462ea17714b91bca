"""AdapterHub's bottleneck adapters through the engine: its package's log-probabilities, alone, stacked, weighted."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import store_adapters
import torch
from engine_logprobs import logprobs_by_canonical_form
from hub_adapters import AVERAGE, CASES, FAMILIES, FIXTURES, hub_base, hub_files, hub_logits
from running_engine import RunningEngine, make_request
from tiny_models import ModelWeights, base_shape
from torch import Tensor

from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.engine.request import AdapterUse, Request
from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config

Start = Callable[..., RunningEngine]


@pytest.fixture
def start(registry: Registry) -> Iterator[Start]:
    """An engine of a family's base."""
    opened = []

    def make_engine(family: str, **config: int) -> RunningEngine:
        checkpoint = DirectoryCheckpoint(FIXTURES / family / "base")
        decoder = read_decoder(checkpoint, spec_from_config(checkpoint.config), reference_backend())
        shape = base_shape(hub_base(family))
        slots = AdapterSlots.for_base(shape, num_slots=16, backend="reference")
        weights = CheckpointWeights(checkpoint, shape)
        residency = AdapterResidency(
            registry=registry, base=weights, slots=slots, config=ResidencyConfig(adapter_slots=16)
        )
        opened.append(residency)
        return RunningEngine(decoder, slots=slots, residency=residency, **config)

    yield make_engine
    for residency in opened:
        residency.close()


def published(registry: Registry, family: str, case: str) -> AdapterUse:
    files = {name: path.read_bytes() for name, path in hub_files(family, case).items()}
    record, _ = store_adapters.publish(registry, case, files, base=base_shape(hub_base(family)))
    assert {file.file_name for file in record.files} == {*files, "adapter.card.json"}
    return AdapterUse(case, case, record.digest)


def asked(tokens: list[int], *uses: AdapterUse) -> Request:
    return make_request(tokens, adapters=uses, max_new_tokens=24, prompt_logprobs=0)


def known(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of each token but the first."""
    return logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def given(running: RunningEngine, request: Request) -> Tensor:
    answer = running.answers[request.request_id, 0]
    assert answer.error is None and answer.prompt_logprobs is not None
    return torch.tensor([entry.logprob for entry in answer.prompt_logprobs if entry is not None])


@pytest.mark.parametrize(("running_requests", "step_tokens"), [(64, 512), (8, 8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_in_one_batch_gives_the_package_s_log_probabilities(
    family: str, running_requests: int, step_tokens: int, start: Start, registry: Registry
) -> None:
    logits = hub_logits(family)
    cases = [case for name, case in CASES if name == family]
    uses = {"base": (), **{case: (published(registry, family, case),) for case in cases}}
    if family == "llama":  # a stack is what the package calls an average by these weights
        uses["average"] = tuple(replace(*uses[case], weight=weight) for case, weight in AVERAGE.items())
    requests = {
        (case, row): asked(logits["tokens"][row].tolist(), *stack) for case, stack in uses.items() for row in range(2)
    }
    with start(family, max_running_requests=running_requests, max_step_tokens=step_tokens) as running:
        running.run(*(make_request([1], adapters=stack) for stack in uses.values()))  # all are on the device
        running.run(*requests.values())
        assert max(report.stats.distinct_adapters for report in running.reports) >= min(4, len(cases))
    for (case, row), request in requests.items():
        expected = known(logits[case][row], logits["tokens"][row])
        assert (given(running, request) - expected).abs().max() < 2e-5, case


def test_a_weight_scales_what_a_network_adds(start: Start, registry: Registry) -> None:
    tokens = hub_logits("llama")["tokens"]
    model = hub_base("llama")
    uses = {case: published(registry, "llama", case) for case in ("parallel-residual-gone", "compacter")}
    requests = {case: asked(tokens[0].tolist(), replace(use, weight=0.3)) for case, use in uses.items()}
    with start("llama") as running:
        running.run(*requests.values())
    for case, request in requests.items():
        lowered = lower_adapter(hub_files("llama", case), ModelWeights(model))
        weak = {
            block: replace(
                one,
                up=0.3 * one.up,
                up_bias=None if one.up_bias is None else 0.3 * one.up_bias,
                residual_gain=0.3 * one.residual_gain,
            )
            for block, one in lowered.bottlenecks.items()
        }
        expected = logprobs_by_canonical_form(model, replace(lowered, bottlenecks=weak), tokens[0].tolist())
        assert (given(running, request) - expected).abs().max() < 2e-5


def test_no_other_request_finds_its_pages(start: Start, registry: Registry) -> None:
    prompt = hub_logits("llama")["tokens"].flatten().tolist()
    uses = [published(registry, "llama", case) for case in ("houlsby", "pfeiffer")]
    stacks = [[], *([use] for use in uses), [replace(uses[0], weight=0.5)], uses]
    with start("llama") as running:
        cold = [running.run(make_request(prompt, adapters=stack))[0] for stack in stacks]
        warm = [running.run(make_request(prompt, adapters=stack))[0] for stack in stacks]
    assert [answer.cached_prompt_tokens for answer in cold] == [0] * len(stacks)
    assert [answer.cached_prompt_tokens for answer in warm] == [16] * len(stacks)
    assert [answer.token_ids for answer in warm] == [answer.token_ids for answer in cold]
