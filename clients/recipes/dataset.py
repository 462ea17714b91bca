"""Training examples: the short answers in a style, tokenized as the server will render the conversation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotshoe.clients.recipes.generation import chat_prompt_ids
from hotshoe.clients.recipes.questions import training_questions
from hotshoe.clients.recipes.styles import Style

if TYPE_CHECKING:
    from torch import Tensor

END_OF_TURN = "<|im_end|>"
IGNORED_LABEL = -100  # torch's cross entropy skips it


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a whole conversation, and as many labels: those of the answer, the others ignored."""

    token_ids: list[int]
    labels: list[int]


def training_examples(tokenizer: Any, style: Style) -> list[Example]:
    """Every training answer in that style; only the answer and its end of turn are learned."""
    examples = []
    for question in training_questions():
        prompt = chat_prompt_ids(tokenizer, question.text)
        answer = list(tokenizer(style.rewrite(question.answer) + END_OF_TURN, add_special_tokens=False).input_ids)
        examples.append(Example(prompt + answer, [IGNORED_LABEL] * len(prompt) + answer))
    return examples


def batches_forever(examples: Sequence[Example], *, batch_size: int, seed: int) -> Iterator[Sequence[Example]]:
    """Yields batches without end, every pass over the examples in a new order drawn from seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield [examples[index] for index in order[start : start + batch_size]]


def padded_batch(examples: Sequence[Example], pad_token_id: int) -> "tuple[dict[str, Tensor], Tensor]":
    """Model inputs padded on the right, and the labels of their last columns, from the first that is learned on.

    Returns:
        {"input_ids", "attention_mask"}, each [len(examples), longest] int64, and labels [len(examples), columns] int64.
    """
    import torch

    longest = max(len(example.token_ids) for example in examples)
    first = min(example.labels.count(IGNORED_LABEL) for example in examples)
    rows = [(example, longest - len(example.token_ids)) for example in examples]
    inputs = {
        "input_ids": torch.tensor([example.token_ids + [pad_token_id] * pad for example, pad in rows]),
        "attention_mask": torch.tensor([[1] * len(example.token_ids) + [0] * pad for example, pad in rows]),
    }
    return inputs, torch.tensor([example.labels[first:] + [IGNORED_LABEL] * pad for example, pad in rows])
