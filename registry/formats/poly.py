"""POLY: y = W x + b + B A x / r, where a task mixes A and B of several skills, each split of W's inputs by itself.

A = Σ w[split, skill] A[split, skill] over the skills, and B alike, where w are the sigmoids of the task's logits over
their sum. Each task is a low-rank update of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, TaskPlans, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_EPSILON = 1e-12  # that PEFT adds to a sum of weights
_REST: Mapping[str, Rule[object]] = {"poly_type": one_of("poly"), "init_weights": FLAG}


@dataclass(frozen=True, slots=True)
class _Skills:
    """One linear's."""

    a: TensorEntry  # [splits, skills, in_features / splits, rank]
    b: TensorEntry  # [splits, skills, rank, out_features / splits]
    logits: TensorEntry  # [tasks, splits * skills]


@dataclass(frozen=True, slots=True)
class _Part:
    skills: _Skills
    task: int

    @property
    def rank(self) -> int:
        return self.skills.a.shape[3]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        a, b = read(self.skills.a), read(self.skills.b, scale=1 / self.rank)
        weights = read(self.skills.logits)[self.task].reshape(*a.shape[:2], 1, 1).sigmoid()
        weights = weights / (weights.sum(1, keepdim=True) + _EPSILON)
        mixed_a = (weights * a).sum(1).flatten(0, 1)  # [in_features, rank]
        mixed_b = (weights * b).sum(1).transpose(0, 1).flatten(1)  # [rank, out_features]
        return LoweredLinear(a=mixed_a.T.contiguous(), b=mixed_b.T.contiguous(), scale=1 / self.rank)


def plan_poly(config: Config, tensors: Tensors, base: BaseShape) -> TaskPlans:
    """The plans of a POLY adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=False)
    rank = config.take("r", COUNT, default=8)
    tasks = config.take("n_tasks", COUNT, default=1)
    skills = config.take("n_skills", COUNT, default=4)
    splits = config.take("n_splits", COUNT, default=1)
    config.close("POLY", _REST)

    tensors.require_known_modules()
    found = {linear: _take_skills(linear, tensors, base, (splits, skills), rank, tasks) for linear in targets}

    def of(task: int) -> LinearsPlan:
        return LinearsPlan("POLY", {linear: _Part(part, task) for linear, part in found.items()})

    return TaskPlans(tasks, of)


def _take_skills(
    linear: LinearId, tensors: Tensors, base: BaseShape, grid: tuple[int, int], rank: int, tasks: int
) -> _Skills:
    shape = base.linears[linear]
    splits, skills = grid
    if shape.in_features % splits or shape.out_features % splits:
        sizes = f"{shape.in_features} and {shape.out_features}"
        raise IncompatibleAdapter("n_splits", f"{splits} does not divide {sizes}, of {shape.module}")
    expected = {
        "poly_lora_A": (*grid, shape.in_features // splits, rank),
        "poly_lora_B": (*grid, rank, shape.out_features // splits),
        "poly_router.module_logits": (tasks, splits * skills),
    }
    found = []
    for suffix, expected_sizes in expected.items():
        entry = tensors.take_of(linear, suffix, reason="target_modules selects its module")
        require_shape(entry, expected_sizes, of=f"{shape.module} of {base.name}")
        found.append(entry)
    return _Skills(*found)
