"""What lies between a kind's checks and its lowering: the tensors that it claims, and the plan that it makes of them.

Inspecting an adapter makes its plan; lowering it makes the same plan and carries it out, so what was validated is what
is served.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.peft_config import Config
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.formats.target_modules import targets_of
from hotshoe.registry.validation import Pause, TensorEntry, go_on

if TYPE_CHECKING:
    from torch import Tensor

MODULE_PREFIX = "base_model.model."  # before a module's name in PEFT's files
_IN_MODEL = re.compile(r"(\.lora_\w+)\.default((?:\.\w+)?)$", re.ASCII)
_EMBEDDINGS_AND_HEAD = ("embed_tokens", "lm_head")


class Read(Protocol):
    """Reads the tensors that a plan has claimed."""

    def __call__(self, entry: TensorEntry, *, scale: float = 1.0) -> "Tensor":
        """Its values times scale, as float32 on the CPU; those of integers as int64.

        Scaling here costs next to nothing, and takes no part of torch's thread pool from the engine.
        """


class Reader(Read, Protocol):
    """Also leaves tensors of floats as they are, for those who only hand them on."""

    def matrices(self, scales: Mapping[TensorEntry, float]) -> "Mapping[TensorEntry, Tensor | StoredMatrix]":
        """The values of several tensors, each times its scale, read together; of 16 bits as the file has them."""


class Plan(Protocol):
    """A checked adapter of one kind, ready to be lowered."""

    @property
    def rank(self) -> int:
        """The largest rank of any linear, 0 if it has no low-rank part."""

    @property
    def linears(self) -> Collection[LinearId]:
        """The decoder linears that it changes, in base order."""

    @property
    def virtual_tokens(self) -> int:
        """How many positions it puts before the prompt."""

    def lower(self, read: Reader, base: BaseWeights) -> LoweredAdapter:
        """The canonical form. Reads every tensor that was claimed once."""


@dataclass(frozen=True, slots=True)
class TaskPlans:
    """What an adapter is for each of its tasks, of which a request names one.

    All are of the same tensors, and agree in all that a plan says but in what it is lowered to.
    """

    count: int  # 0: it has no tasks
    of: Callable[[int], Plan]  # below the count; 0 where it has none


class Tensors:
    """The tensors of a file that no one has claimed yet. Each is claimed exactly once, or the adapter is refused."""

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        base: BaseShape,
        pause: Pause = go_on,
        *,
        check_integers: Callable[[TensorEntry, Sequence[int]], object],
    ) -> None:
        """`pause` is called at each tensor, so that the caller may spread the work over time.

        `check_integers` raises InvalidAdapter unless a tensor's values are from 0 to below a bound, or its row's.
        """
        self._check_integers = check_integers
        self._entries = {_saved_name(name): entry for name, entry in entries.items()}
        if len(self._entries) < len(entries):
            twice = next(name for name, entry in entries.items() if self._entries[_saved_name(name)] is not entry)
            raise InvalidAdapter(twice, f"expected it once, found {_saved_name(twice)} too")
        self._base = base
        self._pause = pause
        self._modules = {shape.module for shape in base.linears.values()}

    def require_known_modules(self) -> None:
        """Refuses a tensor that is of no decoder linear of the base, as `base_model.model.<module>.<…>` names it."""
        for name in self._entries:
            self._pause()
            if not self._is_of_linear(name):
                self._refuse_unknown(name)

    def take(self, name: str, *, reason: str, may_be_empty: bool = False) -> TensorEntry:
        """Claims that tensor; InvalidAdapter if it is missing, with the reason why it was expected."""
        entry = self._pop(name, reason, may_be_empty=may_be_empty)
        if entry.is_integer:
            raise InvalidAdapter(name, f"expected a tensor of floats, found {entry.dtype}")
        return entry

    def take_integers_of(
        self, linear: LinearId, suffix: str, sizes: Sequence[int | None], *, below: Sequence[int], reason: str
    ) -> TensorEntry:
        """Claims a decoder linear's tensor of integers, from 0 to below the one bound or each row's own."""
        entry = self._pop(f"{MODULE_PREFIX}{self._base.linears[linear].module}.{suffix}", reason)
        if not entry.is_integer:
            raise InvalidAdapter(entry.name, f"expected a tensor of integers, found {entry.dtype}")
        require_shape(entry, sizes, of=f"{linear} of {self._base.name}")
        self._check_integers(entry, below)
        return entry

    def take_of(self, linear: LinearId, suffix: str, *, reason: str, may_be_empty: bool = False) -> TensorEntry:
        """Claims the tensor of that suffix of a decoder linear."""
        name = f"{MODULE_PREFIX}{self._base.linears[linear].module}.{suffix}"
        return self.take(name, reason=reason, may_be_empty=may_be_empty)

    def has_of(self, linear: LinearId, suffix: str) -> bool:
        """Whether the tensor of that suffix of a decoder linear is there, and not claimed yet."""
        return f"{MODULE_PREFIX}{self._base.linears[linear].module}.{suffix}" in self._entries

    def has(self, name: str) -> bool:
        """Whether that tensor is there, and not claimed yet."""
        return name in self._entries

    def _pop(self, name: str, reason: str, *, may_be_empty: bool = False) -> TensorEntry:
        self._pause()
        entry = self._entries.pop(name, None)
        if entry is None:
            raise InvalidAdapter(name, f"missing: {reason}")
        if entry.is_empty and not may_be_empty:
            raise InvalidAdapter(name, f"expected a shape of positive sizes, found {list(entry.shape)}")
        return entry

    def close(self) -> None:
        """Raises InvalidAdapter for a tensor that was not claimed."""
        for name in self._entries:
            raise InvalidAdapter(
                name, "surplus: by its config this adapter has no such tensor, so it would have no effect"
            )

    def _is_of_linear(self, name: str) -> bool:
        if not name.startswith(MODULE_PREFIX):
            return False
        module = name.removeprefix(MODULE_PREFIX)
        while module := module.rpartition(".")[0]:
            if module in self._modules:
                return True
        return False

    def _refuse_unknown(self, name: str) -> None:
        if not name.startswith(MODULE_PREFIX):
            raise InvalidAdapter(name, f"expected a tensor name that starts with {MODULE_PREFIX}")
        if not set(_EMBEDDINGS_AND_HEAD).isdisjoint(name.split(".")):
            raise InvalidAdapter(name, "is of the embeddings or of lm_head, which by its config it does not adapt")
        raise IncompatibleAdapter(
            name,
            f"{self._base.name} has no such module; it has {self._base.num_layers} layers of {targets_of(self._base)}",
        )


def _saved_name(name: str) -> str:
    """The name by which PEFT saves a tensor of LORA's layers, from that or the one that it has in a model.

    A file that was written from a model's own state has the latter, with the adapter's name, and PEFT loads both.
    """
    if ".default" in name:  # which hardly any is
        name = _IN_MODEL.sub(r"\1\2", name)
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name


def require_shape(entry: TensorEntry, expected: Sequence[int | None], *, of: str) -> None:
    """Raises IncompatibleAdapter, with both shapes and what the expected is `of`, unless they agree; None is any."""
    fits = len(entry.shape) == len(expected) and all(
        size is None or size == found for size, found in zip(expected, entry.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise IncompatibleAdapter(entry.name, f"found shape {list(entry.shape)}, expected [{sizes}] for {of}")


Format = Callable[[Config, Tensors, BaseShape], Plan | TaskPlans]  # takes fields and tensors; raises InvalidAdapter
