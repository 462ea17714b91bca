"""OFT, BOFT, ROAD: W behind a rotation of blocks of its inputs, or before one of pairs of its outputs.

OFT turns each block of inputs by the Cayley transform of a skew matrix, exact or as the first terms of its Neumann
series; constrained (coft), a skew matrix that is longer than a bound is shortened to it. BOFT does the same, exactly,
and scales the outputs; of several butterfly factors, each rotates blocks of half blocks that lie further apart, and
their product rotates larger blocks. ROAD turns pairs of outputs, the bias too, and scales them:
(u, v) → (c₁ u − s₁ v, c₂ v + s₂ u).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear, OutputSwap
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    SHARE,
    Config,
    Rule,
    one_of,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.strict_json import shown
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
_OFT_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "init_weights": FLAG,
    "fan_in_fan_out": FLAG,  # how W is stored
    "module_dropout": SHARE,
    "r": INTEGER,  # the tensor's shape says it
}
_BOFT_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "init_weights": FLAG,
    "fan_in_fan_out": FLAG,
    "boft_dropout": SHARE,
}


@dataclass(frozen=True, slots=True)
class _OftPart:
    upper: TensorEntry  # [blocks, or 1 that all share; numbers above the diagonal]
    blocks: int
    size: int
    neumann_terms: int  # 0: the transform itself
    bound: float | None = None  # of a skew matrix's Frobenius norm; None is none
    rank: int = 0

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        upper = read(self.upper).double()
        skew = torch.zeros(upper.shape[0], self.size, self.size, dtype=torch.float64)
        rows, columns = torch.triu_indices(self.size, self.size, 1)
        skew[:, rows, columns] = upper
        skew = skew - skew.mT
        if self.bound is not None:
            skew = skew * (self.bound / skew.norm(dim=(1, 2), keepdim=True)).nan_to_num(1.0).clamp(max=1.0)
        turned = _neumann(skew, self.neumann_terms) if self.neumann_terms else _cayley(skew)
        return LoweredLinear(input_rotation=turned.float().expand(self.blocks, -1, -1).contiguous())


def _cayley(skew: "Tensor") -> "Tensor":
    """(I − Q) (I + Q)⁻¹ of each matrix."""
    import torch

    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    turned: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
    return turned


def _neumann(skew: "Tensor", terms: int) -> "Tensor":
    """I + 2 Q + 2 Q² + …, as PEFT cuts it: the last power once, and three powers at least of three terms or more."""
    import torch

    turned = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    if terms == 1:
        return turned
    if terms == 2:
        return turned + 2 * skew
    power = skew
    for _ in range(1, max(terms - 1, 3)):
        turned = turned + 2 * power
        power = power @ skew
    return turned + power


def plan_oft(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of an OFT adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    is_shared = config.take("block_share", FLAG, default=False)
    is_series = config.take("use_cayley_neumann", FLAG, default=True)
    terms = config.take("num_cayley_neumann_terms", COUNT, default=5)
    wanted = config.require("oft_block_size", INTEGER)  # what older formats of OFT lack
    is_bounded = config.take("coft", FLAG, default=False)
    eps = config.take("eps", NUMBER, default=6e-5)
    if is_series:
        _require_series_of_today(config.peek("peft_version"))
    config.close("OFT", _OFT_REST)
    if not terms <= 64:
        raise InvalidAdapter("num_cayley_neumann_terms", f"expected at most 64, found {terms}")
    if is_bounded and eps < 0:
        raise InvalidAdapter("eps", f"expected a number of at least 0 with coft, found {eps:g}")

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        upper = tensors.take_of(linear, "oft_R.weight", reason="target_modules selects its module")
        require_shape(upper, (None, None), of=f"{shape.module} of {base.name}")
        size = _size_of(upper, wanted, shape.in_features, is_shared=is_shared)
        # PEFT shortens them in each forward pass, anew and in place: once it is done there is no more to shorten.
        bound = eps / upper.shape[0] ** 0.5 if is_bounded else None
        parts[linear] = _OftPart(upper, shape.in_features // size, size, terms if is_series else 0, bound)
    return LinearsPlan("OFT", parts)


def _require_series_of_today(peft_version: object) -> None:
    """Before 0.18 PEFT summed the series in another way, so adapters of then mean something else."""
    found = _VERSION.match(peft_version) if isinstance(peft_version, str) else None
    if found is None or (int(found[1]), int(found[2])) < (0, 18):
        raise InvalidAdapter(
            "peft_version", f"expected 0.18 or later with use_cayley_neumann, found {shown(peft_version)}"
        )


def _size_of(upper: TensorEntry, wanted: int, in_features: int, *, is_shared: bool) -> int:
    """The size of blocks with so many numbers above their diagonals; they must make up the inputs."""
    numbers = upper.shape[1]
    size = int((1 + (1 + 8 * numbers) ** 0.5) / 2)
    blocks = 1 if is_shared else upper.shape[0]
    if size * (size - 1) // 2 != numbers or upper.shape[0] != blocks or in_features % size:
        raise IncompatibleAdapter(upper.name, f"found shape {list(upper.shape)}: no blocks of {in_features} inputs")
    if (not is_shared and blocks * size != in_features) or (wanted and in_features % wanted == 0 and size != wanted):
        raise IncompatibleAdapter(upper.name, f"found blocks of {size}, expected {wanted or in_features // blocks}")
    return size


@dataclass(frozen=True, slots=True)
class _BoftPart:
    matrices: TensorEntry  # [factors, blocks, size, size]
    scale: TensorEntry  # [out_features, 1]
    rank: int = 0

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        matrices = read(self.matrices).double()
        turned = _butterflies(_cayley((matrices - matrices.mT) / 2))
        return LoweredLinear(
            input_rotation=turned.float().contiguous(), output_scale=read(self.scale)[:, 0].contiguous()
        )


def _butterflies(factors: "Tensor") -> "Tensor":
    """The product of rotations [factors, blocks, size, size], the last first; its blocks are 2^(factors − 1) as large.

    Factor i acts on blocks of two half blocks each, which lie 2^i half blocks apart.
    """
    import torch

    count, blocks, size, _ = factors.shape
    if count == 1:
        return factors[0]
    merged = 1 << (count - 1)
    product = torch.eye(size * merged, dtype=factors.dtype).expand(blocks // merged, -1, -1)
    for index, factor in enumerate(factors.reshape(count, -1, merged, size, size)):
        whole = torch.zeros_like(product)
        for place in range(merged):
            columns = slice(place * size, (place + 1) * size)
            whole[:, columns, columns] = factor[:, place]
        halves = torch.arange(2 * merged).reshape(-1, 1 << index, 2).transpose(1, 2).flatten()
        order = (halves[:, None] * (size // 2) + torch.arange(size // 2)).flatten()
        product = whole[:, order][:, :, order] @ product
    return product


def plan_boft(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a BOFT adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    factors = config.take("boft_n_butterfly_factor", COUNT, default=1)
    size = config.take("boft_block_size", INTEGER, default=4)
    number = config.take("boft_block_num", INTEGER, default=0)
    config.close("BOFT", _BOFT_REST)
    if (size == 0) == (number == 0):
        raise InvalidAdapter("boft_block_num", "expected it or boft_block_size, and the other one 0")

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        matrices, scale = (
            tensors.take_of(linear, f"boft_{name}", reason="target_modules selects its module") for name in "Rs"
        )
        of = f"{shape.module} of {base.name}"
        if shape.in_features % (size or number):
            field = "boft_block_size" if size else "boft_block_num"
            raise IncompatibleAdapter(field, f"{size or number} does not divide {shape.in_features}, of {shape.module}")
        width = size or shape.in_features // number
        require_shape(matrices, (None, shape.in_features // width, width, width), of=of)
        require_shape(scale, (shape.out_features, 1), of=of)
        _check_factors(matrices, factors)
        parts[linear] = _BoftPart(matrices, scale)
    return LinearsPlan("BOFT", parts)


def _check_factors(matrices: TensorEntry, wanted: int) -> None:
    """One, to which PEFT falls back where it cannot compile its extension, or as many as the config says."""
    count, blocks, size, _ = matrices.shape
    if count not in (1, wanted):
        raise InvalidAdapter(matrices.name, f"found {count} factors, expected {wanted} by boft_n_butterfly_factor")
    if count > 1 and (size % 2 or blocks % (1 << (count - 1))):
        raise InvalidAdapter(
            matrices.name, f"found {blocks} blocks of {size}, expected even ones and a multiple of {1 << (count - 1)}"
        )


_VARIANTS = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}  # numbers for each output


@dataclass(frozen=True, slots=True)
class _RoadPart:
    theta: TensorEntry
    alpha: TensorEntry
    variant: str
    group: int
    rank: int = 0

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        theta, alpha = read(self.theta).double(), read(self.alpha).double()
        if self.variant == "road_4":
            (cos_theta, sin_theta), (cos_alpha, sin_alpha) = (
                values.reshape(-1, 2, self.group).transpose(0, 1).reshape(2, -1) for values in (theta, alpha)
            )
        else:
            if self.variant == "road_1":
                theta, alpha = (
                    values.reshape(-1, self.group // 2).repeat_interleave(2, dim=0).flatten()
                    for values in (theta, alpha)
                )
            cos_theta, sin_theta, cos_alpha, sin_alpha = theta, theta, alpha, alpha
        scale, gains = cos_alpha * cos_theta.cos(), sin_alpha * sin_theta.sin()
        halves = torch.arange(len(scale)).reshape(-1, 2, self.group // 2)
        partners = halves.flip(1).flatten()
        gains = (gains.reshape(-1, 2, self.group // 2) * torch.tensor([[-1.0], [1.0]])).flatten()
        bias = base.bias(linear)
        bias_delta = None
        if bias is not None:
            bias_delta = ((scale - 1) * bias + gains * bias[partners]).float()
        swap = OutputSwap(partners, gains.float())
        return LoweredLinear(output_scale=scale.float(), bias_delta=bias_delta, output_swap=swap)


def plan_road(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a ROAD adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=False)
    variant = config.take("variant", one_of(*_VARIANTS), default="road_1")
    group = config.take("group_size", COUNT, default=64)
    config.close("ROAD", {"init_weights": FLAG})
    if group % 2:
        raise InvalidAdapter("group_size", f"expected an even number, found {group}")

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        theta, alpha = (
            tensors.take_of(linear, f"road_{name}", reason="target_modules selects its module")
            for name in ("theta", "alpha")
        )
        if shape.out_features % group:
            raise IncompatibleAdapter("group_size", f"{group} does not divide {shape.out_features}, of {shape.module}")
        for entry in (theta, alpha):
            require_shape(entry, (int(_VARIANTS[variant] * shape.out_features),), of=f"{shape.module} of {base.name}")
        parts[linear] = _RoadPart(theta, alpha, variant, group)
    return LinearsPlan("ROAD", parts)
