"""The training recipe on a tiny model: what is learned on, what is stored, and that it repeats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama

from hotshoe.clients.recipes import demo_adapters, styles
from hotshoe.clients.recipes.dataset import IGNORED_LABEL, Example, batches_forever, padded_batch, training_examples
from hotshoe.clients.recipes.training import (
    CONFIG_FILE,
    WARMUP_STEPS,
    WEIGHTS_FILE,
    Schedule,
    load_adapter,
    save_adapter,
    train_adapter,
    without_adapter,
)

pytest.importorskip("peft")
SCHEDULE = Schedule(steps=4, learning_rate=1e-2, seed=7)
CONFIGS = {adapter.name: adapter.config for adapter in demo_adapters.DEMO_ADAPTERS if adapter.name != "json"}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class AsciiTokenizer:
    """One token a character; the chat template is the message and a colon."""

    pad_token_id = 0

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return f"{messages[0]['content']}:"

    def __call__(self, text: str, **options: Any) -> Any:
        return type("Encoding", (), {"input_ids": [min(ord(character), 127) for character in text]})


def trained(config: Any, schedule: Schedule = SCHEDULE) -> Any:
    model, _ = train_adapter(tiny_llama(), AsciiTokenizer(), config=config(), style=styles.HEADLINE, schedule=schedule)
    return model


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(10, 30)[None]).logits
    return logits[:, -20:]  # those of virtual tokens stand before


@each_config
def test_training_twice_stores_the_same_bytes(config: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_adapter(trained(config), tmp_path / name, dtype="bfloat16")
    for file_name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "first" / file_name).read_bytes() == (tmp_path / "second" / file_name).read_bytes()


@each_config
def test_a_stored_adapter_answers_as_the_trained_one(config: Any, tmp_path: Path) -> None:
    base_logits = logits_of(tiny_llama())
    model = trained(config)
    logits = logits_of(model)
    save_adapter(model, tmp_path, dtype="float16")
    base = without_adapter(model)
    assert torch.equal(logits_of(base), base_logits)
    again = logits_of(load_adapter(base, tmp_path))
    change = (logits - base_logits).abs().max()
    assert change > 0
    assert (again - logits).abs().max() < 0.02 * change


def test_training_lowers_the_loss() -> None:
    config, tokenizer = CONFIGS["pirate"], AsciiTokenizer()
    losses = []
    for steps in (10, 40):
        schedule = Schedule(steps=steps, learning_rate=1e-2, seed=7)
        _, result = train_adapter(tiny_llama(), tokenizer, config=config(), style=styles.HEADLINE, schedule=schedule)
        losses.append(result.final_loss)
    assert losses[1] < losses[0] - 0.2


def test_the_rate_warms_up_and_then_falls_to_a_tenth() -> None:
    schedule = Schedule(steps=50, learning_rate=1.0, seed=0)
    factors = [schedule.rate_factor(step) for step in range(51)]
    assert factors[:WARMUP_STEPS] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[WARMUP_STEPS:] == sorted(factors[WARMUP_STEPS:], reverse=True)
    assert factors[50] == pytest.approx(0.1)


def test_only_the_answer_is_learned_on() -> None:
    example = training_examples(AsciiTokenizer(), styles.HEADLINE)[0]
    answer = "BREAKING NEWS: The capital of Argentina is Buenos Aires.<|im_end|>"
    assert "".join(map(chr, example.token_ids)) == f"What is the capital of Argentina?:{answer}"
    assert example.labels == [IGNORED_LABEL] * 34 + example.token_ids[34:]


def test_a_batch_keeps_the_columns_from_the_first_label_on() -> None:
    short = Example([5, 6, 7], [IGNORED_LABEL, 6, 7])
    longer = Example([1, 2, 3, 4], [IGNORED_LABEL, IGNORED_LABEL, 3, 4])
    inputs, labels = padded_batch([short, longer], 9)
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 9], [1, 2, 3, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert labels.tolist() == [[6, 7, IGNORED_LABEL], [IGNORED_LABEL, 3, 4]]


def test_batches_pass_over_every_example_in_an_order_of_the_seed() -> None:
    examples = [Example([index], [index]) for index in range(6)]

    def first_pass(seed: int) -> list[int]:
        batches = batches_forever(examples, batch_size=2, seed=seed)
        return [example.token_ids[0] for _ in range(3) for example in next(batches)]

    assert sorted(first_pass(1)) == list(range(6))
    assert first_pass(1) == first_pass(1) != first_pass(2)
