"""The activations of narrow networks in compiled steps; each number's result depends on it alone."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.jit import compiled, exp, inlined
from hotshoe.kernels.cpu.network_codes import GELU, GELU_TANH, LEAKY_RELU, RELU, SIGMOID, SILU, TANH

_ONE, _HALF = np.float32(1.0), np.float32(0.5)


@inlined
def sigmoid(x: Any) -> Any:
    """0 below −88, where e^−x would be more than float32 holds."""
    return _ONE / (_ONE + exp(min(-x, np.float32(88.0))))


@inlined
def tanh(x: Any) -> Any:
    """2 · sigmoid(2 x) − 1, which is −1 and 1 far out."""
    return np.float32(2.0) * sigmoid(np.float32(2.0) * x) - _ONE


@inlined
def gelu_tanh(x: Any) -> Any:
    """x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 x³)))."""
    return x * sigmoid(x * (np.float32(1.5957691216057308) + np.float32(0.07135481627260025) * x * x))


@inlined
def _erf(x: Any) -> Any:
    """To an absolute 5e-7. Source: Abramowitz and Stegun, 7.1.26."""
    size = abs(x)
    t = _ONE / (_ONE + np.float32(0.3275911) * size)
    p = np.float32(1.061405429) * t - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    found = _ONE - p * t * exp(-size * size)
    return found if x >= 0 else -found


@compiled
def activate(kind: int, x: Any) -> None:
    """x = φ(x) in place, for float32 x; what is no number stays none."""
    if kind == RELU:
        for i in range(x.size):
            x[i] = np.float32(0.0) if x[i] < 0 else x[i]
    elif kind == LEAKY_RELU:
        for i in range(x.size):
            x[i] = np.float32(0.01) * x[i] if x[i] < 0 else x[i]
    elif kind == SIGMOID:
        for i in range(x.size):
            x[i] = sigmoid(x[i]) if x[i] == x[i] else x[i]
    elif kind == SILU:
        for i in range(x.size):
            x[i] = x[i] * sigmoid(x[i])
    elif kind == TANH:
        for i in range(x.size):
            x[i] = tanh(x[i]) if x[i] == x[i] else x[i]
    elif kind == GELU:
        for i in range(x.size):
            x[i] = _HALF * x[i] * (_ONE + _erf(np.float32(0.7071067811865476) * x[i]))
    elif kind == GELU_TANH:
        for i in range(x.size):
            x[i] = gelu_tanh(x[i])
