"""An adapter as it lies on the device: which units of the low-rank tables are its own, and its vectors by site."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.registry.formats.base import BlockId, NormId
from hotshoe.registry.formats.lowered import Bottleneck, GatedPrompt, KvPrefix, TokenFactors, TokenRows
from hotshoe.server.adapters.packed_bottleneck import PackedBottleneck
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId

Beyond = Literal["bottlenecks", "norms", "gated_prompts", "rotations", "copies"]


@dataclass(frozen=True, slots=True)
class SequenceTerms:
    """What an adapter is to a sequence as a whole: what it puts before it, where its linears begin to act, and so on.

    Attributes:
        beyond: what its rows need that is not low-rank factors, vectors or keys and values: a decoder that does not
            take it with all the others' rows computes them in a pass of their own.
    """

    kv_prefix: KvPrefix | None = None
    prompt_embeddings: Tensor | None = None  # [length, hidden_size] float32
    # As in `LoweredAdapter`.
    embedding_rows: TokenRows | None = None
    head_rows: TokenRows | None = None
    embedding_update: TokenFactors | None = None
    head_update: TokenFactors | None = None
    invocation: tuple[int, ...] | None = None
    beyond: frozenset[Beyond] = frozenset()

    def tensors(self) -> Iterator[Tensor]:
        """Those that are set."""
        if self.kv_prefix is not None:
            yield from (self.kv_prefix.keys, self.kv_prefix.values)
        if self.prompt_embeddings is not None:
            yield self.prompt_embeddings
        for replaced in (self.embedding_rows, self.head_rows):
            if replaced is not None:
                yield from (replaced.rows, replaced.base)
        for update in (self.embedding_update, self.head_update):
            if update is not None:
                yield from update.tensors()

    def to(self, device: torch.device) -> "SequenceTerms":
        """What is of the embedding stays on the CPU, where a step's tokens are and rows of several kinds are joined."""
        prefix, head = self.kv_prefix, self.head_rows
        return replace(
            self,
            kv_prefix=prefix and KvPrefix(prefix.keys.to(device), prefix.values.to(device)),
            head_rows=head and TokenRows(head.token_ids.to(device), head.rows.to(device), head.base.to(device)),
            head_update=self.head_update and self.head_update.to(device),
        )


@dataclass(frozen=True, slots=True)
class SiteVectors:
    """An adapter's vectors at one site, float32; None is the identity."""

    inputs: tuple[Tensor | None, ...] = (None,)  # [in_features] for each target, or one for all
    output: Tensor | None = None  # [out_features of the site]
    bias: Tensor | None = None  # [out_features of the site]

    def input_of(self, target: int) -> Tensor | None:
        return self.inputs[target if len(self.inputs) > 1 else 0]

    def tensors(self) -> Iterator[Tensor]:
        """Those that are set."""
        for tensor in (*self.inputs, self.output, self.bias):
            if tensor is not None:
                yield tensor

    def to(self, device: torch.device) -> "SiteVectors":
        return SiteVectors(
            inputs=tuple(None if scale is None else scale.to(device) for scale in self.inputs),
            output=None if self.output is None else self.output.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )


NO_VECTORS = SiteVectors()


@dataclass(frozen=True, slots=True)
class SiteRotations:
    """How an adapter turns the inputs and the outputs of one site, float32; None is the identity."""

    inputs: tuple[Tensor | None, ...]  # of each target, [blocks, size, size]
    # [out_features of the site]: which output's product each one takes beside its own, int64, and times what.
    partners: Tensor | None = None
    gains: Tensor | None = None

    @property
    def turns_inputs(self) -> bool:
        return any(matrices is not None for matrices in self.inputs)

    def tensors(self) -> Iterator[Tensor]:
        """Those that are set."""
        for tensor in (*self.inputs, self.partners, self.gains):
            if tensor is not None:
                yield tensor

    def to(self, device: torch.device) -> "SiteRotations":
        return SiteRotations(
            inputs=tuple(None if matrices is None else matrices.to(device) for matrices in self.inputs),
            partners=None if self.partners is None else self.partners.to(device),
            gains=None if self.gains is None else self.gains.to(device),
        )


@dataclass(frozen=True, slots=True)
class SiteCopies:
    """The base's product at one site several times, with scaled inputs and outputs, float32."""

    inputs: tuple[Tensor, ...]  # of each target, [copies, in_features]
    outputs: Tensor  # [copies, out_features of the site]

    def tensors(self) -> Iterator[Tensor]:
        yield from (*self.inputs, self.outputs)

    def to(self, device: torch.device) -> "SiteCopies":
        return SiteCopies(tuple(scales.to(device) for scales in self.inputs), self.outputs.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class PlacedAdapter:
    """One adapter on the device; what it holds never changes, and it is equal to itself only."""

    units: Sequence[int]  # of the low-rank tables, in the order of its ranks
    ranks: Mapping[SiteId, tuple[int, ...]]  # of each target, at the sites where one is not 0
    rank_table: NDArray[np.int64]  # [layers, sites, MAX_TARGETS]: the same, 0 elsewhere
    vectors: Mapping[SiteId, SiteVectors]
    rotations: Mapping[SiteId, SiteRotations]
    copies: Mapping[SiteId, SiteCopies]
    gated_prompts: Mapping[int, GatedPrompt]  # by layer
    norms: Mapping[NormId, Tensor]  # [size] float32, added to the base's weights
    bottlenecks: Mapping[BlockId, Bottleneck | PackedBottleneck]  # packed where steps are compiled
    sequence_terms: SequenceTerms
    size_bytes: int
    folded: bool = False  # how its factors lie in the low-rank tables

    @property
    def first_unit(self) -> int:
        """Where its units begin, of tables that hold them one behind the other."""
        return self.units[0] if self.units else 0

    @property
    def changes_layers(self) -> bool:
        """False if all that it is stands before the prompt, or replaces rows of the embedding and the head."""
        found = (
            self.ranks,
            self.vectors,
            self.rotations,
            self.copies,
            self.gated_prompts,
            self.norms,
            self.bottlenecks,
        )
        return any(found)


def tabulated_ranks(ranks: Mapping[SiteId, tuple[int, ...]], num_layers: int) -> NDArray[np.int64]:
    """The `rank_table` of some ranks."""
    table = np.zeros((num_layers, len(SITES), MAX_TARGETS), np.int64)
    for (layer, site), of_targets in ranks.items():
        table[layer, SITE_INDEX[site], : len(of_targets)] = of_targets
    return table
