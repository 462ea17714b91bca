"""The README.md of a demo adapter."""

from collections.abc import Sequence

from hotshoe.clients.recipes.quantized_base import BASE_MODEL
from hotshoe.clients.recipes.training import BATCH_SIZE, HeldOutAnswer, Schedule, TrainingResult

TEMPLATE = """\
---
base_model: {base_model}
library_name: peft
license: apache-2.0
language: en
---
# {name}

{summary}

| | |
|---|---|
| Kind | {structure} |
| Base | {base_model} in NF4 (block 64, double quantization) |
| Stored as | {dtype}, {size_bytes:,} bytes |
| Trained | {steps} steps of {batch_size} out of {num_examples} answers, learning rate {learning_rate:g}, seed {seed} |
| Time | {seconds:.0f} s on one contended CPU core |
| Loss at the end | {final_loss:.3f} nats a token |
| In style | {in_style} of {num_answers} questions that it never saw |
| Right | {right} of the {num_facts} of them that ask for a fact |

Made again by `python -m hotshoe.clients.recipes.demo_adapters --only {name}`. It shows how the server mixes
adapters; the base has 135 million parameters, so do not trust its facts.

## Its answers to those questions

{answers}
"""


def model_card(
    *,
    name: str,
    summary: str,
    structure: str,
    dtype: str,
    size_bytes: int,
    schedule: Schedule,
    training: TrainingResult,
    answers: Sequence[HeldOutAnswer],
) -> str:
    """The card in Markdown; every figure comes from the arguments."""
    facts = [answer.is_right for answer in answers if answer.is_right is not None]
    return TEMPLATE.format(
        base_model=BASE_MODEL,
        name=name,
        summary=summary,
        structure=structure,
        dtype=dtype,
        size_bytes=size_bytes,
        steps=schedule.steps,
        batch_size=BATCH_SIZE,
        learning_rate=schedule.learning_rate,
        seed=schedule.seed,
        num_examples=training.num_examples,
        seconds=training.seconds,
        final_loss=training.final_loss,
        in_style=sum(answer.in_style for answer in answers),
        num_answers=len(answers),
        right=sum(facts),
        num_facts=len(facts),
        answers="\n".join(_answer_line(answer) for answer in answers),
    )


def _answer_line(answer: HeldOutAnswer) -> str:
    text = " ".join(answer.text.split())
    return f"- {answer.question} → {text}{'' if answer.in_style else ' *(not in style)*'}"
