"""Who may use the adapter slots: those whose adapters are on the device pass the others, up to a bound."""

from collections.abc import Iterable

from hotshoe.server.engine.sequence import Sequence


class SlotLine:
    """Asked in each step about the sequences that wait, in the queue's order.

    What runs and what starts claims no more distinct adapters than there are slots; claims end when nobody runs with
    the adapters, or waits for no others. Who does not fit stands in line for a slot. Those behind the first in line
    may pass it with adapters that are claimed anyway, so that the batch stays full and an adapter is loaded once for
    many. When `max_overtakes` have passed it, only what runs keeps its claim, and the adapters that are done soonest
    take nobody new from behind it, until it has its slot.
    """

    def __init__(self, *, num_slots: int, max_overtakes: int) -> None:
        self._num_slots = num_slots
        self._max_overtakes = max_overtakes
        self._claimed: set[str] = set()
        self._asked: set[str] = set()  # what those want who were admitted in this step
        self._steps_left: dict[str, int] = {}  # of each adapter in use
        self._first: Sequence | None = None
        self._full = False
        self._draining: frozenset[str] | None = None  # None: the first in line need not be helped

    def begin_step(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Looks at who runs and who waits."""
        self._first, self._full, self._draining = None, False, None
        self._asked.clear()
        self._steps_left = _steps_left(running)
        claimed, self._claimed = self._claimed, set(self._steps_left)
        if not claimed <= self._claimed:
            for sequence in waiting:
                if claimed.issuperset(sequence.adapter_keys):  # not for a part of a stack: nobody could start with it
                    self._claimed.update(sequence.adapter_keys)

    def admits(self, sequence: Sequence) -> bool:
        """Whether a sequence may start now, as far as others are concerned."""
        if not sequence.adapter_keys:
            return True
        if self._draining is not None:
            return all(d in self._steps_left and d not in self._draining for d in sequence.adapter_keys)
        if not self._claim(sequence):
            return False
        self._asked.update(sequence.adapter_keys)
        return True

    def note_in_line(self, sequence: Sequence) -> None:
        """It waits for a slot, or for room on the device: what is there is in use, pinned or kept for others."""
        if self._first is None:
            self._first = sequence
            if sequence.overtaken >= self._max_overtakes:
                self._help_first()

    def note_start(self, sequence: Sequence) -> None:
        """It was admitted, and started."""
        if not sequence.adapter_keys:
            return
        for key, steps in _steps_left([sequence]).items():
            self._steps_left[key] = max(steps, self._steps_left.get(key, 0))
        if self._first is not None:
            self._first.overtaken += 1
            if self._first.overtaken == self._max_overtakes:  # not one more in this step either
                self._help_first()

    def _claim(self, sequence: Sequence) -> bool:
        """Claims what a sequence wants; False if that is more than there is."""
        if self._claimed.issuperset(sequence.adapter_keys):
            return True
        if not self._full and self._missing(sequence) > 0:
            self.note_in_line(sequence)
            self._full = self._missing(sequence) > 0
            if not self._full and self._first is sequence:  # it was helped enough
                self._first = self._draining = None
        if self._full:
            return False
        self._claimed.update(sequence.adapter_keys)
        return True

    def _help_first(self) -> None:
        """Ends the claims of what does not run, and has adapters drained if that makes too little room."""
        assert self._first is not None
        self._claimed = self._asked.union(self._steps_left)
        others = sorted(set(self._steps_left).difference(self._first.adapter_keys), key=lambda d: self._steps_left[d])
        self._draining = frozenset(others[: max(1, self._missing(self._first))])

    def _missing(self, sequence: Sequence) -> int:
        """How many slots too few there are for what is claimed and what this one wants."""
        return len(self._claimed.union(sequence.adapter_keys)) - self._num_slots


def _steps_left(running: Iterable[Sequence]) -> dict[str, int]:
    """In how many steps, at most, an adapter will not be in use any more."""
    left: dict[str, int] = {}
    for sequence in running:
        for key in sequence.adapter_keys:
            left[key] = max(left.get(key, 0), sequence.max_positions - sequence.computed)
    return left
