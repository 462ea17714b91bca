"""Triton's interpreter multiplies blocks by NumPy's BLAS, whose sums of a row depend on how many rows there are.

On which CPUs and sizes they do is BLAS's own affair: what is tested here are our kernels' sums, not its.
"""

from typing import Any

import numpy as np


def round_products_once() -> None:
    """From now on a product in the interpreter is computed in float64 and rounded: no order of sums is to be seen."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    theirs = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if not all(one.data.dtype.kind == "f" for one in (a, b, d)):
            return theirs(self, a, b, d, *rest)
        product = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
