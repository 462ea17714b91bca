"""Which implementation computes which operation, as an operator writes it."""

import pytest

from hotshoe.server.model.backends import choose_backend
from hotshoe.server.model.op_choices import OP_CHOICES, parse_ops


def test_what_is_not_named_is_ours() -> None:
    assert parse_ops("") == dict.fromkeys(OP_CHOICES, "triton")
    assert parse_ops("linear=bitsandbytes, norm=torch") == parse_ops("") | {"linear": "bitsandbytes", "norm": "torch"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gemm=cublas", "expected one of linear, norm, rope, attention, activation, not 'gemm'"),
        ("linear=cutlass", "linear is one of triton, bitsandbytes, cublas, not 'cutlass'"),
        ("linear", "linear is one of"),
        ("norm=torch,norm=triton", "norm is named twice"),
    ],
)
def test_what_is_not_there_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_ops(text)


def test_only_the_triton_backend_has_a_choice() -> None:
    with pytest.raises(ValueError, match="only the triton backend has a choice, not reference"):
        choose_backend("cpu", "reference", "linear=cublas")
    with pytest.raises(ValueError, match="linear is one of"):
        choose_backend("cpu", "reference", "linear=cutlass")
