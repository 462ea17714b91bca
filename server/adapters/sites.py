"""The places in a layer where adapters act: linears that share an input and run as one."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape, LinearId

# site → its targets, in the order in which their outputs lie side by side
SITES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
SITE_INDEX: Mapping[str, int] = {site: index for index, site in enumerate(SITES)}
MAX_TARGETS = max(map(len, SITES.values()))
SITE_OF_TARGET: Mapping[str, tuple[str, int]] = {
    target: (site, index) for site, targets in SITES.items() for index, target in enumerate(targets)
}
SiteId = tuple[int, str]  # layer, site


@dataclass(frozen=True, slots=True)
class SiteShape:
    """A fused linear: its input's width, and the width of each target's output."""

    in_features: int
    widths: tuple[int, ...]

    @property
    def columns(self) -> tuple[slice, ...]:
        """Each target's columns of the output."""
        ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths))]
        return tuple(slice(end - width, end) for end, width in zip(ends, self.widths, strict=True))


def site_shapes(base: BaseShape) -> dict[SiteId, SiteShape]:
    """The shape of every site of a base.

    Raises:
        ValueError: the base lacks a target, or the targets of a site do not share an input.
    """
    shapes = {}
    for layer in range(base.num_layers):
        for site, targets in SITES.items():
            linears = [base.linears.get(LinearId(layer, target)) for target in targets]
            present = [linear for linear in linears if linear is not None]
            if len(present) != len(targets) or len({linear.in_features for linear in present}) != 1:
                raise ValueError(f"layers.{layer}: expected {', '.join(targets)}, all of one input width")
            shapes[layer, site] = SiteShape(present[0].in_features, tuple(linear.out_features for linear in present))
    return shapes
