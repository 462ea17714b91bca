"""Every kind of adapter on the Gemmas, all at once: PEFT's log probabilities, and rows alone as in the batch."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_logprobs import logprobs_by_peft, logprobs_of
from hub_adapters import write_bottleneck
from peft import LNTuningConfig, PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, REPLACING, one_of_each_kind, tasks_of
from running_engine import RunningEngine, make_request
from tiny_bases import TinyBase, tiny_base
from transformers import PreTrainedModel

from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.registry.formats.kind import ADAPTER_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter
from hotshoe.server.engine.request import AdapterUse

Publish = Callable[..., AdapterUse]
PROMPT = [25, 68, 4, 118, 25, 9, 7, 23, 200, 3, 5, 118]  # longer than a window
EVERY = {
    **{kind: config for kind, config in one_of_each_kind().items() if kind != "ADAPTION_PROMPT"},
    **{name: CONFIGS[name]() for name in (*REPLACING, "dora", "rank-stabilized lora") if "adaption" not in name},
    "norms by default": LNTuningConfig(task_type="CAUSAL_LM"),
    "every norm": LNTuningConfig(task_type="CAUSAL_LM", target_modules=r".*norm"),
    "ia3 by default": CONFIGS["ia3"](),
}


@pytest.fixture(scope="module", params=["gemma2", "gemma3_text"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    return tiny_base(tmp_path_factory.mktemp(request.param), request.param)


def saved(directory: Path, model: PreTrainedModel) -> dict[str, Path]:
    """A directory of each kind and variant."""
    places = {name: directory / name.lower().replace(" ", "-") for name in EVERY}
    for name, config in EVERY.items():
        save_peft(places[name], copy.deepcopy(model), copy.deepcopy(config))
    return places


def test_every_kind_gives_peft_s_log_probabilities_beside_all_others_and_alone(
    start_engine: Callable[..., RunningEngine], publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    places = saved(tmp_path, model)
    tasks = {name: tasks_of(config)[-1] for name, config in EVERY.items()}
    asked = {"max_new_tokens": 5, "logprobs": 0, "prompt_logprobs": 0}
    uses = {name: [publish(path, task=tasks[name])] for name, path in places.items()} | {"base": []}
    requests = {name: make_request(PROMPT, adapters=used, **asked) for name, used in uses.items()}
    with start_engine(max_running_requests=80, adapter_slots=80, max_step_tokens=128) as running:
        answers = dict(zip(requests, running.run(*requests.values()), strict=True))
        for name in ("LORA", "every norm", "PREFIX_TUNING", "base"):
            [alone] = running.run(make_request(PROMPT, adapters=uses[name], **asked))
            assert (logprobs_of(alone) - logprobs_of(answers[name])).abs().max() < 2e-5, name
    for name, answer in answers.items():
        wrapped = copy.deepcopy(model)
        if name != "base":
            wrapped = PeftModel.from_pretrained(wrapped, str(places[name])).eval()
        expected = logprobs_by_peft(wrapped, [*PROMPT, *answer.token_ids], tasks.get(name))
        assert (logprobs_of(answer) - expected).abs().max() < 2e-5, name


def test_no_kind_is_left_out() -> None:
    assert {config.peft_type.value for config in EVERY.values()} == ADAPTER_KINDS.keys() - {"ADAPTION_PROMPT"}


def test_what_their_package_does_not_have_for_them_or_puts_before_a_norm_is_refused(
    base: TinyBase, tmp_path: Path
) -> None:
    write_bottleneck(tmp_path / "bottleneck", base.model)
    with pytest.raises(IncompatibleAdapter, match="model_type: found gemma.*blocks are not served"):
        inspect_adapter(adapter_files(tmp_path / "bottleneck"), base.shape)
