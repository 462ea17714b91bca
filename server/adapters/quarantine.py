"""Adapters that spoil answers. Bookkeeping, under residency's lock."""

from hotshoe.server.adapters.adapter_key import is_part_of
from hotshoe.server.errors import AdapterUnusable


class Quarantine:
    """By `adapter_key`, and why; whoever asks for one is refused until it is let out."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._reasons

    def put(self, key: str, reason: str) -> None:
        """Refuses an adapter from now on."""
        self._reasons[key] = reason

    def let_out(self, key: str) -> bool:
        """Takes an adapter again, or all the tasks of one; whether there was any of it."""
        parts = [other for other in self._reasons if is_part_of(other, key)]
        for part in parts:
            del self._reasons[part]
        return bool(parts)

    def check(self, key: str) -> None:
        """Raises AdapterUnusable for one that is refused."""
        if reason := self._reasons.get(key):
            raise AdapterUnusable(f"adapter {key}: {reason}; it is refused until it is unloaded")
