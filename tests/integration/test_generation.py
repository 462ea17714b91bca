"""Requests through a real server: tokens, text, adapters, errors."""

import math
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from model_directories import tiny_model
from peft_adapters import write_ia3, write_lora, write_prefix, write_prompt
from server_process import ServerProcess, publish

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def adapters(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, registry_pb2.Adapter]:
    """Four kinds, published."""
    directory = tmp_path_factory.mktemp("adapters")
    model = tiny_model()
    writers = {"lora": write_lora, "ia3": write_ia3, "prefix": write_prefix, "prompt": write_prompt}
    return {name: publish(server, name, write(directory / name, model)) for name, write in writers.items()}


def _request(*adapters: str, text: str = PROMPT, **fields: object) -> generation_pb2.GenerateRequest:
    stopping = fields.pop("stopping", None) or generation_pb2.StopCriteria(max_new_tokens=12, ignore_eos=True)
    selections = [generation_pb2.AdapterSelection(reference=reference) for reference in adapters]
    return generation_pb2.GenerateRequest(adapters=selections, text=text, stopping=stopping, **fields)


def _ids(completion: generation_pb2.Completion) -> list[int]:
    return [token.token_id for token in completion.tokens]


def _stream(
    server: ServerProcess, request: generation_pb2.GenerateRequest
) -> list[generation_pb2.StreamGenerateResponse]:
    return list(server.generation.StreamGenerate(generation_pb2.StreamGenerateRequest(request=request)))


def test_an_answer_has_text_tokens_usage_and_a_finish(server: ServerProcess) -> None:
    response = server.generation.Generate(_request(request_id="mine"))
    completion = response.completions[0]
    assert len(completion.tokens) == 12
    assert completion.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert response.request_id == "mine"
    assert response.usage.prompt_tokens == len(PROMPT)
    assert response.usage.completion_tokens == 12
    assert 0 < response.usage.time_to_first_token.ToSeconds() + response.usage.time_to_first_token.nanos
    assert not completion.tokens[0].HasField("logprob")


def test_a_stream_gives_what_generate_gives_and_its_last_message_the_rest(server: ServerProcess) -> None:
    whole = server.generation.Generate(_request()).completions[0]
    for _ in range(20):  # on a busy machine the answer may be whole before any of it is sent
        messages = _stream(server, _request(request_id="streamed"))
        if len(messages) > 1:
            break
    assert "".join(message.text_delta for message in messages) == whole.text
    assert [token.token_id for message in messages for token in message.tokens] == _ids(whole)
    assert len(messages) > 1
    assert [message.HasField("final") for message in messages] == [False] * (len(messages) - 1) + [True]
    final = messages[-1].final
    assert final.request_id == "streamed"
    assert final.completions[0].finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert final.usage.completion_tokens == 12
    assert not final.completions[0].text and not final.completions[0].tokens


def test_each_adapter_answers_in_its_own_way_and_all_of_them_at_once(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]
) -> None:
    references: list[tuple[str, ...]] = [(), *((name,) for name in adapters), ("lora", "ia3", "prefix")]
    alone = [_ids(server.generation.Generate(_request(*names)).completions[0]) for names in references]
    assert len({tuple(ids) for ids in alone}) == len(alone)
    results: list[list[int] | None] = [None] * (2 * len(references))

    def run(index: int) -> None:
        results[index] = _ids(server.generation.Generate(_request(*references[index // 2])).completions[0])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [ids for ids in alone for _ in range(2)]


def test_references_resolve_to_the_digest_that_answers_name(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]
) -> None:
    digest = adapters["lora"].digest
    for reference in ("lora", "lora:latest", f"lora@{digest}"):
        response = server.generation.Generate(_request(reference))
        assert [(used.reference, used.digest, used.weight) for used in response.adapters] == [(reference, digest, 1.0)]


def test_a_weight_of_zero_is_the_base_and_unset_is_one(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]
) -> None:
    def ids(**selection: object) -> list[int]:
        request = _request()
        request.adapters.add(reference="lora", **selection)
        return _ids(server.generation.Generate(request).completions[0])

    base = _ids(server.generation.Generate(_request()).completions[0])
    assert ids(weight=0.0) == base
    assert ids() == ids(weight=1.0) != base


def test_a_seed_reproduces_and_one_is_drawn_and_told_if_none_was_given(server: ServerProcess) -> None:
    hot = generation_pb2.SamplingParams(temperature=1.0)
    first = server.generation.Generate(_request(sampling=hot)).completions[0]
    seeded = generation_pb2.SamplingParams(temperature=1.0, seed=first.seed)
    again = server.generation.Generate(_request(sampling=seeded)).completions[0]
    assert _ids(again) == _ids(first)
    other = server.generation.Generate(_request(sampling=hot)).completions[0]
    assert other.seed != first.seed


def test_n_answers_share_a_prompt_and_differ(server: ServerProcess) -> None:
    response = server.generation.Generate(
        _request(n=4, sampling=generation_pb2.SamplingParams(temperature=1.0, seed=1))
    )
    assert len(response.completions) == 4
    assert len({tuple(_ids(completion)) for completion in response.completions}) > 1
    assert response.usage.completion_tokens == 48


def test_a_stop_string_cuts_the_answer(server: ServerProcess) -> None:
    whole = server.generation.Generate(_request()).completions[0].text
    start = next(i for i in range(1, len(whole) - 3) if whole.find(whole[i : i + 2]) == i)
    stop = whole[start : start + 2]
    stopping = generation_pb2.StopCriteria(max_new_tokens=12, ignore_eos=True, stop=[stop])
    completion = server.generation.Generate(_request(stopping=stopping)).completions[0]
    assert completion.text == whole[:start]
    assert completion.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert completion.stop_sequence == stop
    messages = _stream(server, _request(stopping=stopping))
    assert "".join(message.text_delta for message in messages) == whole[:start]
    assert messages[-1].final.completions[0].stop_sequence == stop


def test_one_of_n_answers_may_stop_before_the_others(server: ServerProcess) -> None:
    hot = generation_pb2.SamplingParams(temperature=1.0, seed=3)
    whole = server.generation.Generate(_request(n=3, sampling=hot))
    texts = [completion.text for completion in whole.completions]
    stop = next(text[2:4] for text in texts if sum(text[2:4] in other for other in texts) < 3)
    stopping = generation_pb2.StopCriteria(max_new_tokens=12, ignore_eos=True, stop=[stop])
    stopped = server.generation.Generate(_request(n=3, sampling=hot, stopping=stopping))
    for completion, text in zip(stopped.completions, texts, strict=True):
        assert completion.text == text.partition(stop)[0]
        assert (completion.stop_sequence == stop) == (stop in text)


def test_a_stop_token_ends_the_answer(server: ServerProcess) -> None:
    ids = _ids(server.generation.Generate(_request()).completions[0])
    token = next(token for token in ids[2:] if token not in ids[:2])
    stopping = generation_pb2.StopCriteria(max_new_tokens=12, ignore_eos=True, stop_token_ids=[token])
    completion = server.generation.Generate(_request(stopping=stopping)).completions[0]
    assert _ids(completion) == ids[: ids.index(token) + 1]
    assert completion.finish_reason == generation_pb2.FINISH_REASON_STOP


def test_logprobs_are_given_for_tokens_alternatives_and_the_prompt(server: ServerProcess) -> None:
    response = server.generation.Generate(_request(logprobs=3, prompt_logprobs=2))
    for token in response.completions[0].tokens:
        assert token.rank == 1
        assert len(token.alternatives) == 3
        assert token.alternatives[0].token_id == token.token_id
        assert token.logprob == pytest.approx(token.alternatives[0].logprob)
    assert "".join(token.text for token in response.prompt_tokens) == PROMPT
    assert not response.prompt_tokens[0].HasField("logprob")
    assert all(token.logprob < 0 and len(token.alternatives) == 2 for token in response.prompt_tokens[1:])


def test_a_time_limit_ends_an_answer_with_what_there_is(server: ServerProcess) -> None:
    stopping = generation_pb2.StopCriteria(max_new_tokens=400, ignore_eos=True)
    stopping.time_limit.FromMilliseconds(30)
    completion = server.generation.Generate(_request(stopping=stopping)).completions[0]
    assert completion.finish_reason == generation_pb2.FINISH_REASON_TIME_LIMIT
    assert len(completion.tokens) < 400


def test_without_a_length_the_answer_is_cut_to_what_fits(server: ServerProcess) -> None:
    stopping = generation_pb2.StopCriteria(ignore_eos=True)
    response = server.generation.Generate(_request(text="x" * 500, stopping=stopping))
    assert response.usage.completion_tokens == 12


def test_a_second_request_finds_its_prompt_in_the_cache(server: ServerProcess) -> None:
    request = _request(text="A prompt that is long enough for several pages of the cache. " * 2)
    server.generation.Generate(request)
    assert server.generation.Generate(request).usage.cached_prompt_tokens >= 96


def test_scores_are_the_log_probabilities_of_the_choices(server: ServerProcess) -> None:
    greedy = server.generation.Generate(_request(logprobs=0)).completions[0]
    likely = generation_pb2.TokenIds(ids=[token.token_id for token in greedy.tokens[:1]])
    assert likely.ids[0] < 256, "the test wants a token that is a byte"
    choices = ["a", "bc", "def"]
    response = server.generation.Score(generation_pb2.ScoreRequest(text=PROMPT, choices=choices))
    assert [choice.text for choice in response.choices] == choices
    assert sum(choice.probability for choice in response.choices) == pytest.approx(1)
    for choice in response.choices:
        assert "".join(token.text for token in choice.tokens) == choice.text
        assert choice.logprob == pytest.approx(sum(token.logprob for token in choice.tokens))
    normalized = server.generation.Score(
        generation_pb2.ScoreRequest(text=PROMPT, choices=choices, length_normalized=True)
    )
    for choice, plain in zip(normalized.choices, response.choices, strict=True):
        assert choice.logprob == pytest.approx(plain.logprob / len(choice.text), rel=1e-4)
    forced = server.generation.Generate(
        generation_pb2.GenerateRequest(text=PROMPT + "def", prompt_logprobs=0, stopping={"max_new_tokens": 1})
    )
    tail = sum(token.logprob for token in forced.prompt_tokens[-3:])
    assert response.choices[2].logprob == pytest.approx(tail, rel=1e-4)
    assert math.isfinite(tail)


def test_a_chat_is_rendered_by_the_models_template(server: ServerProcess) -> None:
    chat = generation_pb2.ChatPrompt(messages=[{"role": "user", "content": "hi"}])
    stopping = generation_pb2.StopCriteria(max_new_tokens=4, ignore_eos=True)
    response = server.generation.Generate(generation_pb2.GenerateRequest(chat=chat, stopping=stopping))
    assert response.usage.prompt_tokens > len("hi")
    assert response.completions[0].tokens


def test_tokenize_gives_ids_and_texts(server: ServerProcess) -> None:
    response = server.generation.Tokenize(generation_pb2.TokenizeRequest(text="hi!"))
    assert len(response.token_ids) == 3
    assert list(response.tokens) == ["h", "i", "!"]


def test_model_info_says_what_runs(server: ServerProcess) -> None:
    info = server.generation.GetModelInfo(generation_pb2.GetModelInfoRequest())
    assert info.base_model == server.ready["base_model"]
    assert info.base_digest == server.ready["base_digest"]
    assert (info.quantization, info.device) == ("nf4", "cpu")
    assert info.max_sequence_length == 512
    assert info.max_resident_adapters == 32
    assert {"LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING"} <= set(info.adapter_kinds)
    assert info.eos_token_id == 256


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (_request(text=""), "INVALID_ARGUMENT", "INVALID_PARAMETER", "text"),
        (_request(n=99), "INVALID_ARGUMENT", "INVALID_PARAMETER", "n"),
        (_request(text="x" * 600), "INVALID_ARGUMENT", "PROMPT_TOO_LONG", "text"),
        (_request("nobody"), "NOT_FOUND", "ADAPTER_NOT_FOUND", None),
        (_request("not a name"), "INVALID_ARGUMENT", "INVALID_REFERENCE", "adapters[0].reference"),
        (_request(request_id="a b"), "INVALID_ARGUMENT", "INVALID_PARAMETER", "request_id"),
    ],
)
def test_errors_have_code_reason_and_field(
    server: ServerProcess, request_: generation_pb2.GenerateRequest, code: str, reason: str, field: str | None
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.generation.Generate(request_)
    assert caught.value.code().name == code
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(caught.value).details:
        detail.Unpack(info) or detail.Unpack(bad_request)
    assert (info.domain, info.reason) == ("hotshoe", reason)
    assert [violation.field for violation in bad_request.field_violations] == ([field] if field else [])
    with pytest.raises(grpc.RpcError) as streamed:
        _stream(server, request_)
    assert streamed.value.code().name == code


def test_the_request_id_is_in_the_trailing_metadata_of_answers_and_errors(server: ServerProcess) -> None:
    _, call = server.generation.Generate.with_call(_request(request_id="ok-1"))
    assert ("x-request-id", "ok-1") in [(item.key, item.value) for item in call.trailing_metadata()]
    with pytest.raises(grpc.RpcError) as caught:
        server.generation.Generate(_request(text="", request_id="bad-1"))
    assert ("x-request-id", "bad-1") in [(item.key, item.value) for item in caught.value.trailing_metadata()]
    _, call = server.generation.Generate.with_call(_request())
    assert any(item.key == "x-request-id" and len(item.value) == 32 for item in call.trailing_metadata())


def test_one_request_id_may_be_under_way_twice(server: ServerProcess) -> None:
    futures = [server.generation.Generate.future(_request(request_id="twice")) for _ in range(4)]
    assert [future.result().request_id for future in futures] == ["twice"] * 4


def test_a_cancelled_stream_leaves_nothing_running(server: ServerProcess) -> None:
    stopping = generation_pb2.StopCriteria(max_new_tokens=450, ignore_eos=True)
    call = server.generation.StreamGenerate(generation_pb2.StreamGenerateRequest(request=_request(stopping=stopping)))
    next(call)
    call.cancel()
    assert _settles(server)


def test_a_passed_deadline_leaves_nothing_running(server: ServerProcess) -> None:
    stopping = generation_pb2.StopCriteria(max_new_tokens=450, ignore_eos=True)
    sixteen = _request(stopping=stopping, n=16, sampling=generation_pb2.SamplingParams(temperature=1.0))
    with pytest.raises(grpc.RpcError) as caught:
        server.generation.Generate(sixteen, timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert _settles(server)


def test_messages_above_the_limit_are_refused(server: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.generation.Generate(_request(text="x" * (5 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _settles(server: ServerProcess) -> bool:
    """Whether nothing runs, waits or holds pages soon."""
    for status in server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=200):
        if not status.running_requests and not status.waiting_requests and not status.kv_cache_usage:
            return True
    return False
