"""The doctor: what an adapter's updates Δ do to the base weights W that they are added to, and a grade.

The screen needs W's singular values only, and never forms Δ. Each singular value of Δ above the threshold θ* of its W
(`Spectrum`) is a predicted intruder dimension, and so is one where Δ's strength, (Σ σⱼ⁶)^(1/6), is above it: many
directions of nearly equal values make an intruder together though each is below θ*. On SmolLM2's weights and random
directions, 24 of rank 1 to 64 and norms from 1 to 40 % for each of 12 linears, whose values fall to a fifth, the screen
is right of 97 updates with intruders and of 165 without, raises a false alarm for 26 and misses none. Over 84 linears,
and for values that fall, are random or are equal, of norms from 5 to 40 %, it is right of 1850 and 1609, wrong of 573,
and misses none; the largest value alone would miss 53.

The exact diagnosis counts them by singular vectors of W + Δ, and is the only one for updates that are not of low rank.
Trained updates lie along W's own directions, where there is less to find: of a demo adapter's 9 linears that the screen
suspects, one has an intruder. Source: https://arxiv.org/abs/2410.21228.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.dense_update import OF_WEIGHT, dense_update, other_parts, parts
from hotshoe.registry.recipes.factors import Factors, singular_values
from hotshoe.registry.recipes.requantized import kept, nf4_share
from hotshoe.registry.recipes.spectrum import LEADING, RESEMBLANCE, Spectrum, leading_vectors, weight_spectrum
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "hotshoe.doctor/1"
SAFE_STRENGTH = 0.8  # of the threshold
USUAL_SCALE = 2.0  # what the paper's adapters are trained with, alpha = 2 r, at every rank
_TOGETHER = 6  # the power at which values count together: the largest at which nothing was missed
_DIGITS = 6  # of a figure in a report: equal adapters have equal reports on every machine

_BY_COUNT = "examined only by --exact"

Requantize = Callable[["Tensor"], "Tensor"]  # a weight → what its NF4 form stands for, both float32


class Grade(StrEnum):
    """How much an adapter is to be feared.

    OK: intruders in fewer than 5 % of the linears, and none near its threshold. BAD: in more than 25 %, or one a linear
    on average, or numbers that are not finite. WARN: between them, or linears whose update is zero. UNKNOWN: there are
    linears, and none could be examined.
    """

    OK = "OK"
    WARN = "WARN"
    BAD = "BAD"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class LinearDiagnosis:
    """One linear. What was not looked at is None; `note` says why, or what is wrong."""

    linear: LinearId
    rank: int
    scale: float | None = None  # alpha / r, where the kind has one
    relative_norm: float | None = None  # ‖Δ‖ / ‖W‖
    relative_largest: float | None = None  # σ₁(Δ) / σ₁(W)
    strength: float | None = None  # (Σ σⱼ(Δ)⁶)^(1/6) / θ*, little more than σ₁ / θ* unless values are nearly equal
    stable_rank: float | None = None  # ‖Δ‖² / σ₁(Δ)²
    predicted: int | None = None  # intruder dimensions, by the screen
    exact: int | None = None  # intruder dimensions, counted
    resemblance: float | None = None  # the least of the leading vectors' to any of W's
    nf4_kept: float | None = None  # share of Δ that W + Δ in NF4 would keep; measured if `exact`, else estimated
    is_finite: bool = True
    is_dead: bool = False  # Δ = 0
    note: str = ""

    @property
    def intruders(self) -> int | None:
        """Counted, or else predicted."""
        return self.predicted if self.exact is None else self.exact


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An adapter's linears, in base order."""

    linears: tuple[LinearDiagnosis, ...]
    is_exact: bool
    task: int | None = None  # of an adapter that has tasks, the worst

    @property
    def examined(self) -> Sequence[LinearDiagnosis]:
        """Those whose intruders are known."""
        return [one for one in self.linears if one.intruders is not None]

    @property
    def graded(self) -> Sequence[LinearDiagnosis]:
        """Those with a low-rank part. A mere scale turns singular vectors too, but nothing is known against that."""
        return [one for one in self.examined if one.rank]

    @property
    def intruders(self) -> int:
        return sum(one.intruders or 0 for one in self.linears)

    @property
    def affected_share(self) -> float:
        """Share of the graded linears that have intruders."""
        graded = self.graded
        return sum(bool(one.intruders) for one in graded) / len(graded) if graded else 0.0

    @property
    def strength(self) -> float:
        """The largest of any linear."""
        return max((one.strength for one in self.linears if one.strength is not None), default=0.0)

    @property
    def grade(self) -> Grade:
        graded = self.graded
        if not all(one.is_finite for one in self.linears):
            return Grade.BAD
        if self.affected_share > 0.25 or (graded and sum(one.intruders or 0 for one in graded) >= len(graded)):
            return Grade.BAD
        if self.linears and not self.examined:
            return Grade.UNKNOWN
        is_dead = any(one.is_dead for one in self.linears)
        return Grade.WARN if self.affected_share >= 0.05 or self.strength >= SAFE_STRENGTH or is_dead else Grade.OK

    @property
    def headline(self) -> str:
        """The grade's reasons, on one line."""
        if not self.linears:
            return "it changes no linear: there is nothing to examine"
        reasons = []
        if examined := self.examined:
            affected = sum(bool(one.intruders) for one in examined)
            word = "counted" if self.is_exact else "predicted"
            reasons.append(f"{self.intruders} intruder dimensions {word} in {affected} of {len(examined)} linears")
        if self.strength:
            reasons.append(f"the strongest at {self.strength:.2f} of its threshold")
        for count, what in (
            (sum(not one.is_finite for one in self.linears), "not finite"),
            (sum(one.is_dead for one in self.linears), "without effect"),
            (len(self.linears) - len(self.examined), "not examined"),
            (len(self.examined) - len(self.graded), "without a low-rank part, which are not graded"),
        ):
            if count:
                reasons.append(f"{count} {what}")
        where = "" if self.task is None else f"task {self.task}, the worst: "
        return where + "; ".join(reasons)

    @property
    def advice(self) -> Sequence[str]:
        """What would help, if anything is needed."""
        advice = []
        if self.strength >= SAFE_STRENGTH:
            weight = SAFE_STRENGTH / self.strength
            advice.append(f"a weight of {weight:.2f} brings every linear to {SAFE_STRENGTH} of its threshold or less")
        if any(one.intruders for one in self.graded):
            advice.append(
                "doctor --mitigate shrinks the intruders; training again at a higher rank, alpha = 2 r, has fewer"
            )
        if not self.is_exact and any(_BY_COUNT in one.note for one in self.linears):
            advice.append("doctor --exact examines what scales or turns weights")
        large = [one.scale for one in self.linears if one.scale is not None and abs(one.scale) > 2 * USUAL_SCALE]
        if large:
            advice.append(f"alpha / r is {max(large, key=abs):g}; {USUAL_SCALE:g} is usual at every rank")
        return advice


def diagnose(
    adapter: LoweredAdapter,
    spectrum_of: Callable[[LinearId], Spectrum],
    *,
    base: BaseWeights | None = None,
    requantize: Requantize | None = None,
    pause: Pause = go_on,
) -> Diagnosis:
    """Examines every linear that an adapter changes.

    Args:
        spectrum_of: of each base weight.
        base: makes the diagnosis exact: decompositions of every weight, where the screen is a matter of milliseconds.
        requantize: measures what NF4 would keep, in an exact diagnosis; else it is estimated.
        pause: called between linears, so that the caller may spread the work over time.
    """
    linears = []
    for linear_id, linear in sorted(adapter.linears.items(), key=lambda item: (item[0].layer, item[0].target)):
        pause()
        spectrum = spectrum_of(linear_id)
        screened = _screen(linear_id, linear, spectrum)
        if base is not None and screened.is_finite and not screened.is_dead and not other_parts(linear):
            if (update := dense_update(linear, weight := base.weight(linear_id))) is not None:
                screened = _count(screened, weight, update, spectrum, requantize)
        linears.append(screened)
    return Diagnosis(tuple(linears), is_exact=base is not None)


def worst(diagnoses: Iterable[Diagnosis]) -> Diagnosis:
    """The first of the worst grade; of that grade, the one with the most intruders, and then the strongest."""
    order = (Grade.OK, Grade.UNKNOWN, Grade.WARN, Grade.BAD)
    return max(diagnoses, key=lambda one: (order.index(one.grade), one.intruders, one.strength))


def report_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain values for JSON; equal diagnoses give equal reports."""
    return {
        "schema": SCHEMA,
        "grade": diagnosis.grade.value,
        "headline": diagnosis.headline,
        "advice": list(diagnosis.advice),
        "exact": diagnosis.is_exact,
        **({} if diagnosis.task is None else {"task": diagnosis.task}),
        "intruders": diagnosis.intruders,
        "affected_share": _rounded(diagnosis.affected_share),
        "strength": _rounded(diagnosis.strength),
        "resemblance_threshold": RESEMBLANCE,
        "leading_vectors": LEADING,
        "linears": [_linear_report(one) for one in diagnosis.linears],
    }


def _linear_report(one: LinearDiagnosis) -> dict[str, Any]:
    figures = {name: _rounded(value) for name, value in asdict(one).items() if name != "linear"}
    return {"layer": one.linear.layer, "target": one.linear.target, **figures}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _screen(linear_id: LinearId, linear: LoweredLinear, spectrum: Spectrum) -> LinearDiagnosis:
    found = LinearDiagnosis(linear_id, linear.rank, linear.scale)
    stored_are_finite = all(matrix.is_finite for matrix in linear.stored())
    if not (stored_are_finite and all(bool(tensor.isfinite().all()) for tensor in linear.tensors())):
        return replace(found, is_finite=False, note="holds numbers that are not finite")
    if others := other_parts(linear):
        return replace(found, note=f"{others}: not an update that is examined")
    acts_on_weight = bool(OF_WEIGHT & parts(linear))
    if (factors := linear.factors) is None:
        if acts_on_weight:
            return replace(found, note=f"scales or turns the weight: {_BY_COUNT}")
        return replace(found, relative_norm=0.0, predicted=0, note="changes the bias only")
    note = f"its low-rank part; what scales or turns the weight is {_BY_COUNT}" if acts_on_weight else ""
    values = singular_values(Factors(*factors))
    largest, norm = float(values[0]), float(values.norm())
    if largest == 0:
        is_dead = not acts_on_weight and linear.bias_delta is None
        note = note or ("has no effect: B A is zero" if is_dead else "changes the bias only")
        return replace(found, is_dead=is_dead, relative_norm=0.0, predicted=0, note=note)
    strength = _ratio(largest * float((values / largest).pow(_TOGETHER).sum()) ** (1 / _TOGETHER), spectrum.threshold)
    return replace(
        found,
        relative_norm=_ratio(norm, spectrum.norm),
        relative_largest=_ratio(largest, spectrum.largest),
        strength=strength,
        stable_rank=(norm / largest) ** 2,
        predicted=min(LEADING, max(int((values > spectrum.threshold).sum()), int(strength > 1))),
        nf4_kept=nf4_share(_ratio(norm, spectrum.norm)),
        note=note,
    )


def _count(
    screened: LinearDiagnosis, weight: "Tensor", update: "Tensor", spectrum: Spectrum, requantize: Requantize | None
) -> LinearDiagnosis:
    leading = leading_vectors(weight, update)
    counted = replace(
        screened,
        exact=int(leading.intruders.sum()),
        resemblance=float(leading.resemblance.min()),
        note="" if _BY_COUNT in screened.note else screened.note,
    )
    if _BY_COUNT in screened.note:  # the screen's figures are not the whole update's
        values = weight_spectrum(update)
        largest, norm = float(values[0]), float(values.norm())
        counted = replace(
            counted,
            relative_norm=_ratio(norm, spectrum.norm),
            relative_largest=_ratio(largest, spectrum.largest),
            stable_rank=(norm / largest) ** 2 if largest else 0.0,
            nf4_kept=nf4_share(_ratio(norm, spectrum.norm)),
            is_dead=largest == 0,
        )
    if requantize is None:
        return counted
    return replace(counted, nf4_kept=kept(weight, update, requantize(weight + update)).share)


def _ratio(value: float, reference: float) -> float:
    """Infinite beside a weight of zero."""
    return value / reference if reference else math.inf
