"""The places in a layer where adapters act: linears that share an input and run as one.

A family keeps the linears of a site apart, as Llama does, or as one with all their outputs, as Phi-3 does. What a site
computes is the same; but an adapter has a part of its own for each linear, and these are the site's targets.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape

# site → the targets that it may have, in the order in which their outputs lie side by side
SITES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
    "o": (("o_proj",),),
    "gate_up": (("gate_proj", "up_proj"), ("gate_up_proj",)),
    "down": (("down_proj",),),
}
SITE_INDEX: Mapping[str, int] = {site: index for index, site in enumerate(SITES)}
MAX_TARGETS = max(len(targets) for ways in SITES.values() for targets in ways)
SITE_OF_TARGET: Mapping[str, str] = {
    target: site for site, ways in SITES.items() for targets in ways for target in targets
}
SiteId = tuple[int, str]  # layer, site


@dataclass(frozen=True, slots=True)
class SiteShape:
    """A fused linear: its input's width, its targets, and the width of each target's output."""

    in_features: int
    targets: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def columns(self) -> tuple[slice, ...]:
        """Each target's columns of the output."""
        ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths))]
        return tuple(slice(end - width, end) for end, width in zip(ends, self.widths, strict=True))


def site_targets(present: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The targets of each site of a layer that has those linears.

    Raises:
        ValueError: it has all targets of a site in no way, or in several.
    """
    found = {}
    for site, ways in SITES.items():
        whole = [targets for targets in ways if set(targets) <= set(present)]
        if len(whole) != 1:
            raise ValueError(f"{site}: expected {' or '.join(map(', '.join, ways))}")
        found[site] = whole[0]
    return found


def site_shapes(base: BaseShape) -> dict[SiteId, SiteShape]:
    """The shape of every site of a base.

    Raises:
        ValueError: the base lacks a target, or the targets of a site do not share an input.
    """
    shapes = {}
    for layer in range(base.num_layers):
        present = {linear.target: shape for linear, shape in base.linears.items() if linear.layer == layer}
        try:
            of_sites = site_targets(present)
        except ValueError as error:
            raise ValueError(f"layers.{layer}.{error}, all of one input width") from None
        for site, targets in of_sites.items():
            linears = [present[target] for target in targets]
            if len({linear.in_features for linear in linears}) != 1:
                raise ValueError(f"layers.{layer}.{site}: expected {', '.join(targets)}, all of one input width")
            widths = tuple(linear.out_features for linear in linears)
            shapes[layer, site] = SiteShape(linears[0].in_features, targets, widths)
    return shapes
