"""Masks on logits that the device reads and draws from: the reference engine's tokens."""

from collections.abc import Callable

from model_directories import VOCAB_SIZE, tiny_tokenizer
from running_engine import RunningEngine, make_request

from hotshoe.server.engine.request import FinishReason, Request, SamplingParams
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.grammars import Grammars
from hotshoe.server.model.tokenizer import Tokenizer

StartEngine = Callable[..., RunningEngine]
CONFIG = {"kv_tokens": 64, "page_tokens": 4, "max_running_requests": 4}


def test_constrained_rows_beside_others(start_engine: StartEngine, decoder: Decoder) -> None:
    tokenizer = Tokenizer(tiny_tokenizer(), eos_token_ids=[256])
    grammar = Grammars(tokenizer, vocab_size=VOCAB_SIZE).regex("format.regex", "[a-d][0-9]x?")
    drawn = SamplingParams(temperature=1.5, seed=4)

    def requests() -> list[Request]:
        held = [make_request([5, 9, 200], max_new_tokens=3, grammar=grammar, sampling=s) for s in (None, drawn)]
        return [*held, make_request([5, 9, 200], max_new_tokens=3), make_request([8], max_new_tokens=3, sampling=drawn)]

    with start_engine(**CONFIG) as running:
        expected = running.run(*requests())
    with start_engine(decoder=decoder, **CONFIG) as running:
        answers = running.run(*requests(), timeout_seconds=200.0)
    for answer in answers[:2]:
        text = tokenizer.decode(answer.token_ids)
        assert text[0] in "abcd" and text[1].isdigit() and text[2:] in ("", "x")
        assert answer.finish_reason is FinishReason.STOP
    if decoder.backend.device.type == "cpu":  # a GPU computes in bfloat16, and may draw other tokens
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
