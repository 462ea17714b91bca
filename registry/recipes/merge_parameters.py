"""What a merge is asked for: a method's parameters as text, checked and made numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.recipes.merge_subject import Subject

# By method: how many parents it takes, and which parameters.
_SPARSE = ("rank", "density", "normalize", "seed")
METHODS: Mapping[str, tuple[int | None, tuple[str, ...]]] = {
    "breadcrumbs": (None, (*_SPARSE, "gamma")),
    "cat": (None, ("rows",)),
    "dare_linear": (None, (*_SPARSE, "rescale")),
    "dare_ties": (None, (*_SPARSE, "rescale")),
    "della": (None, (*_SPARSE, "epsilon")),
    "karcher": (None, ("rank",)),
    "linear": (None, ("rank", "normalize", "space", "rows")),
    "model_stock": (None, ("rank",)),
    "nuslerp": (2, ("rank", "row_wise")),
    "slerp": (2, ("rank", "t", "space")),
    "svd": (None, ("rank", "normalize", "rows")),
    "ties": (None, _SPARSE),
}
# The methods of a subject, and which of their parameters mean something there.
_SUMS: Mapping[str, tuple[str, ...]] = {"cat": (), "linear": ("rank", "normalize"), "svd": ("rank", "normalize")}
_OF_SUBJECT: Mapping[Subject, Mapping[str, tuple[str, ...]]] = {
    Subject.UPDATES: {**{method: names for method, (_, names) in METHODS.items()}, **_SUMS},
    Subject.SCALES: {"linear": ("normalize", "space")},
    Subject.SCALED_UPDATES: _SUMS,
    Subject.PARTS: {method: (*names, "rows") for method, names in _SUMS.items()},
    Subject.FULL_UPDATES: {"svd": (*_SUMS["svd"], "rows")},
    Subject.PREFIXES: {"cat": ()},
    Subject.PROMPTS: {"cat": ()},
    Subject.BOTTLENECKS: {"cat": (), "linear": ("normalize",)},
}
_NORMALIZED = ("ties", "della")  # unless told otherwise, as in mergekit
_UNWEIGHTED = ("model_stock", "slerp")
_WHOLE = (Subject.PREFIXES, Subject.PROMPTS)  # there, or not there: nothing weighs them
_HINTS = {Subject.FULL_UPDATES: "; a request can stack them as they are"}
_CHOICES = {
    **{(method, "rows"): ("distinct", "linear") for method in _SUMS},
    ("linear", "space"): ("delta", "geometric"),
    ("slerp", "space"): ("delta", "weights"),
    ("dare_linear", "rescale"): ("inverse", "l1"),
    ("dare_ties", "rescale"): ("inverse", "l1"),
}


@dataclass(frozen=True, slots=True)
class MergeParameters:
    """A method and its numbers.

    Attributes:
        rank: what every linear is cut to; 0: nothing is cut, or to the sum of the parents' ranks where an update that
            is made number by number has no rank of its own.
        t: of slerp, 0 is the first parent.
        space: of slerp, what the circle is between; of linear, how scales are merged, as `scale_merging` has it.
        density: the share of an update's numbers that is kept.
        gamma: of breadcrumbs, the share of the largest that is dropped.
        epsilon: of della, how far the chance to be kept is from `density` at the ends.
        rows: what becomes of tokens that have different rows in two parents, as `replacements` has it.
        rescale: of dare: "inverse", by 1 / density, or "l1", to the sum of magnitudes that was there.
    """

    method: str
    rank: int = 0
    normalize: bool = False
    t: float = 0.5
    space: str = "delta"
    row_wise: bool = False
    density: float = 0.5
    gamma: float = 0.01
    epsilon: float = 0.15
    rescale: str = "inverse"
    rows: str = "distinct"
    seed: int = 0

    @classmethod
    def parse(cls, method: str, parameters: Mapping[str, str]) -> "MergeParameters":
        """Raises InvalidAdapter, with the field's name and what was expected."""
        if method not in METHODS:
            raise InvalidAdapter("method", f"expected {' or '.join(METHODS)}, found {method!r}")
        known = METHODS[method][1]
        values: dict[str, object] = {"normalize": method in _NORMALIZED}
        for name, text in parameters.items():
            if name not in known:
                raise InvalidAdapter(f"parameters.{name}", f"{method} takes {', '.join(known) or 'no parameters'}")
            values[name] = _parsed(method, name, text)
        if method == "svd" and not values.get("rank"):
            raise InvalidAdapter("parameters.rank", "expected the rank to which svd cuts, 1 or more")
        return cls(method, **values)  # type: ignore[arg-type]

    def check_parents(self, weights: list[float]) -> None:
        """Raises InvalidAdapter unless the method takes so many parents, with such weights."""
        expected = METHODS[self.method][0]
        if len(weights) < 2 or (expected is not None and len(weights) != expected):
            raise InvalidAdapter("sources", f"{self.method} takes {expected or 'two or more'}, found {len(weights)}")
        if not all(map(math.isfinite, weights)):
            raise InvalidAdapter("sources.weight", "expected finite numbers")
        if self.method in _UNWEIGHTED and any(weight != 1 for weight in weights):
            raise InvalidAdapter("sources.weight", f"{self.method} takes no weights, found {weights}")
        total = sum(weights)
        if (self.normalize or self.method in ("nuslerp", "karcher")) and not total > 0:
            raise InvalidAdapter("sources.weight", f"expected a sum above 0 for {self.method}, found {total:g}")

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The weights, or with `normalize` what each is of their sum."""
        total = sum(weights) if self.normalize else 1.0
        return [weight / total for weight in weights]

    def choose(self, subjects: Sequence[Subject], weights: Sequence[float]) -> Subject:
        """The first of these that the method merges.

        Raises InvalidAdapter if there is none, or if the method does not take there what it was given.
        """
        subject = next((one for one in subjects if self.method in _OF_SUBJECT[one]), subjects[0])
        methods = _OF_SUBJECT[subject]
        if self.method not in methods:
            expected = f"expected {' or '.join(methods)} for {subject}, found {self.method!r}"
            raise InvalidAdapter("method", expected + _HINTS.get(subject, ""))
        usual = MergeParameters(self.method)
        for name in METHODS[self.method][1]:
            found, expected = getattr(self, name), getattr(usual, name)
            if name not in methods[self.method] and found != expected:
                raise InvalidAdapter(f"parameters.{name}", f"expected {expected} for {subject}, found {found}")
        if subject in _WHOLE and any(weight != 1 for weight in weights):
            raise InvalidAdapter("sources.weight", f"expected 1 for {subject}, found {list(weights)}")
        return subject

    def recipe(self, subject: Subject) -> dict[str, object]:
        """What the manifest says of it: every parameter of the method for that subject, given or not."""
        names = sorted(_OF_SUBJECT[subject][self.method])
        return {"op": "merge", "method": self.method, **{name: getattr(self, name) for name in names}}


def _parsed(method: str, name: str, text: str) -> object:
    field = f"parameters.{name}"
    if choices := _CHOICES.get((method, name)):
        if text not in choices:
            raise InvalidAdapter(field, f"expected {' or '.join(choices)}, found {text!r}")
        return text
    if name in ("normalize", "row_wise"):
        if text not in ("true", "false"):
            raise InvalidAdapter(field, f"expected true or false, found {text!r}")
        return text == "true"
    if name in ("rank", "seed"):
        if not (text.isascii() and text.isdigit() and int(text) < 1 << 31):
            raise InvalidAdapter(field, f"expected a whole number of at least 0, found {text!r}")
        return int(text)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    low = 0.0 if name in ("t", "gamma", "epsilon") else 1e-6
    if not low <= number <= 1.0:
        raise InvalidAdapter(field, f"expected a number from {low:g} to 1, found {text!r}")
    return number
