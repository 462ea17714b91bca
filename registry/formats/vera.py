"""VERA: y = W x + b + diag(λb) B diag(λd) A x, with A and B shared by all linears, each of which takes their corner."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, SHARE, Config, Rule, one_of
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
_SHARED = "base_model.vera_"


@dataclass(frozen=True, slots=True)
class VeraPlan:
    """Two shared matrices, and two vectors for each linear."""

    a: TensorEntry  # [rank, at least every in_features]
    b: TensorEntry  # [at least every out_features, rank]
    vectors: Mapping[LinearId, tuple[TensorEntry, TensorEntry]]  # λd [rank], λb [out_features]
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.vectors)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        a, b = read(self.a), read(self.b)
        linears = {}
        for linear, (of_ranks, of_outputs) in self.vectors.items():
            shape = base.shape.linears[linear]
            linears[linear] = LoweredLinear(
                a=(a[:, : shape.in_features] * read(of_ranks)[:, None]).contiguous(),
                b=(b[: shape.out_features] * read(of_outputs)[:, None]).contiguous(),
            )
        return LoweredAdapter("VERA", linears)


def plan_vera(config: Config, tensors: Tensors, base: BaseShape) -> VeraPlan:
    """The plan of a VERA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=256)
    if not config.take("save_projection", FLAG, default=True):
        raise InvalidAdapter("save_projection", "expected true: the shared matrices must be in the file")
    config.close("VERA", _REST)

    shapes = [base.linears[linear] for linear in targets]
    a = tensors.take(f"{_SHARED}A", reason="save_projection is true")
    b = tensors.take(f"{_SHARED}B", reason="save_projection is true")
    tensors.require_known_modules()
    _require_at_least(a, (rank, max(shape.in_features for shape in shapes)), exact=0)
    _require_at_least(b, (max(shape.out_features for shape in shapes), rank), exact=1)
    vectors = {}
    for linear, shape in zip(targets, shapes, strict=True):
        of_ranks, of_outputs = (
            tensors.take_of(linear, f"vera_lambda_{x}", reason="target_modules selects its module") for x in "db"
        )
        require_shape(of_ranks, (rank,), of=f"r of {linear}")
        require_shape(of_outputs, (shape.out_features,), of=f"{shape.module} of {base.name}")
        vectors[linear] = of_ranks, of_outputs
    return VeraPlan(a, b, vectors)


def _require_at_least(entry: TensorEntry, sizes: tuple[int, int], *, exact: int) -> None:
    """Both sizes or more; that of the dimension `exact` and no more."""
    fits = len(entry.shape) == 2 and all(found >= size for found, size in zip(entry.shape, sizes, strict=True))
    if not fits or entry.shape[exact] != sizes[exact]:
        raise InvalidAdapter(
            entry.name, f"found shape {list(entry.shape)}, expected at least {list(sizes)}, with rank r"
        )
