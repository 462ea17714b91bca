"""A loaded base as adapters' formats see it: shapes, and weights read from disk when a lowering asks for them."""

from torch import Tensor

from hotshoe.registry.formats.base import BaseShape, LinearId, NormId
from hotshoe.server.model.backends import dequantized
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.spec import EMBEDDING, HEAD


class CheckpointWeights:
    """The `BaseWeights` of a checkpoint. Nothing stays in memory; calls may come from any thread."""

    def __init__(self, checkpoint: Checkpoint, shape: BaseShape) -> None:
        self.shape = shape
        self._checkpoint = checkpoint

    def bias(self, linear: LinearId) -> Tensor | None:
        shape = self.shape.linears[linear]
        return self._checkpoint.tensor(f"{shape.module}.bias").float() if shape.has_bias else None

    def weight(self, linear: LinearId) -> Tensor:
        return dequantized(self._checkpoint.linear(self.shape.linears[linear].module))

    def norm(self, norm: NormId) -> Tensor:
        return self._checkpoint.tensor(f"{self.shape.norms[norm].module}.weight").float()

    def embedding(self) -> Tensor:
        return self._checkpoint.tensor(EMBEDDING).float()

    def head(self) -> Tensor:
        return self._checkpoint.tensor(EMBEDDING if self.shape.tied_head else HEAD).float()
