"""One site of a layer: the base linears that share an input, run as one where the kernel allows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hotshoe.kernels import ops


class SiteLinear:
    """Base linears of one input; their outputs lie side by side, in the order of the site's targets."""

    def __init__(self, weights: Sequence[Any], widths: Sequence[int], bias: Tensor | None) -> None:
        """Takes the packed weights, which cover the targets in order, each target's width, and all biases as one."""
        self.weights = tuple(weights)
        self._widths = list(widths)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in_features] → [rows, sum of widths], without the bias."""
        if len(self.weights) == 1:
            return ops.linear(x, self.weights[0])
        return torch.cat([ops.linear(x, weight) for weight in self.weights], dim=1)

    def with_inputs(self, inputs: Sequence[Tensor]) -> Tensor:
        """As a call, with an input for each target. Costs a full run each: few adapters scale targets apart."""
        if len(inputs) == 1:
            return self(inputs[0])
        if len(inputs) != len(self._widths):
            raise ValueError(f"inputs: expected 1 or {len(self._widths)}, not {len(inputs)}")
        outputs = [torch.split(self(x), self._widths, dim=1)[target] for target, x in enumerate(inputs)]
        return torch.cat(outputs, dim=1)
