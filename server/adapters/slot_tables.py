"""Every adapter on the device in tables at fixed addresses: captured graphs read them, so they never move or grow."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.kernels.site_updates import HAS_BIAS, HAS_INPUT, HAS_OUTPUT, SiteUpdates, UpdateVectors
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.placed_adapter import SiteVectors
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId, SiteShape


def unit_bytes(shapes: Mapping[SiteId, SiteShape], dtype: torch.dtype) -> int:
    """Bytes of `UNIT_RANK` ranks of one adapter, at every site."""
    values = (UNIT_RANK * (len(shape.widths) * shape.in_features + sum(shape.widths)) for shape in shapes.values())
    return sum(values) * dtype.itemsize


class SlotTables:
    """Factors by unit, and by slot: ranks, the units where they lie, vectors, and flags that say which there are.

    A slot's lines are rewritten only while no step uses it, so whoever reads others at that time may go on.
    """

    def __init__(
        self,
        shapes: Mapping[SiteId, SiteShape],
        *,
        num_slots: int,
        num_units: int,
        max_units: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Takes all memory. An adapter has up to `max_units` units of the `num_units` that each site has."""
        self._num_layers = 1 + max(layer for layer, _ in shapes)
        self._device = device
        sites = (num_slots, self._num_layers, len(SITES))
        self._ranks = torch.zeros(*sites, MAX_TARGETS, dtype=torch.int32, device=device)
        self._flags = torch.zeros(sites, dtype=torch.int32, device=device)
        self._units = torch.zeros(num_slots, max_units, dtype=torch.int32, device=device)
        self._sites: dict[SiteId, SiteUpdates] = {}
        for (layer, site), shape in shapes.items():
            targets, out = len(shape.widths), sum(shape.widths)
            a = torch.empty(num_units, shape.in_features, targets * UNIT_RANK, dtype=dtype, device=device)
            b = torch.empty(num_units * UNIT_RANK, out, dtype=dtype, device=device)
            vectors = UpdateVectors(
                torch.empty(num_slots, targets, shape.in_features, device=device),
                torch.empty(num_slots, out, device=device),
                torch.empty(num_slots, out, device=device),
                self._flags[:, layer, SITE_INDEX[site]],
            )
            ranks = self._ranks[:, layer, SITE_INDEX[site], :targets]
            self._sites[layer, site] = SiteUpdates(LowRankTable(a, b, shape.widths), ranks, self._units, vectors)

    def site(self, layer: int, site: str) -> SiteUpdates:
        """All slots at one site."""
        return self._sites[layer, site]

    @property
    def low_rank(self) -> Mapping[SiteId, LowRankTable]:
        """The factors of all sites."""
        return {site: updates.table for site, updates in self._sites.items()}

    def vectors_of(self, slot: int, found: Mapping[SiteId, SiteVectors]) -> dict[SiteId, SiteVectors]:
        """Where vectors like those lie in a slot's lines, once they are written."""
        return {site: self._lines(slot, site, one) for site, one in found.items()}

    def _lines(self, slot: int, site: SiteId, found: SiteVectors) -> SiteVectors:
        vectors = self._sites[site].vectors
        assert vectors is not None, "slots have vectors at every site"
        return SiteVectors(
            tuple(None if one is None else vectors.inputs[slot, target] for target, one in enumerate(found.inputs)),
            None if found.output is None else vectors.outputs[slot],
            None if found.bias is None else vectors.biases[slot],
        )

    def write(self, slot: int, adapter: PackedAdapter, units: Sequence[int]) -> None:
        """Copies an adapter into a slot's lines and into `units`, on the current stream."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        scaled: list[tuple[Tensor, float]] = []
        scales = iter(adapter.scales)
        factors = adapter.factors.to(self._device, non_blocking=True)  # at once: small copies to it would take longer
        for site, pairs in adapter.layout.by_site(factors):
            table = self._sites[site].table
            for pair in pairs:
                scale = next(scales, 1.0)
                for first in range(0, pair.rank, UNIT_RANK):
                    unit, rank = units[first // UNIT_RANK], min(UNIT_RANK, pair.rank - first)
                    targets += (table.a_of(unit, pair.target, rank), table.b_of(unit, pair.target, rank))
                    sources += (pair.a[:, first : first + rank], pair.b[first : first + rank])
                    scaled.append((targets[-1], scale))
        flags = torch.zeros(self._num_layers, len(SITES), dtype=torch.int32)
        for place, vectors in adapter.vectors.items():
            layer, name = place
            flags[layer, SITE_INDEX[name]] = self._pair_vectors(slot, place, vectors, targets, sources)
        ranks = torch.from_numpy(adapter.layout.rank_table(self._num_layers)).int()
        own_units = torch.zeros(self._units.shape[1], dtype=torch.int32)
        own_units[: len(units)] = torch.tensor(units, dtype=torch.int32)
        targets += (self._ranks[slot], self._flags[slot], self._units[slot])
        sources += (ranks, flags, own_units)
        torch._foreach_copy_(targets, sources, non_blocking=True)  # one call, so that the GIL is not taken for each
        if adapter.scales:
            torch._foreach_mul_([part for part, _ in scaled], [scale for _, scale in scaled])

    def _pair_vectors(
        self, slot: int, site: SiteId, found: SiteVectors, targets: list[Tensor], sources: list[Tensor]
    ) -> int:
        """Adds what of an adapter's vectors goes where; gives their flags."""
        vectors, flags = self._sites[site].vectors, 0
        assert vectors is not None, "slots have vectors at every site"
        if any(scale is not None for scale in found.inputs):
            flags |= HAS_INPUT
            neutral = torch.ones(vectors.inputs.shape[2])
            for target in range(vectors.inputs.shape[1]):
                scale = found.input_of(target)
                targets.append(vectors.inputs[slot, target])
                sources.append(neutral if scale is None else scale)
        if found.output is not None:
            flags |= HAS_OUTPUT
            targets.append(vectors.outputs[slot])
            sources.append(found.output)
        if found.bias is not None:
            flags |= HAS_BIAS
            targets.append(vectors.biases[slot])
            sources.append(found.bias)
        return flags
