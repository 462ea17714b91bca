"""The final norm and the output head as compiled code reads them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.cpu.decode_job import HEAD
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.kernels.cpu.int8_head import COLUMNS, DEPTH, likely_error
from hotshoe.server.model.step_logits import StepLogits


class CompiledHead:
    """Computes logits in one call, on the team that runs the layers."""

    def __init__(self, team: DecodeTeam, *, norm: Tensor, eps: float, rows: Tensor, tiles: Tensor) -> None:
        """Takes the norm [hidden_size], and a head [vocab, hidden] in bfloat16 and as `int8_head.pack` made it."""
        self._team = team
        self._norm = norm.float().contiguous()
        self._rows = rows.contiguous()
        self._tiles = tiles
        self._errors = likely_error(tiles)
        self._vocab_size, self._size = rows.shape
        self._eps = eps
        self._room = 0  # rows that there is memory for
        self._logits = torch.empty(0, self._vocab_size)
        self._scratch: list[Tensor] = []

    def logits(self, hidden: Tensor, rows: Tensor, norms: Iterable[tuple[int, int, Tensor]] = ()) -> StepLogits:
        """The logits of some rows, read while they were written: float32 of 8-bit weights, exact where they decide.

        They stay until the next call: fresh memory is slow to write to for the first time.

        Args:
            hidden: [n, hidden_size] float32, as the layers leave it.
            rows: int64, those whose logits are wanted.
            norms: rows start … end−1 of hidden, and what they add to the norm, [hidden_size] float32.
        """
        count = rows.shape[0]
        if count == 0:
            return StepLogits(torch.empty(0, self._vocab_size), [], [])
        self._reserve(count)
        out = self._logits[:count]
        likeliest, finite = np.empty(count, np.int64), np.empty(count, np.int64)
        rows = rows.contiguous()
        norms = list(norms)
        deltas = _norm_deltas(rows, norms)
        self._team.set(
            hidden_size=self._size,
            vocab_size=self._vocab_size,
            eps=self._eps,
            num_logits=count,
            hidden=hidden.data_ptr(),
            logit_rows=rows.data_ptr(),
            final_norm=self._norm.data_ptr(),
            head_norm_deltas=0 if deltas is None else deltas.ctypes.data,
            head=self._tiles.data_ptr(),
            head_rows=self._rows.data_ptr(),
            head_errors=self._errors.data_ptr(),
            logits=out.data_ptr(),
            likeliest=likeliest.ctypes.data,
            finite=finite.ctypes.data,
        )
        self._team.run(HEAD)
        return StepLogits(out, finite.astype(bool).tolist(), likeliest.tolist())

    def _reserve(self, rows: int) -> None:
        """Makes the scratch memory large enough."""
        if rows <= self._room:
            return
        self._room, size = max(rows, 2 * self._room), self._size
        shapes = {
            "head_inputs": (size, torch.float32),
            "high": (size, torch.int8),
            "low": (size, torch.int8),
            "head_offsets": (size // DEPTH, torch.int32),
            "head_scales": (1, torch.float32),
            "largest": (self._vocab_size // COLUMNS, torch.float32),
            "margins": (1, torch.float32),
        }
        scratch = {name: torch.empty(self._room * width, dtype=dtype) for name, (width, dtype) in shapes.items()}
        self._scratch = list(scratch.values())
        self._logits = torch.empty(self._room, self._vocab_size)
        self._team.set(**{name: tensor.data_ptr() for name, tensor in scratch.items()})


def _norm_deltas(rows: Tensor, norms: Sequence[tuple[int, int, Tensor]]) -> NDArray[np.int64] | None:
    """[rows]: the address of what each adds to the norm, 0 if nothing; None if that is so of all."""
    if not norms:
        return None
    wanted, deltas = rows.numpy(), np.zeros(len(rows), np.int64)
    for start, end, added in norms:
        assert added.dtype == torch.float32 and added.is_contiguous(), "norms are float32, in one piece"
        deltas[(start <= wanted) & (wanted < end)] = added.data_ptr()
    return deltas
