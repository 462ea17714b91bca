"""What LORA's variants take out of W before training, so that A and B were trained beside what remained.

PiSSA and OLoRA start from B A = D, a part of W, and take it out: y = (W − D) x + b + s B A x. KaSA takes out what W
hardly needs. D has low rank and is found from W alone, as PEFT finds it again at each load: the signs of singular
vectors, which are any library's choice, do not show in it. W is the one that is served, so that on a base which was
quantized after training D differs a little, as W does.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.registry.formats.base import LinearId

if TYPE_CHECKING:
    from torch import Tensor

_CLOSE = 1e-6  # of W's size: what lies nearer to each other than that, float32 does not tell apart, nor does PEFT

# Values of init_lora_weights whose W nobody can find again, and why.
REFUSED_INITS: Mapping[str, str] = {
    "corda": "what it took out of W depends on covariances of its training data",
    "loftq": "its W was quantized by itself and is not in the file",
    "lora_ga": "what it took out of W depends on gradients of its training data",
    "pissa_niter": "what it took out of W was found by random projections, which PEFT draws anew at each load",
}


class TakenOut(Protocol):
    """Finds D of W, the weight of `linear`, for an adapter of that rank and scale."""

    def __call__(self, linear: LinearId, weight: "Tensor", rank: int, scale: float) -> "tuple[Tensor, Tensor]":
        """a [rank, in_features] and b [out_features, rank], float32, with D = b a.

        Raises:
            IncompatibleAdapter: W does not determine D.
        """


def principal_part(linear: LinearId, weight: "Tensor", rank: int, scale: float) -> "tuple[Tensor, Tensor]":
    """PiSSA's: W along its strongest singular directions."""
    return _along(linear, weight, rank, at_end=False)


def minor_part(linear: LinearId, weight: "Tensor", rank: int, scale: float) -> "tuple[Tensor, Tensor]":
    """KaSA's: W along its weakest ones."""
    return _along(linear, weight, rank, at_end=True)


def _along(linear: LinearId, weight: "Tensor", rank: int, *, at_end: bool) -> "tuple[Tensor, Tensor]":
    """W along its first or last singular directions."""
    import torch

    u, values, v = torch.linalg.svd(weight, full_matrices=False)  # in float32, as PEFT
    first = len(values) - rank if at_end else rank
    _require_gap(linear, values, first)
    chosen = slice(first, None) if at_end else slice(first)
    return v[chosen], u[:, chosen] * values[chosen]


def leading_part(linear: LinearId, weight: "Tensor", rank: int, scale: float) -> "tuple[Tensor, Tensor]":
    """OLoRA's: W projected on the span of its first columns, times the scale that PEFT forgets to divide by."""
    import torch

    weight = weight.double()
    q, r = torch.linalg.qr(weight[:, :rank])
    if float(r.diagonal().abs().min()) <= _CLOSE * float(weight[:, :rank].norm()):
        raise IncompatibleAdapter(
            "init_lora_weights", f"expected {rank} independent first columns of {linear}: else olora is undefined"
        )
    return (q.T @ weight).float(), (scale * q).float()


# By the value of init_lora_weights, for adapters that PEFT did not convert when it saved them.
TAKING_INITS: Mapping[str, TakenOut] = {"pissa": principal_part, "olora": leading_part}


def _require_gap(linear: LinearId, values: "Tensor", kept: int) -> None:
    """Refuses to tell the first `kept` singular directions from the others if their values do not."""
    if kept == len(values) or float(values[kept - 1]) <= _CLOSE * float(values[0]):
        return  # nothing is left over, or next to nothing is asked for
    if float(values[kept - 1] - values[kept]) <= _CLOSE * float(values[0]):
        raise IncompatibleAdapter(
            "r",
            f"{linear}'s singular values {kept} and {kept + 1} are equal, so that PEFT's part of W is undefined; "
            "expected another rank or base",
        )
