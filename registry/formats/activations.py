"""Activations by the names that configs give them: those of transformers whose meaning is one line of torch."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Activation = Callable[[Tensor], Tensor]

ACTIVATIONS = (
    "relu",
    "gelu",
    "gelu_new",  # by tanh
    "gelu_pytorch_tanh",
    "silu",
    "swish",
    "tanh",
    "sigmoid",
    "leaky_relu",
    "leakyrelu",
    "linear",
)


@cache
def activation(name: str) -> "Activation":
    """The function of that name, one of ACTIVATIONS."""
    from torch import nn, sigmoid, tanh

    gelu_by_tanh = partial(nn.functional.gelu, approximate="tanh")
    functions: Mapping[str, Activation] = {
        "relu": nn.functional.relu,
        "gelu": nn.functional.gelu,
        "gelu_new": gelu_by_tanh,
        "gelu_pytorch_tanh": gelu_by_tanh,
        "silu": nn.functional.silu,
        "swish": nn.functional.silu,
        "tanh": tanh,
        "sigmoid": sigmoid,
        "leaky_relu": nn.functional.leaky_relu,
        "leakyrelu": nn.functional.leaky_relu,
        "linear": lambda x: x,
    }
    return functions[name]
