"""One site of a layer: the base linears that share an input, run as one where the kernel allows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hotshoe.kernels import ops


class SiteLinear:
    """Base linears of one input; their outputs lie side by side, in the order of the site's targets."""

    def __init__(self, weights: Sequence[Any], widths: Sequence[int], bias: Tensor | None) -> None:
        """Takes the packed weights, which cover the targets in order, each target's width, and all biases as one."""
        self.weights = tuple(weights)
        self.widths = list(widths)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in_features] → [rows, sum of widths], without the bias."""
        return self._run(x, ops.linear)

    def _run(self, x: Tensor, product: Callable[[Tensor, Any], Tensor]) -> Tensor:
        if len(self.weights) == 1:
            return product(x, self.weights[0])
        return torch.cat([product(x, weight) for weight in self.weights], dim=1)

    def with_inputs(self, inputs: Sequence[Tensor], product: Callable[[Tensor, Any], Tensor] = ops.linear) -> Tensor:
        """As a call, with an input for each target. Costs a full run each: few adapters scale targets apart.

        Args:
            product: what multiplies an input by a packed weight.
        """
        if len(inputs) == 1:
            return self._run(inputs[0], product)
        if len(inputs) != len(self.widths):
            raise ValueError(f"inputs: expected 1 or {len(self.widths)}, not {len(inputs)}")
        outputs = [torch.split(self._run(x, product), self.widths, dim=1)[target] for target, x in enumerate(inputs)]
        return torch.cat(outputs, dim=1)
