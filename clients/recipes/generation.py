"""Greedy answers of a transformers model, with or without a PEFT adapter, to a single user message."""

from typing import Any


def chat_prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Token ids of one user message in the model's chat template, up to where the answer begins."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def greedy_answer(model: Any, tokenizer: Any, question: str, *, max_tokens: int) -> str:
    """The greedy answer to question, at most max_tokens tokens long, without white space around it."""
    import torch

    prompt = torch.tensor([chat_prompt_ids(tokenizer, question)])
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    answer = output[0, prompt.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
