"""What requests get through adapters: PEFT's own tokens, whatever else is in the batch, and never another's pages."""

import copy
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft_adapters
import pytest
import torch
from engine_logprobs import logprobs_by_canonical_form, logprobs_by_peft, logprobs_of
from hub_adapters import write_bottleneck
from peft import PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, one_of_each_kind, tasks_of
from residency_house import until
from running_engine import RunningEngine, make_request
from tiny_models import ModelWeights
from transformers import PreTrainedModel

from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.engine.request import AdapterUse, FinishReason, SamplingParams
from hotshoe.server.errors import AdapterUnusable, PromptTooLong

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
RANDOM = random.Random(1)
PROMPTS = [[RANDOM.randrange(256) for _ in range(length)] for length in (13, 1, 40, 6)]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def peft_tokens(model: PreTrainedModel, directory: Path, prompt: Sequence[int], count: int) -> list[int]:
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(directory)).eval()
    generated = wrapped.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )
    return generated[0, len(prompt) :].tolist()


def write_kinds(root: Path, model: PreTrainedModel) -> dict[str, Path]:
    return {
        "lora-1": peft_adapters.write_lora(root / "lora-1", model, rank=1, targets=ALL, seed=1),
        "lora-24": peft_adapters.write_lora(root / "lora-24", model, rank=24, targets=("o_proj", "up_proj"), seed=2),
        "ia3": peft_adapters.write_ia3(root / "ia3", model, seed=3),
        "prefix": peft_adapters.write_prefix(root / "prefix", model, tokens=6, seed=4),
        "prompt": peft_adapters.write_prompt(root / "prompt", model, tokens=5, seed=5),
    }


@pytest.mark.parametrize("config", [{}, {"max_step_tokens": 16, "page_tokens": 1}, {"kv_tokens": 192}])
def test_all_kinds_in_one_batch_give_peft_s_tokens(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, config: dict[str, int]
) -> None:
    directories = write_kinds(tmp_path / "adapters", model)
    uses = {name: publish(directory) for name, directory in directories.items()}
    cases = [(name, prompt) for prompt in PROMPTS for name in uses]
    requests = [make_request(prompt, max_new_tokens=12, adapters=[uses[name]]) for name, prompt in cases]
    bases = [make_request(prompt, max_new_tokens=12) for prompt in PROMPTS]
    with start_engine(**config) as running:
        for use in uses.values():
            running.engine._residency.load(use.digest)  # else the first might have ended before the others are read
        running.run(*requests, *bases)
    for (name, prompt), request in zip(cases, requests, strict=True):
        answer = running.answers[request.request_id, 0]
        assert answer.error is None
        assert answer.token_ids == peft_tokens(model, directories[name], prompt, 12), name
    plain = [running.answers[request.request_id, 0].token_ids for request in bases]
    alone = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert plain[0] == alone[0, len(PROMPTS[0]) :].tolist()
    assert max(report.stats.distinct_adapters for report in running.reports) >= 4


def test_one_of_every_kind_at_once_gives_its_package_s_log_probabilities(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    configs = {kind.lower(): config for kind, config in one_of_each_kind().items()}
    assert configs.keys() == {kind.lower() for kind in ADAPTER_KINDS}
    for kind, config in configs.items():
        save_peft(tmp_path / kind, copy.deepcopy(model), config)
    write_bottleneck(tmp_path / "bottleneck", model)
    asked = {"max_new_tokens": 6, "logprobs": 0, "prompt_logprobs": 0}
    tasks = {kind: tasks_of(config) for kind, config in configs.items()}
    tasks |= {kind.lower(): [None] for kind in ADAPTERHUB_KINDS}
    requests = {
        (kind, task): make_request(PROMPTS[0], adapters=[publish(tmp_path / kind, task=task)], **asked)
        for kind in tasks
        for task in tasks[kind]
    }
    with start_engine(max_running_requests=64, adapter_slots=64, max_step_tokens=128) as running:
        running.run(*requests.values())
    for (kind, task), request in requests.items():
        answer = running.answers[request.request_id, 0]
        assert answer.error is None
        if kind == "bottleneck":  # whose canonical form is held to the package's logits elsewhere
            lowered = lower_adapter(adapter_files(tmp_path / kind), ModelWeights(model))
            expected = logprobs_by_canonical_form(model, lowered, [*PROMPTS[0], *answer.token_ids])
            assert (logprobs_of(answer) - expected).abs().max() < 2e-5
            continue
        wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / kind)).eval()
        expected = logprobs_by_peft(wrapped, [*PROMPTS[0], *answer.token_ids], task)
        assert (logprobs_of(answer) - expected).abs().max() < 2e-5, (kind, task)
    assert {task for _, task in requests} == {None, 0, 1, 2}


@pytest.mark.parametrize("name", ["poly", "multitask prompt"])
def test_tasks_of_one_adapter_never_find_each_other_s_pages(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, name: str
) -> None:
    save_peft(tmp_path / "skilled", copy.deepcopy(model), CONFIGS[name]())
    uses = [publish(tmp_path / "skilled", task=task) for task in range(3)]
    asked = {"max_new_tokens": 4, "logprobs": 0, "prompt_logprobs": 0}
    cached, again = [], []
    with start_engine(page_tokens=4) as running:
        for use in uses:
            [first] = running.run(make_request(PROMPTS[2], adapters=[use], **asked))
            cached.append(first.cached_prompt_tokens)
        for use in uses:
            [second] = running.run(make_request(PROMPTS[2], adapters=[use], max_new_tokens=4))
            again.append((second.cached_prompt_tokens, second.token_ids))
        firsts = [running.answers[key] for key in list(running.answers)[:3]]
    assert cached == [0, 0, 0]
    assert [tokens > 30 for tokens, _ in again] == [True] * 3  # its own
    assert [tokens for _, tokens in again] == [first.token_ids for first in firsts]
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "skilled")).eval()
    for task, first in enumerate(firsts):
        expected = logprobs_by_peft(wrapped, [*PROMPTS[2], *first.token_ids], task)
        assert (logprobs_of(first) - expected).abs().max() < 2e-5, task


def test_stacks_add_their_adapters_by_weight(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    one = peft_adapters.write_lora(tmp_path / "one", model, rank=4, targets=ALL, seed=1, scale=0.2)
    two = peft_adapters.write_lora(tmp_path / "two", model, rank=8, targets=ALL, seed=2, scale=0.2)
    stacks = {
        "both": [publish(one), publish(two)],
        "half": [publish(one, weight=0.5), publish(two)],
        "swapped": [publish(two), publish(one)],
    }
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(one), adapter_name="one").eval()
    wrapped.load_adapter(str(two), "two")
    wrapped.base_model.set_adapter(["one", "two"])
    requests = {name: make_request(PROMPTS[0], max_new_tokens=12, adapters=uses) for name, uses in stacks.items()}
    with start_engine() as running:
        running.run(*requests.values())
    tokens = {name: running.answers[request.request_id, 0].token_ids for name, request in requests.items()}
    prompt = torch.tensor([PROMPTS[0]])
    both = wrapped.base_model.model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert tokens["both"] == both[0, len(PROMPTS[0]) :].tolist() == tokens["swapped"]
    assert tokens["half"] != tokens["both"]


@pytest.mark.parametrize("max_step_tokens", [64, 16])
def test_an_activated_lora_answers_as_peft_s_and_finds_the_base_s_pages(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, max_step_tokens: int
) -> None:
    text, invocation = [*range(20, 57)], [3, 1, 4]
    prompts = {"called": text + invocation + [9, 8], "called twice": invocation + text + invocation, "not called": text}
    directory = peft_adapters.write_lora(
        tmp_path / "activated", model, rank=4, targets=ALL, scale=0.3, alora_invocation_tokens=invocation
    )
    use = publish(directory)
    with start_engine(max_step_tokens=max_step_tokens, page_tokens=4) as running:
        [before] = running.run(make_request(text, max_new_tokens=1))
        answers = {
            name: running.run(make_request(prompt, max_new_tokens=12, adapters=[use]))[0]
            for name, prompt in prompts.items()
        }
    for name, prompt in prompts.items():
        assert answers[name].token_ids == peft_tokens(model, directory, prompt, 12), name
    assert before.cached_prompt_tokens == 0
    assert {name: answer.cached_prompt_tokens for name, answer in answers.items()} == {
        "called": 36,
        "called twice": 0,
        "not called": 36,
    }


def test_no_two_adapters_ever_share_a_page(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    directories = write_kinds(tmp_path / "adapters", model)
    uses = [publish(directory) for directory in directories.values()]
    half = AdapterUse(uses[0].reference, uses[0].name, uses[0].digest, weight=0.5)
    stacks: list[list[AdapterUse]] = [[], *([use] for use in uses), [half], uses[:2], uses[1::-1]]
    prompt = PROMPTS[2]
    with start_engine(kv_tokens=4096) as running:
        cold = [running.run(make_request(prompt, adapters=stack))[0] for stack in stacks]
        warm = [running.run(make_request(prompt, adapters=stack))[0] for stack in stacks]
        other = [running.run(make_request(prompt, adapters=stack, tenant="b"))[0] for stack in stacks]
    assert [answer.cached_prompt_tokens for answer in cold] == [0] * len(stacks)
    assert all(answer.cached_prompt_tokens >= 33 for answer in warm)
    assert [answer.cached_prompt_tokens for answer in other] == [0] * len(stacks)
    assert [answer.token_ids for answer in warm] == [answer.token_ids for answer in cold]
    assert [answer.token_ids for answer in other] == [answer.token_ids for answer in cold]


@pytest.mark.parametrize("page_tokens", [1, 4, 8, 64])
def test_soft_prompts_are_shared_by_whole_pages(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, page_tokens: int
) -> None:
    prefix = peft_adapters.write_prefix(tmp_path / "prefix", model, tokens=18, seed=4)
    prompt_tuning = peft_adapters.write_prompt(tmp_path / "prompt", model, tokens=11, seed=5)
    for directory in (prefix, prompt_tuning):
        use = publish(directory)
        with start_engine(page_tokens=page_tokens) as running:
            answers = [running.run(make_request(prompt, adapters=[use]))[0] for prompt in PROMPTS]
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert answer.token_ids == peft_tokens(model, directory, prompt, 8)
            assert answer.cached_prompt_tokens == 0, "virtual tokens are no prompt tokens"
        virtual = 18 if directory is prefix else 11
        computed = running.total("rows") - sum(map(len, PROMPTS)) - 7 * len(PROMPTS)
        once = 0 if directory is prefix else virtual
        tails = (len(PROMPTS) - 1) * (virtual % page_tokens) if directory is prompt_tuning else 0
        assert computed == once + tails, "learned embeddings are computed once, but for the page that is not full"


def test_stacked_soft_prompts_keep_their_order(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    prefix = publish(peft_adapters.write_prefix(tmp_path / "prefix", model, tokens=3, seed=4))
    embedded = publish(peft_adapters.write_prompt(tmp_path / "prompt", model, tokens=5, seed=5))
    with start_engine() as running:
        one, two, prefix_only = running.run(
            make_request(PROMPTS[0], adapters=[prefix, embedded]),
            make_request(PROMPTS[0], adapters=[embedded, prefix]),
            make_request(PROMPTS[0], adapters=[prefix]),
        )
    assert one.token_ids == two.token_ids, "learned keys and values come first, whatever the order of the stack"
    assert one.token_ids != prefix_only.token_ids


def test_prompt_logprobs_and_scores_start_behind_the_virtual_tokens(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    directory = peft_adapters.write_prompt(tmp_path / "prompt", model, tokens=5, seed=5)
    use, prompt, choice = publish(directory), PROMPTS[0], (3, 9, 27)
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(directory)).eval()
    with torch.inference_mode():
        logits = wrapped(input_ids=torch.tensor([[*prompt, *choice]])).logits[0].double()
    expected = logits[-len(prompt) - 3 :].log_softmax(-1)
    request = make_request(prompt, max_new_tokens=0, choices=(choice,), logprobs=0, adapters=[use])
    with start_engine(max_step_tokens=16) as running:
        (scored,) = running.run(request)
        (prompted,) = running.run(make_request(prompt, adapters=[use], prompt_logprobs=0))
    for position, entry in enumerate(scored.logprobs, start=len(prompt) - 1):
        assert abs(entry.logprob - float(expected[position, entry.token_id])) < 1e-4
    assert prompted.prompt_logprobs is not None and prompted.prompt_logprobs[0] is None
    for position, known in enumerate(prompted.prompt_logprobs[1:]):
        assert known is not None and abs(known.logprob - float(expected[position, prompt[position + 1]])) < 1e-4


def test_what_does_not_fit_with_its_virtual_tokens_is_refused(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    use = publish(peft_adapters.write_prefix(tmp_path / "prefix", model, tokens=20))
    with start_engine(kv_tokens=64) as running:
        long, short, plain = running.run(
            make_request([1] * 40, max_new_tokens=10, adapters=[use]),
            make_request([1] * 30, max_new_tokens=10, adapters=[use]),
            make_request([1] * 40, max_new_tokens=10),
        )
    assert isinstance(long.error, PromptTooLong) and long.terminals == 1
    assert short.error is None and plain.error is None


def test_an_adapter_that_loads_slowly_holds_up_nobody_else(
    start_engine: StartEngine,
    publish: Publish,
    model: PreTrainedModel,
    tmp_path: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = publish(peft_adapters.write_lora(tmp_path / "slow", model, seed=1))
    quick = publish(peft_adapters.write_lora(tmp_path / "quick", model, seed=2))
    gate, loads = threading.Event(), []
    adapter_files = registry.adapter_files

    def gated(digest: str) -> dict[str, Path]:
        loads.append(digest)
        if digest == slow.digest:
            assert gate.wait(200)
        return adapter_files(digest)

    monkeypatch.setattr(registry, "adapter_files", gated)
    with start_engine(max_running_requests=2) as running:
        waiting = [make_request([i], adapters=[slow]) for i in range(4)]
        hasty = make_request([1], adapters=[slow], deadline=time.monotonic() + 0.1)
        limited = make_request([1], adapters=[slow], stopping={"time_limit_seconds": 0.1})
        behind = [make_request([i], adapters=[quick] if i % 2 else []) for i in range(6)]
        for request in [*waiting, hasty, limited, *behind]:
            running.engine.submit(request)
        running.wait(*behind, hasty, limited)
        assert running.answers[hasty.request_id, 0].finish_reason is FinishReason.CANCELLED
        assert running.answers[limited.request_id, 0].finish_reason is FinishReason.TIME_LIMIT
        assert not any((request.request_id, 0) in running.answers for request in waiting)
        assert running.reports[-1].stats.waiting == 4
        assert running.reports[-1].stats.waiting_adapters == (slow.digest,)
        gate.set()
        running.wait(*waiting)
        (later,) = running.run(make_request([9], adapters=[slow]))
    assert loads.count(slow.digest) == 1, "one load serves all who wait"
    first = running.answers[waiting[0].request_id, 0]
    assert first.times is not None and later.times is not None
    assert first.times.adapter_load > 0.0 and later.times.adapter_load == 0.0
    assert first.times.queued >= 0.9 * first.times.adapter_load


def test_a_load_that_fails_fails_only_those_who_want_it(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, registry: Registry
) -> None:
    broken = publish(peft_adapters.write_lora(tmp_path / "broken", model, seed=1))
    sound = publish(peft_adapters.write_lora(tmp_path / "sound", model, seed=2))
    path = registry.adapter_files(broken.digest)["adapter_model.safetensors"]
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with start_engine() as running:
        failed = make_request([1], n=3, adapters=[sound, broken], sampling=SamplingParams(temperature=1.0))
        running.run(failed, make_request([1], adapters=[sound]), make_request([1]))
        running.engine.check_integrity()
    for answer in running.all_answers(failed):
        assert isinstance(answer.error, AdapterUnusable) and answer.terminals == 1
    others = [answer for key, answer in running.answers.items() if key[0] != failed.request_id]
    assert all(answer.finish_reason is FinishReason.LENGTH for answer in others)


def test_more_adapters_than_slots_are_each_served_as_themselves(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    uses = {
        token: publish(peft_adapters.write_forced_token_lora(tmp_path / f"forced-{token}", model, token))
        for token in range(40, 52)
    }
    rng = random.Random(2)
    forced = [rng.choice(list(uses)) for _ in range(60)]
    requests = [make_request(PROMPTS[0], max_new_tokens=3, adapters=[uses[token]]) for token in forced]
    with start_engine(adapter_slots=3, max_running_requests=6) as running:
        answers = running.run(*requests)
        running.engine.check_integrity()
    assert [answer.token_ids for answer in answers] == [[token] * 3 for token in forced]
    assert max(report.stats.distinct_adapters for report in running.reports) <= 3


def test_an_adapter_in_constant_use_does_not_keep_another_out(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    hot = publish(peft_adapters.write_lora(tmp_path / "hot", model, seed=1))
    rare = publish(peft_adapters.write_lora(tmp_path / "rare", model, seed=2))
    stacks = [[hot]] * 3 + [[rare]] + [[hot]] * 12 + [[]]
    requests = [make_request([1], max_new_tokens=5, adapters=stack) for stack in stacks]
    with start_engine(adapter_slots=1, max_running_requests=2, max_overtakes=2) as running:
        running.engine._residency.load(hot.digest)  # else whichever was read first would have the slot
        running.engine._residency.load(rare.digest, tier=Tier.HOST)  # it is in line for a slot once it was read
        running.run(*requests)
    ends = [o.request_id for report in running.reports for o in report.outputs if o.finish_reason is not None]
    order = [ends.index(request.request_id) for request in requests]
    assert sorted(order[:16]).index(order[3]) == 5, "two may pass it; the others wait until it had the slot"
    assert order[16] < max(order[4:16]), "but not who needs no adapter"


def test_neighbours_change_no_bit_of_a_row_s_logits(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    uses = [publish(directory) for directory in write_kinds(tmp_path / "adapters", model).values()]
    rng = random.Random(5)
    target = {"adapters": [uses[0]], "max_new_tokens": 10}
    seen = []
    for _ in range(4):
        neighbours = [
            make_request([rng.randrange(256) for _ in range(length)], max_new_tokens=10, adapters=adapters)
            for length, adapters in zip((9, 17, 4), rng.sample([[], uses[:1], uses[1:2], uses[2:3]], 3), strict=True)
        ]
        with start_engine() as running:
            for use in uses:
                running.run(make_request([1], adapters=[use], max_new_tokens=1))  # all are on the device
            run, logits = running.engine._runner.run, []

            def record(plan: Any, run: Any = run, logits: Any = logits) -> Any:
                out = run(plan)
                logits.append(out.logits[0].clone())
                return out

            running.engine._runner.run = record  # type: ignore[method-assign]
            (answer, *_) = running.run(make_request(PROMPTS[0], **target), *neighbours)
        seen.append((answer.token_ids, torch.stack(logits)))
    for token_ids, logits in seen[1:]:
        assert token_ids == seen[0][0] and torch.equal(logits, seen[0][1])


def test_waiting_for_an_adapter_slot_costs_no_turns(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, *stack = [publish(peft_adapters.write_lora(tmp_path / f"{i}", model, seed=i)) for i in range(3)]
    monkeypatch.setattr("hotshoe.server.adapters.claims.LEASE_SECONDS", 60.0)
    with start_engine(adapter_slots=2) as running:
        residency = running.engine._residency
        busy = residency.load(pinned.digest).digest
        # the reference below is the test's own: an idle engine's check would count it as leaked
        monkeypatch.setattr(running.engine._scheduler, "check_integrity", lambda: None)
        running.engine.check_integrity()  # of the engine's thread: one that had begun has ended
        assert residency.acquire([busy]) is not None  # as a request would that runs for long
        waiting = make_request([1], adapters=stack)
        monkeypatch.setattr(running.engine, "config", replace(running.engine.config, check_every_step=False))
        running.engine.submit(waiting)
        running.wait_until(lambda: bool(running.reports))
        until(lambda: sorted(one.tier for one in residency.residents()) == [Tier.DEVICE, Tier.DEVICE, Tier.HOST])
        turns, turn, began = [], running.engine._turn, time.monotonic()
        monkeypatch.setattr(running.engine, "_turn", lambda: turns.append(1) or turn())
        time.sleep(1.0)
        most = 4 + 4 * (time.monotonic() - began)
        assert len(turns) <= most, "a heartbeat and a lease renewal each half second"
        residency.release([busy])
        running.wait(waiting)


def test_cancels_and_churn_leave_no_page_slot_or_reference(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    directories = list(write_kinds(tmp_path / "adapters", model).values())
    directories += [peft_adapters.write_lora(tmp_path / f"extra-{i}", model, seed=i) for i in range(4)]
    uses = [publish(directory) for directory in directories]
    rng = random.Random(7)
    requests = [
        make_request(
            [rng.randrange(4) for _ in range(rng.randint(1, 20))],
            max_new_tokens=rng.randint(1, 16),
            adapters=rng.sample(uses, rng.choice([0, 1, 1, 2])),
            n=rng.choice([1, 1, 2]),
            sampling=SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(99)),
            deadline=rng.choice([None, None, time.monotonic() + 4 * rng.random()]),
        )
        for _ in range(200)
    ]
    with start_engine(adapter_slots=4, max_running_requests=6, max_step_tokens=24, kv_tokens=200) as running:
        for request in requests:
            running.engine.submit(request)
            if rng.random() < 0.3:
                running.engine.cancel(rng.choice(requests).request_id)
            if rng.random() < 0.2:
                time.sleep(0.002)
        running.wait(*requests)
        running.engine.check_integrity()
        assert all(resident.running == 0 for resident in running.engine._residency.residents())
    assert len(running.answers) == sum(request.n for request in requests)
    assert all(a.terminals == 1 and a.outputs_after_end == 0 and a.error is None for a in running.answers.values())
    assert FinishReason.LENGTH in {answer.finish_reason for answer in running.answers.values()}
