"""An adapter made ready for the device: its factors as the tables hold them, so that placing it only copies bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable, units_of
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.server.adapters.placed_adapter import SiteVectors, SoftPrompt
from hotshoe.server.adapters.sites import SITE_OF_TARGET, SITES, SiteId, SiteShape


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory, in the layout and dtype of the device's tables."""

    num_units: int
    factors: Mapping[SiteId, LowRankTable]  # its own units only, at the sites where it has a rank
    ranks: Mapping[SiteId, tuple[int, ...]]  # of each target there
    vectors: Mapping[SiteId, SiteVectors]
    soft_prompt: SoftPrompt
    size_bytes: int
    device_bytes: int  # of those that the device has for adapters


def pack_adapter(adapter: LoweredAdapter, shapes: Mapping[SiteId, SiteShape], dtype: torch.dtype) -> PackedAdapter:
    """Groups an adapter's linears by site and lays their factors out in units.

    Raises:
        ValueError: a linear is not the base's, or a tensor does not fit it; the message names it.
    """
    sites = _by_site(adapter, shapes)
    ranks = {site: tuple(linear.rank for linear in linears) for site, linears in sites.items()}
    ranks = {site: found for site, found in ranks.items() if any(found)}
    factors = {site: _pack_factors(sites[site], shapes[site], dtype) for site in ranks}
    vectors = {site: found for site, linears in sites.items() if (found := _site_vectors(linears, shapes[site]))}
    soft_prompt = SoftPrompt(adapter.kv_prefix, adapter.prompt_embeddings)
    tensors = [tensor for table in factors.values() for tensor in (table.a, table.b)]
    tensors += [tensor for found in vectors.values() for tensor in found.tensors()]
    size_bytes = sum(tensor.nbytes for tensor in (*tensors, *soft_prompt.tensors()))
    return PackedAdapter(
        num_units=units_of(adapter.rank),
        factors=factors,
        ranks=ranks,
        vectors=vectors,
        soft_prompt=soft_prompt,
        size_bytes=size_bytes,
        device_bytes=size_bytes,
    )


def _by_site(adapter: LoweredAdapter, shapes: Mapping[SiteId, SiteShape]) -> dict[SiteId, list[LoweredLinear]]:
    """The linears of each site in the order of its targets, empty ones where the adapter has none."""
    sites: dict[SiteId, list[LoweredLinear]] = {}
    for linear_id, linear in adapter.linears.items():
        site, target = SITE_OF_TARGET.get(linear_id.target, ("", 0))
        shape = shapes.get((linear_id.layer, site))
        if shape is None:
            raise ValueError(f"{linear_id}: the base has no such linear")
        _check_shapes(linear_id, linear, shape.in_features, shape.widths[target])
        sites.setdefault((linear_id.layer, site), [LoweredLinear()] * len(SITES[site]))[target] = linear
    return sites


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
        tensor: Tensor | None = getattr(linear, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{linear_id}.{name}: expected {list(shape)}, not {list(tensor.shape)}")


def _pack_factors(linears: Sequence[LoweredLinear], shape: SiteShape, dtype: torch.dtype) -> LowRankTable:
    units = units_of(max(linear.rank for linear in linears))
    a = torch.zeros(units, shape.in_features, len(linears) * UNIT_RANK, dtype=dtype)
    b = torch.zeros(units * UNIT_RANK, sum(shape.widths), dtype=dtype)
    table = LowRankTable(a, b, shape.widths)
    for target, linear in enumerate(linears):
        if linear.a is None or linear.b is None:
            continue
        table.b_of(0, target, linear.rank).copy_(linear.b.t())
        for unit, rows in enumerate(torch.split(linear.a, UNIT_RANK)):
            table.a_of(unit, target, rows.shape[0]).copy_(rows.t())
    return table


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
