"""A decoder whose steps run in compiled code: its layers and, where matrix tiles are, its head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hotshoe.kernels.cpu import amx
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.kernels.cpu.output_head import PackedHead
from hotshoe.server.model.compiled_head import CompiledHead
from hotshoe.server.model.compiled_layers import CompiledLayers, can_compile
from hotshoe.server.model.spec import ModelSpec

if TYPE_CHECKING:
    from hotshoe.server.model.decoder import DecoderLayer


@dataclass(frozen=True, slots=True)
class CompiledSteps:
    """Both run on one team of threads, one after the other."""

    layers: CompiledLayers
    head: CompiledHead | None  # None: vectors are no faster than torch's own product


def compile_steps(
    spec: ModelSpec,
    layers: Sequence["DecoderLayer"],
    *,
    norm: Tensor,
    head: object,
    threads: int,
    matrix_tiles: bool | None = None,
) -> CompiledSteps | None:
    """Compiled code for a decoder's weights, which must not move; None if their shapes do not fit it.

    Args:
        norm: the final norm's weight, [hidden_size].
        head: what the output head was packed as.
        matrix_tiles: whether to multiply on AMX tiles; where the CPU has them, unless said.
    Raises:
        ValueError: `matrix_tiles`, but this CPU has none.
    """
    if not can_compile(spec, layers):
        return None
    if matrix_tiles is None:
        matrix_tiles = amx.available()
    team = DecodeTeam(threads)
    compiled_head = None
    if matrix_tiles and isinstance(head, PackedHead) and head.blocks is not None:
        compiled_head = CompiledHead(team, norm=norm, eps=spec.norm_eps, blocks=head.blocks, vocab_size=spec.vocab_size)
    return CompiledSteps(CompiledLayers(spec, layers, team, matrix_tiles=matrix_tiles), compiled_head)
