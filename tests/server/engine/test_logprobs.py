"""Log-probabilities against torch's log_softmax."""

import torch

from hotshoe.server.engine.logprobs import token_logprobs


def test_logprobs_ranks_and_alternatives_are_those_of_log_softmax() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 4
    expected = logits.double().log_softmax(-1)
    tokens = [int(logits[0].argmax()), 3, int(logits[2].argmin()), 7]
    for row, result in enumerate(token_logprobs(logits, tokens, [0, 2, 5, 1])):
        assert result.token_id == tokens[row]
        assert abs(result.logprob - float(expected[row, tokens[row]])) < 1e-5
        assert result.rank == 1 + int((expected[row] > expected[row, tokens[row]]).sum())
        assert len(result.alternatives) == [0, 2, 5, 1][row]
        best = expected[row].topk(len(result.alternatives))
        assert [token for token, _ in result.alternatives] == best.indices.tolist()
        for (_, logprob), value in zip(result.alternatives, best.values.tolist(), strict=True):
            assert abs(logprob - value) < 1e-5
    assert token_logprobs(logits, tokens, [0] * 4)[0].rank == 1
    assert token_logprobs(logits, tokens, [0] * 4)[2].rank == 30


def test_the_likeliest_token_has_rank_one_even_among_equals() -> None:
    (result,) = token_logprobs(torch.zeros(1, 5), [3], [99])
    assert result.rank == 1 and len(result.alternatives) == 5


def test_no_tokens_give_nothing() -> None:
    assert token_logprobs(torch.zeros(0, 5), [], []) == []
