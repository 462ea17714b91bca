"""The decoder's layers as compiled code reads them: addresses of packed weights, and scratch memory for a step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch
from hotshoe.kernels.cpu.amx import ROWS, tile_config
from hotshoe.kernels.cpu.amx import available as has_matrix_tiles
from hotshoe.kernels.cpu.decode_copies import AT_ONCE, LIST_WIDTH
from hotshoe.kernels.cpu.decode_job import BIAS, BLOCK, GELU_TANH, LAYER_WIDTH, LAYERS, SCALES, SILU, TILES
from hotshoe.kernels.cpu.decode_low_rank import HALVES, VALUES_BYTES
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.kernels.cpu.decode_turns import SCRATCH_ROWS
from hotshoe.kernels.cpu.nf4_amx import MANY, scratch_bytes
from hotshoe.kernels.cpu.nf4_linear import PackedNf4
from hotshoe.kernels.cpu.vectors import LANES
from hotshoe.server.adapters.placed_adapter import Beyond
from hotshoe.server.adapters.sites import MAX_TARGETS, SiteShape, site_targets
from hotshoe.server.model.factor_fetches import MOST_ROWS, FactorFetches
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.spec import Gate, ModelSpec

if TYPE_CHECKING:
    from hotshoe.server.adapters.row_terms import RowTerms
    from hotshoe.server.model.decoder import DecoderLayer

GATES: Mapping[Gate, int] = {"silu": SILU, "gelu_tanh": GELU_TANH}
SITE_NAMES = ("qkv", "o", "gate_up", "down")
_TILE = 32  # columns that cannot be split between threads
_ROWS_AT_FIRST, _CONTEXT_AT_FIRST = 32, 1024


def can_compile(spec: ModelSpec, layers: Sequence["DecoderLayer"]) -> bool:
    """Whether every site is one packed NF4 weight, heads are whole vectors, and gate and up are whole tiles."""
    return (
        spec.head_dim % LANES == 0
        and spec.intermediate_size % _TILE == 0
        and all(
            len(layer.sites[site].weights) == 1 and isinstance(layer.sites[site].weights[0], PackedNf4)
            for layer in layers
            for site in SITE_NAMES
        )
    )


class CompiledLayers:
    """Runs steps through all layers in one call."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: Sequence["DecoderLayer"],
        team: DecodeTeam,
        *,
        matrix_tiles: bool,
    ) -> None:
        """Takes layers for which `can_compile` holds; their weights must not move.

        Args:
            matrix_tiles: whether to multiply on AMX tiles.
        Raises:
            ValueError: `matrix_tiles`, but this CPU has none.
        """
        if matrix_tiles and not has_matrix_tiles():
            raise ValueError("matrix_tiles: this CPU has none")
        self._tile_configs: list[Tensor] = []  # by a step's rows modulo those of a tile
        self._spec = spec
        self._team = team
        self._kept: list[object] = [layers]  # whatever a job has the address of
        self._scratch: dict[str, Tensor] = {}
        self._kv: KvCache | None = None
        gate = next(iter(layers)).sites["gate_up"].weights[0]
        self._sizes = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim, gate.shape[0] // 2)
        targets = site_targets({linear.target for linear, _ in spec.linears()})
        self._shapes = [
            SiteShape(linear.weights[0].shape[1], targets[site], tuple(linear.widths))
            for site, linear in ((site, layers[0].sites[site]) for site in SITE_NAMES)
        ]
        self._layers = self._layer_table(layers)
        self._starts = starts = self._first_columns()
        self._fetched: tuple[RowTerms, FactorFetches] | None = None  # of the latest step that had any
        self._team.set(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            intermediate_size=self._sizes[2],
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rotary_dim=spec.rope.rotary_dim(spec.head_dim),
            eps=spec.norm_eps,
            query_scale=spec.attention_scale,
            score_cap=spec.attention_cap or 0.0,
            gate=GATES[spec.gate],
            fused=spec.fused,
            layers=self._keep(self._layers),
            starts=self._keep(starts),
        )
        takes: frozenset[Beyond] = frozenset({"bottlenecks", "norms", "gated_prompts", "rotations", "copies"})
        self.takes = takes - {"bottlenecks"} if spec.block_norms else takes
        if matrix_tiles:
            self._tile_configs = [torch.from_numpy(tile_config(rows or ROWS)) for rows in range(ROWS)]

    def run(
        self,
        hidden: Tensor,
        kv: KvCache,
        *,
        cos: Tensor,
        sin: Tensor,
        kv_slots: Tensor,
        attention: AttentionBatch,
        terms: "RowTerms | None",
    ) -> None:
        """Takes hidden [rows, hidden_size] float32 through all layers in place, and writes the rows' keys and values.

        Args:
            cos, sin: [ropes, rows, rotary_dim / 2] float32, as `spec.distinct_ropes` has them.
            kv_slots: [rows] int64, as `DecoderInput` has them.
            terms: what the rows' adapters add.
        """
        slots, sequences, lengths = _contexts(attention)
        inputs = {
            "cos": cos,
            "sin": sin,
            "kv_slots": kv_slots,
            "lengths": lengths,
            "sequences": sequences,
            "slots": slots,
        }
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
        self._use_cache(kv)
        self._reserve(hidden.shape[0], slots.shape[1], terms)
        self._team.set(num_rows=hidden.shape[0], max_context=slots.shape[1], hidden=hidden.data_ptr())
        if self._tile_configs:
            short = hidden.shape[0] % ROWS if hidden.shape[0] < MANY else 0
            self._team.set(tile_config=self._tile_configs[short].data_ptr())
        self._team.set(**{name: tensor.data_ptr() for name, tensor in inputs.items()})
        self._team.set(**(terms.addresses if terms else _NO_TERMS), fetches=self._fetches(terms, hidden.shape[0]))
        self._team.run(LAYERS)

    def _keep(self, array: NDArray[Any]) -> int:
        self._kept.append(array)
        return array.ctypes.data

    def _layer_table(self, layers: Sequence["DecoderLayer"]) -> NDArray[np.int64]:
        table = np.zeros((len(layers), LAYER_WIDTH), np.int64)
        for index, layer in enumerate(layers):
            table[index, 0] = self._float32(layer.input_norm)
            table[index, 1] = self._float32(layer.mlp_norm)
            table[index, 2] = self._float32(layer.qk_norm)
            table[index, 4] = self._spec.windows[index] or 0
            table[index, 5] = self._spec.rope_indices[index]
            for at, norm in zip((6, 7), layer.block_norms or (None, None), strict=True):
                table[index, at] = self._float32(norm)
            for site, name in enumerate(SITE_NAMES):
                linear = layer.sites[name]
                table[index, TILES + site] = linear.weights[0].tiles.data_ptr()
                table[index, SCALES + site] = self._float32(_by_tile(linear.weights[0].exact_scales))
                table[index, BIAS + site] = self._float32(linear.bias)
        return table

    def _float32(self, tensor: Tensor | None) -> int:
        """The address of a float32 copy, 0 of none."""
        if tensor is None:
            return 0
        copy = tensor.float().contiguous()
        self._kept.append(copy)
        return copy.data_ptr()

    def _first_columns(self) -> NDArray[np.int64]:
        """[sites, team + 1]: the first column of each thread; whole tiles. Gate and up are split alike."""
        heads, kv, intermediate = self._sizes
        widths = (heads + 2 * kv, self._spec.hidden_size, intermediate, self._spec.hidden_size)
        team = self._team.size
        return np.array([[w // _TILE * i // team * _TILE for i in range(team + 1)] for w in widths], np.int64)

    def _fetches(self, terms: "RowTerms | None", num_rows: int) -> int:
        """The address of what the threads ask for ahead of reading it, 0 if that does not pay."""
        if terms is None or not terms.num_terms or num_rows > MOST_ROWS:
            return 0
        if self._fetched is None or self._fetched[0] is not terms:
            self._fetched = terms, FactorFetches(terms, self._shapes, self._starts)
        return self._fetched[1].address

    def _use_cache(self, kv: KvCache) -> None:
        if kv is not self._kv:
            self._layers[:, 3] = [layer.data_ptr() for layer in kv.layers]
            self._kv = kv

    def _reserve(self, rows: int, max_context: int, terms: "RowTerms | None") -> None:
        """Makes the scratch memory large enough."""
        spec, team = self._spec, self._team.size
        heads, kv, intermediate = self._sizes
        group = spec.num_heads // spec.num_kv_heads
        widest = max(heads + 2 * kv, 2 * intermediate, spec.hidden_size)
        stride = _grown(self._scratch.get("probabilities"), group * team, max_context + LANES, _CONTEXT_AT_FIRST)
        self._scratch_of("probabilities", group * team * stride, torch.float32)
        self._team.set(probabilities_stride=stride)
        rows, networks = max(rows, _ROWS_AT_FIRST), terms.networks if terms else None
        copies = terms is not None and terms.addresses["copy_depth"] > 0
        turns, deepest = terms is not None and terms.turns.any, max(heads, spec.hidden_size, intermediate)
        if self._tile_configs:
            self._scratch_of("tile_scratch", team * scratch_bytes(deepest), torch.uint8)
            self._team.set(tile_stride=scratch_bytes(deepest), tile_blocks=deepest // BLOCK)
        for name, size, dtype in (
            ("normed", team * rows * spec.hidden_size, torch.float32),
            ("normed16", (team * rows + MANY) * spec.hidden_size, torch.bfloat16),
            ("totals", team * group, torch.float32),
            ("query", team * group * spec.head_dim, torch.float32),
            ("product", rows * widest, torch.float32),
            ("attended", rows * heads, torch.float32),
            ("attended16", (rows + MANY) * heads, torch.bfloat16),
            ("activated", rows * intermediate, torch.float32),
            ("activated16", (rows + MANY) * intermediate, torch.bfloat16),
            ("shrunk", (HALVES * terms.num_terms * terms.shrunk_stride if terms else 0), torch.float32),
            ("swapped", rows * widest if terms and terms.addresses["site_swaps"] else 0, torch.float32),
            ("turned16", MAX_TARGETS * (rows + MANY) * deepest if turns else 0, torch.bfloat16),
            ("turn_scratch", SCRATCH_ROWS * team * deepest if turns else 0, torch.float32),
            ("copied16", MAX_TARGETS * AT_ONCE * deepest if copies else 0, torch.bfloat16),
            ("copied", AT_ONCE * widest if copies else 0, torch.float32),
            ("copy_list", team * AT_ONCE * LIST_WIDTH if copies else 0, torch.int64),
            ("tapped", networks.num_terms * spec.hidden_size if networks else 0, torch.float32),
            ("network_shrunk", HALVES * networks.num_terms * networks.shrunk_stride if networks else 0, torch.float32),
            ("low_rank_values", team * VALUES_BYTES, torch.uint8),
        ):
            self._scratch_of(name, size, dtype)

    def _scratch_of(self, name: str, size: int, dtype: torch.dtype) -> None:
        have = self._scratch.get(name)
        if have is None or have.numel() < size:
            have = self._scratch[name] = torch.empty(size, dtype=dtype)
            self._team.set(**{name: have.data_ptr()})


def _by_tile(scales: Tensor) -> Tensor:
    """Scales [blocks, out_features] as they are read: [tiles, blocks, _TILE]."""
    tiles: Tensor = scales.unflatten(1, (-1, _TILE))
    return tiles.transpose(0, 1)


def _contexts(attention: AttentionBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [sequences, max_context], and of each row its sequence and how many of those slots it sees."""
    if not attention.prefills:
        return attention.decode_slots, torch.arange(attention.num_decodes), attention.decode_lengths
    decodes = attention.num_decodes
    longest = max(attention.decode_slots.shape[1], *(segment.slots.shape[0] for segment in attention.prefills))
    slots = torch.zeros((decodes + len(attention.prefills), longest), dtype=torch.int64)
    slots[:decodes, : attention.decode_slots.shape[1]] = attention.decode_slots
    sequences, lengths = [torch.arange(decodes)], [attention.decode_lengths]
    for index, segment in enumerate(attention.prefills):
        context, rows = segment.slots.shape[0], segment.end - segment.start
        slots[decodes + index, :context] = segment.slots
        sequences.append(torch.full((rows,), decodes + index))
        lengths.append(torch.arange(context - rows + 1, context + 1))
    return slots, torch.cat(sequences), torch.cat(lengths)


def _grown(have: Tensor | None, count: int, wanted: int, least: int) -> int:
    """How long each of `count` rows is that `have` holds, or should hold from now on."""
    length = 0 if have is None else have.numel() // count
    return length if length >= wanted else max(2 * wanted, least)


_NO_TERMS = dict.fromkeys(
    (
        "num_terms",
        "num_network_terms",
        "row_segments",
        "input_scales",
        "output_scales",
        "bias_deltas",
        "norm_deltas",
        "site_turns",
        "site_swaps",
        "prompt_depth",
        "copy_depth",
    ),
    0,
)
