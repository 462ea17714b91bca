"""Adapters' names as labels of metrics: only so many, for each is a series that scrapers keep."""

import threading

MAX_ADAPTER_LABELS = 256
OTHER_ADAPTERS = "_other"


class AdapterLabels:
    """Adapter name → label: its own for the first so many names, one shared by the rest. Any thread."""

    def __init__(self, limit: int = MAX_ADAPTER_LABELS) -> None:
        self._limit = limit
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def of(self, name: str) -> str:
        """The label of an adapter, which keeps it."""
        if name in self._names:
            return name
        with self._lock:
            if len(self._names) >= self._limit:
                return OTHER_ADAPTERS
            self._names.add(name)
            return name
