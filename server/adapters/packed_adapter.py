"""An adapter made ready for the device: its factors at their true ranks, so that placing it only copies bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from hotshoe.registry.formats.base import BlockId, LinearId, NormId
from hotshoe.registry.formats.lowered import Bottleneck, GatedPrompt, LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.validation import Pause, go_on
from hotshoe.server.adapters.factor_layout import FactorLayout
from hotshoe.server.adapters.packed_factors import pack_factors
from hotshoe.server.adapters.placed_adapter import (
    Beyond,
    PlacedAdapter,
    SequenceTerms,
    SiteCopies,
    SiteRotations,
    SiteVectors,
)
from hotshoe.server.adapters.sites import SITE_INDEX, SITE_OF_TARGET, SiteId, SiteShape

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory, in the dtype of the device's tables, or of its file."""

    factors: Tensor  # [layout.num_elements], flat
    scales: tuple[float, ...]  # what the B of each pair is still to be multiplied with; none if none is
    layout: FactorLayout
    vectors: Mapping[SiteId, SiteVectors]
    rotations: Mapping[SiteId, SiteRotations]
    copies: Mapping[SiteId, SiteCopies]
    gated_prompts: Mapping[int, GatedPrompt]
    norms: Mapping[NormId, Tensor]
    bottlenecks: Mapping[BlockId, Bottleneck]
    sequence_terms: SequenceTerms
    size_bytes: int  # here
    device_bytes: int  # on the device, where ranks are rounded up to units

    def placed(self, vectors: Mapping[SiteId, SiteVectors], *, device: torch.device, num_layers: int) -> PlacedAdapter:
        """What of it is not in low-rank tables, on the device; `vectors` are there already. It has no units yet."""
        return PlacedAdapter(
            units=(),
            ranks=self.layout.ranks,
            rank_table=self.layout.rank_table(num_layers),
            vectors=vectors,
            rotations={site: found.to(device) for site, found in self.rotations.items()},
            copies={site: found.to(device) for site, found in self.copies.items()},
            gated_prompts={
                layer: GatedPrompt(one.keys.to(device), one.values.to(device), one.gate.to(device))
                for layer, one in self.gated_prompts.items()
            },
            norms={norm: weights.to(device) for norm, weights in self.norms.items()},
            bottlenecks={block: found.to(device) for block, found in self.bottlenecks.items()},
            sequence_terms=self.sequence_terms.to(device),
            size_bytes=self.device_bytes,
        )


def pack_adapter(
    adapter: LoweredAdapter,
    shapes: Mapping[SiteId, SiteShape],
    dtype: torch.dtype,
    *,
    as_stored: bool = False,
    pause: Pause = go_on,
) -> PackedAdapter:
    """Groups an adapter's linears by site, and gathers their factors; calls `pause` at each site.

    Args:
        dtype: of the device's tables.
        as_stored: whether factors in 16 bits may stay what they are, for whoever places them to change.

    Raises:
        ValueError: a linear is not the base's, or a tensor does not fit it; the message names it.
    """
    sites = _by_site(adapter, shapes)
    packed = pack_factors(sites, shapes, dtype, pause, as_stored=as_stored)
    vectors = _where_any(sites, shapes, _site_vectors)
    rotations = _where_any(sites, shapes, _site_rotations)
    copies = _where_any(sites, shapes, _site_copies)
    sequence_terms = _sequence_terms(adapter, rotations, copies)
    parts: list[SiteVectors | SiteRotations | SiteCopies | Bottleneck]
    parts = [*vectors.values(), *rotations.values(), *copies.values(), *adapter.bottlenecks.values()]
    others = [tensor for part in parts for tensor in part.tensors()]
    prompts = [tensor for one in adapter.gated_prompts.values() for tensor in (one.keys, one.values)]
    other_bytes = sum(
        tensor.nbytes for tensor in (*others, *adapter.norms.values(), *prompts, *sequence_terms.tensors())
    )
    return PackedAdapter(
        factors=packed.factors,
        scales=packed.scales,
        layout=packed.layout,
        vectors=own(vectors),
        rotations=own(rotations),
        copies=own(copies),
        gated_prompts=own(adapter.gated_prompts),
        norms=own(adapter.norms),
        bottlenecks=own(adapter.bottlenecks),
        sequence_terms=own(sequence_terms),
        size_bytes=packed.factors.nbytes + other_bytes,
        device_bytes=packed.layout.num_device_elements * dtype.itemsize + other_bytes,
    )


def _sequence_terms(
    adapter: LoweredAdapter, rotations: Mapping[SiteId, SiteRotations], copies: Mapping[SiteId, SiteCopies]
) -> SequenceTerms:
    """What is not a linear's, and which of its parts are beyond the low-rank tables."""
    beyond: dict[Beyond, object] = {
        "bottlenecks": adapter.bottlenecks,
        "norms": adapter.norms,
        "gated_prompts": adapter.gated_prompts,
        "rotations": rotations,
        "copies": copies,
    }
    return SequenceTerms(
        kv_prefix=adapter.kv_prefix,
        prompt_embeddings=adapter.prompt_embeddings,
        embedding_rows=adapter.embedding_rows,
        head_rows=adapter.head_rows,
        embedding_update=adapter.embedding_update,
        head_update=adapter.head_update,
        invocation=adapter.invocation,
        beyond=frozenset(name for name, found in beyond.items() if found),
    )


def own(part: _Part) -> _Part:
    """The same, with copies of tensors that lie in a larger one's memory, which they would keep from being freed."""
    return cast(_Part, _owned(part))  # it is built again as what it is


def _owned(part: object) -> object:
    if isinstance(part, Tensor):
        storage = part.untyped_storage()  # of numpy's memory, nobody says how much is behind it
        return part.clone() if storage.nbytes() > part.nbytes or not storage.resizable() else part
    if isinstance(part, Mapping):
        return {key: _owned(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_owned(item) for item in part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: _owned(getattr(part, field.name)) for field in fields(part)})
    return part


def _by_site(adapter: LoweredAdapter, shapes: Mapping[SiteId, SiteShape]) -> dict[SiteId, list[LoweredLinear]]:
    """The linears of each site in the order of its targets, empty ones where it has none; sites in layer order."""
    sites: dict[SiteId, list[LoweredLinear]] = {}
    for linear_id, linear in adapter.linears.items():
        site = linear_id.layer, SITE_OF_TARGET.get(linear_id.target, "")
        shape = shapes.get(site)
        if shape is None or linear_id.target not in shape.targets:
            raise ValueError(f"{linear_id}: the base has no such linear")
        target = shape.targets.index(linear_id.target)
        _check_shapes(linear_id, linear, shape.in_features, shape.widths[target])
        sites.setdefault(site, [LoweredLinear()] * len(shape.targets))[target] = linear
    return dict(sorted(sites.items(), key=lambda item: (item[0][0], SITE_INDEX[item[0][1]])))


def _where_any(
    sites: Mapping[SiteId, Sequence[LoweredLinear]],
    shapes: Mapping[SiteId, SiteShape],
    find: Callable[[Sequence[LoweredLinear], SiteShape], _Part | None],
) -> dict[SiteId, _Part]:
    """What `find` gives of the sites' linears, without those of which it gives None."""
    found = {site: find(linears, shapes[site]) for site, linears in sites.items()}
    return {site: one for site, one in found.items() if one is not None}


def _check_shapes(linear_id: LinearId, linear: LoweredLinear, in_features: int, out_features: int) -> None:
    expected = {
        "a": (linear.rank, in_features),
        "b": (out_features, linear.rank),
        "input_scale": (in_features,),
        "output_scale": (out_features,),
        "bias_delta": (out_features,),
    }
    if (linear.a is None) != (linear.b is None):
        raise ValueError(f"{linear_id}: expected both of a and b, or neither")
    for name, shape in expected.items():
        tensor: Tensor | StoredMatrix | None = getattr(linear, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{linear_id}.{name}: expected {list(shape)}, not {list(tensor.shape)}")


def _site_vectors(linears: Sequence[LoweredLinear], shape: SiteShape) -> SiteVectors | None:
    """The vectors of one site, the targets' side by side; None if it has none."""
    inputs = [linear.input_scale for linear in linears]
    if all(_same(inputs[0], other) for other in inputs[1:]):
        inputs = inputs[:1]
    vectors = SiteVectors(
        inputs=tuple(inputs),
        output=_side_by_side([linear.output_scale for linear in linears], shape, neutral=1.0),
        bias=_side_by_side([linear.bias_delta for linear in linears], shape, neutral=0.0),
    )
    return vectors if any(True for _ in vectors.tensors()) else None


def _site_rotations(linears: Sequence[LoweredLinear], shape: SiteShape) -> SiteRotations | None:
    """How one site's inputs and outputs are turned; None if they are not."""
    partners = gains = None
    if any(linear.output_swap is not None for linear in linears):
        partners, gains = torch.arange(sum(shape.widths)), torch.zeros(sum(shape.widths))
        for linear, columns in zip(linears, shape.columns, strict=True):
            if linear.output_swap is not None:
                partners[columns] = linear.output_swap.partners + columns.start
                gains[columns] = linear.output_swap.gains
    rotations = SiteRotations(tuple(linear.input_rotation for linear in linears), partners, gains)
    return rotations if any(True for _ in rotations.tensors()) else None


def _site_copies(linears: Sequence[LoweredLinear], shape: SiteShape) -> SiteCopies | None:
    """The copies of one site's linears, as many for each, those that it lacks of zeros; None if none has any."""
    count = max(0 if linear.copies is None else len(linear.copies.outputs) for linear in linears)
    if not count:
        return None
    inputs = torch.zeros(len(linears), count, shape.in_features)
    outputs = torch.zeros(count, sum(shape.widths))
    for index, (linear, columns) in enumerate(zip(linears, shape.columns, strict=True)):
        if linear.copies is not None:
            inputs[index, : len(linear.copies.inputs)] = linear.copies.inputs
            outputs[: len(linear.copies.outputs), columns] = linear.copies.outputs
    return SiteCopies(tuple(inputs), outputs)


def _side_by_side(vectors: Sequence[Tensor | None], shape: SiteShape, *, neutral: float) -> Tensor | None:
    if all(vector is None for vector in vectors):
        return None
    whole = torch.full((sum(shape.widths),), neutral)
    for vector, columns in zip(vectors, shape.columns, strict=True):
        if vector is not None:
            whole[columns] = vector
    return whole


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
