"""The final norm and the output head as compiled code reads them."""

import numpy as np
import torch
from torch import Tensor

from hotshoe.kernels.cpu import amx
from hotshoe.kernels.cpu.amx import ROWS, SUM_BYTES, tile_config
from hotshoe.kernels.cpu.decode_job import HEAD
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.kernels.cpu.dense_amx import FOUND_BYTES
from hotshoe.server.model.step_logits import StepLogits


class CompiledHead:
    """Computes logits in one call, on the team that runs the layers."""

    def __init__(self, team: DecodeTeam, *, norm: Tensor, eps: float, blocks: Tensor, vocab_size: int) -> None:
        """Takes the norm [hidden_size], and a head as `dense_amx.pack` made it.

        Raises:
            ValueError: this CPU has no matrix tiles.
        """
        if not amx.available():  # asking is also what permits this process to use them
            raise ValueError("head: this CPU has no matrix tiles")
        self._team = team
        self._norm = norm.float().contiguous()
        self._blocks = blocks
        self._vocab_size = vocab_size
        self._eps = eps
        self._tile_config = torch.from_numpy(tile_config())
        self._sums = torch.empty(team.size * 2 * ROWS * SUM_BYTES, dtype=torch.uint8)
        self._rounded = torch.empty(0, dtype=torch.bfloat16)  # the rows' high parts, then their low ones

    def logits(self, hidden: Tensor, rows: Tensor) -> StepLogits:
        """The logits of some rows, read while they were written.

        Args:
            hidden: [n, hidden_size] float32, as the layers leave it.
            rows: int64, those whose logits are wanted.
        """
        count, size = rows.shape[0], hidden.shape[1]
        out = torch.empty(count, self._vocab_size)
        if count == 0:
            return StepLogits(out, [], [])
        found = np.empty((self._team.size, count, FOUND_BYTES // 4), np.float32)
        padded = -(-count // ROWS) * ROWS * size
        if self._rounded.numel() < 2 * padded:
            self._rounded = torch.empty(2 * padded, dtype=torch.bfloat16)
        rows = rows.contiguous()
        self._team.set(
            hidden_size=size,
            vocab_size=self._vocab_size,
            eps=self._eps,
            num_logits=count,
            hidden=hidden.data_ptr(),
            logit_rows=rows.data_ptr(),
            final_norm=self._norm.data_ptr(),
            high=self._rounded.data_ptr(),
            low=self._rounded[padded:].data_ptr(),
            head=self._blocks.data_ptr(),
            head_sums=self._sums.data_ptr(),
            tile_config=self._tile_config.data_ptr(),
            logits=out.data_ptr(),
            head_found=found.ctypes.data,
        )
        self._team.run(HEAD)
        largest, places, spoiled = np.split(found, 3, axis=2)
        best = largest.max(axis=(0, 2), keepdims=True)
        tokens = np.where(largest == best, places.view(np.int32), self._vocab_size - 1).min(axis=(0, 2))
        return StepLogits(out, np.isfinite(spoiled).all(axis=(0, 2)).tolist(), tokens.tolist())
