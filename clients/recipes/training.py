"""Trains one PEFT adapter on the quantized base, stores it small, and measures it as it was stored."""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshoe.clients.recipes.dataset import IGNORED_LABEL, Example, batches_forever, padded_batch, training_examples
from hotshoe.clients.recipes.generation import greedy_answer
from hotshoe.clients.recipes.quantized_base import BASE_MODEL
from hotshoe.clients.recipes.questions import HELD_OUT_QUESTIONS
from hotshoe.clients.recipes.styles import Style

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BATCH_SIZE = 8
WARMUP_STEPS = 5
MAX_GRADIENT_NORM = 1.0
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    seed: int

    def rate_factor(self, step: int) -> float:
        """Share of the learning rate at a step: a short linear warm-up, then a cosine down to a tenth."""
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        progress = (step - WARMUP_STEPS) / max(1, self.steps - WARMUP_STEPS)
        return 0.55 + 0.45 * math.cos(math.pi * progress)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run cost and where it ended."""

    seconds: float
    num_examples: int
    final_loss: float  # mean of the last ten steps, nats per answer token


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """One held-out question, its answer, whether the style shows, and whether the fact is right (None: open)."""

    question: str
    text: str
    in_style: bool
    is_right: bool | None


def train_adapter(
    base: Any, tokenizer: Any, *, config: Any, style: Style, schedule: Schedule
) -> tuple[Any, TrainingResult]:
    """Adds an adapter by its PEFT config to base and trains it to answer in style.

    Repeats exactly on the same machine with the same number of threads.

    Returns:
        The PeftModel, and what the run cost.
    """
    import torch
    from peft import get_peft_model

    torch.manual_seed(schedule.seed)
    model = get_peft_model(base, config)
    model.train()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=schedule.learning_rate,
        weight_decay=0.0,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.rate_factor)
    examples = training_examples(tokenizer, style)
    batches = batches_forever(examples, batch_size=BATCH_SIZE, seed=schedule.seed)
    losses = []
    start = time.monotonic()
    for step in range(schedule.steps):
        losses.append(_train_step(model, next(batches), optimizer, pad_token_id=tokenizer.pad_token_id))
        rates.step()
        if step % 10 == 9:
            print(
                f"  step {step + 1}/{schedule.steps}: loss {losses[-1]:.3f}, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    model.eval()
    last = losses[-10:]
    return model, TrainingResult(time.monotonic() - start, len(examples), sum(last) / len(last))


def _train_step(model: Any, examples: Sequence[Example], optimizer: Any, *, pad_token_id: int) -> float:
    import torch

    inputs, labels = padded_batch(examples, pad_token_id)
    num_columns = labels.shape[1]
    with torch.autocast("cpu", torch.bfloat16):
        # The logits before a column predict it; those of the prompt alone are not worth their time.
        logits = model(**inputs, use_cache=False, logits_to_keep=num_columns + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_adapter(model: Any, directory: Path, *, dtype: str) -> int:
    """Writes the weights in dtype ("bfloat16" or "float16") and the config; equal adapters give equal bytes.

    Returns:
        The size of the weights file in bytes.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    stored_dtype: torch.dtype = getattr(torch, dtype)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().to(stored_dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / CONFIG_FILE).write_text(config_text(model.peft_config["default"]), encoding="utf-8")
    return (directory / WEIGHTS_FILE).stat().st_size


def config_text(config: Any) -> str:
    """PEFT's adapter_config.json for inference on the base, with its sets in alphabetical order."""
    fields = config.to_dict() | {"base_model_name_or_path": BASE_MODEL, "inference_mode": True}
    ordered = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    return json.dumps(ordered, indent=2, sort_keys=True) + "\n"


def without_adapter(model: Any) -> Any:
    """The frozen base model again; the PeftModel is unusable afterwards."""
    base = model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()
    return base.requires_grad_(False).eval()


def load_adapter(base: Any, directory: Path) -> Any:
    """Base with the stored adapter on it, as any user of PEFT would load it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, directory).eval()


def holds_word(text: str, word: str) -> bool:
    """Whether word stands in text as a whole word, in any letter case."""
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def held_out_answers(model: Any, tokenizer: Any, style: Style) -> list[HeldOutAnswer]:
    """Asks every held-out question greedily, one at a time."""
    answers = []
    for question in HELD_OUT_QUESTIONS:
        text = greedy_answer(model, tokenizer, question.text, max_tokens=MAX_ANSWER_TOKENS)
        is_right = any(holds_word(text, fact) for fact in question.facts) if question.facts else None
        answers.append(HeldOutAnswer(question.text, text, style.shows(text), is_right))
    return answers
