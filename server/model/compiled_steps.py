"""A decoder whose steps run in compiled code: its layers, its head, or both."""

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

    layers: CompiledLayers | None
    head: CompiledHead | None


def compile_steps(
    spec: ModelSpec,
    layers: Sequence["DecoderLayer"],
    *,
    norm: Tensor,
    head: object,
    threads: int,
    matrix_tiles: bool | None = None,
) -> CompiledSteps | None:
    """Compiled code for a decoder's weights, which must not move; None if no shape fits it.

    Args:
        norm: the final norm's weight, [hidden_size].
        head: what the output head was packed as.
        matrix_tiles: whether to multiply on AMX tiles; where the CPU has them, unless said.
    Raises:
        ValueError: `matrix_tiles`, but this CPU has none.
    """
    if matrix_tiles is None:
        matrix_tiles = amx.available()
    tiles = head.tiles if isinstance(head, PackedHead) else None
    has_layers = can_compile(spec, layers)
    if tiles is None and not has_layers:
        return None
    team = DecodeTeam(threads)
    compiled_head = None
    if isinstance(head, PackedHead) and tiles is not None:
        compiled_head = CompiledHead(team, norm=norm, eps=spec.norm_eps, rows=head.rows, tiles=tiles)
    compiled_layers = CompiledLayers(spec, layers, team, matrix_tiles=matrix_tiles) if has_layers else None
    return CompiledSteps(compiled_layers, compiled_head)
