"""Hands out runs of rank units, the lowest that fit, so that tables stay small."""


class RankUnits:
    """Which units of the low-rank tables are taken. Not thread-safe."""

    def __init__(self) -> None:
        self._taken: list[bool] = []

    @property
    def end(self) -> int:
        """One past the highest unit that was ever taken: what the tables must hold."""
        return len(self._taken)

    @property
    def num_taken(self) -> int:
        return sum(self._taken)

    def take(self, count: int) -> int:
        """Takes `count` consecutive units and returns the first."""
        start, free = 0, 0
        for unit, taken in enumerate(self._taken):
            free = 0 if taken else free + 1
            if free == count:
                start = unit + 1 - count
                break
        else:
            start = len(self._taken) - free
        self._taken.extend([False] * (start + count - len(self._taken)))
        self._taken[start : start + count] = [True] * count
        return start

    def take_scattered(self, count: int, *, limit: int) -> list[int]:
        """Takes any `count` units below `limit`, the lowest that are free. AssertionError if there are too few."""
        free = [unit for unit, taken in enumerate(self._taken) if not taken][:count]
        free += range(len(self._taken), len(self._taken) + count - len(free))
        if free and free[-1] >= limit:
            raise AssertionError(f"{count} units are wanted, {self.num_taken} of {limit} are taken")
        self._taken.extend([False] * (max(free, default=-1) + 1 - len(self._taken)))
        for unit in free:
            self._taken[unit] = True
        return free

    def give_back(self, start: int, count: int) -> None:
        if not all(self._taken[start : start + count]):
            raise AssertionError(f"units {start}:{start + count} are not all taken")
        self._taken[start : start + count] = [False] * count
