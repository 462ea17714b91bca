"""The output head: close everywhere, exact where it decides."""

import pytest
import torch

from hotshoe.kernels import ops, reference
from hotshoe.kernels.cpu import output_head


@pytest.mark.parametrize("vocab", [100, 300, 64 * 40])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_likeliest_logits_are_exact_and_the_others_close(rows: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab + rows)
    weight = torch.randn(vocab, 96, generator=generator).bfloat16()
    x = torch.randn(rows, 96, generator=generator) * 2
    logits = ops.linear(x, output_head.pack(weight))
    expected = reference.dense_linear(x.double(), weight)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=2e-2, atol=0.4)
    likeliest = expected.topk(output_head.REFINED // 2, dim=1).indices
    torch.testing.assert_close(logits.double().gather(1, likeliest), expected.gather(1, likeliest), rtol=0, atol=1e-4)


def test_two_logits_that_bfloat16_cannot_tell_apart_keep_their_order() -> None:
    weight = torch.zeros(64 * 40, 64)
    weight[7, 0] = weight[2000, 0] = 25.0
    weight[7, 1], weight[2000, 1] = 0.01, 0.02
    x = torch.zeros(1, 64)
    x[0, :2] = 1.0
    logits = ops.linear(x, output_head.pack(weight))
    assert (x.bfloat16() @ weight.bfloat16().T)[0, 7] == (x.bfloat16() @ weight.bfloat16().T)[0, 2000]
    assert int(logits.argmax()) == 2000


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    head = output_head.pack(torch.randn(64 * 40, 96))
    x = torch.randn(6, 96)
    others = torch.full((6, 96), float("nan"))
    others[2] = x[2]
    logits = ops.linear(others, head)
    assert torch.equal(logits[2], ops.linear(x, head)[2])
    assert bool(logits[3].isnan().all())
