"""VERA: y = W x + b + diag(λb) B diag(λd) A x, with A and B shared by all linears, each of which takes their corner.

PVERA has a second half of λd and of A's rows, a variance that training samples from: what is served is the mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NULL,
    NUMBER,
    OFF,
    SHARE,
    Config,
    Rule,
    either,
    one_of,
    require_saved,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "d_initial": NUMBER,
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_weights": FLAG,
    "projection_prng_key": INTEGER,  # A and B are in the file
    "vera_dropout": SHARE,
}
_PVERA_REST: Mapping[str, Rule[object]] = {
    **_REST,
    "generator_seed": either(INTEGER, NULL),  # of the samples
    "pvera_dropout": SHARE,
    "sample_at_inference": OFF,
}


@dataclass(frozen=True, slots=True)
class VeraPlan:
    """Two shared matrices, and two vectors for each linear."""

    kind: str
    a: TensorEntry  # [rank, at least every in_features]; of PVERA rank more rows, as λd has
    b: TensorEntry  # [at least every out_features, rank]
    vectors: Mapping[LinearId, tuple[TensorEntry, TensorEntry]]  # λd [rank], λb [out_features]
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return self.b.shape[1]

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.vectors)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        a, b = read(self.a)[: self.rank], read(self.b)
        linears = {}
        for linear, (of_ranks, of_outputs) in self.vectors.items():
            shape = base.shape.linears[linear]
            linears[linear] = LoweredLinear(
                a=(a[:, : shape.in_features] * read(of_ranks)[: self.rank, None]).contiguous(),
                b=(b[: shape.out_features] * read(of_outputs)[:, None]).contiguous(),
            )
        return LoweredAdapter(self.kind, linears)


def plan_vera(config: Config, tensors: Tensors, base: BaseShape) -> VeraPlan:
    """The plan of a VERA adapter; see `Format`."""
    return _plan("VERA", _REST, config, tensors, base, halves=1)


def plan_pvera(config: Config, tensors: Tensors, base: BaseShape) -> VeraPlan:
    """The plan of a PVERA adapter; see `Format`."""
    return _plan("PVERA", _PVERA_REST, config, tensors, base, halves=2)


def _plan(
    kind: str, rest: Mapping[str, Rule[object]], config: Config, tensors: Tensors, base: BaseShape, *, halves: int
) -> VeraPlan:
    prefix = kind.lower()
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=256)
    require_saved(config, "save_projection")
    config.close(kind, rest)

    shapes = [base.linears[linear] for linear in targets]
    a, b = (tensors.take(f"base_model.{prefix}_{x}", reason="save_projection is true") for x in "AB")
    tensors.require_known_modules()
    _require_at_least(a, (halves * rank, max(shape.in_features for shape in shapes)), exact=0)
    _require_at_least(b, (max(shape.out_features for shape in shapes), rank), exact=1)
    vectors = {}
    for linear, shape in zip(targets, shapes, strict=True):
        of_ranks, of_outputs = (
            tensors.take_of(linear, f"{prefix}_lambda_{x}", reason="target_modules selects its module") for x in "db"
        )
        require_shape(of_ranks, (halves * rank,), of=f"r of {linear}")
        require_shape(of_outputs, (shape.out_features,), of=f"{shape.module} of {base.name}")
        vectors[linear] = of_ranks, of_outputs
    return VeraPlan(kind, a, b, vectors)


def _require_at_least(entry: TensorEntry, sizes: tuple[int, int], *, exact: int) -> None:
    """Both sizes or more; that of the dimension `exact` and no more."""
    fits = len(entry.shape) == 2 and all(found >= size for found, size in zip(entry.shape, sizes, strict=True))
    if not fits or entry.shape[exact] != sizes[exact]:
        raise InvalidAdapter(
            entry.name, f"found shape {list(entry.shape)}, expected at least {list(sizes)}, with rank r"
        )
