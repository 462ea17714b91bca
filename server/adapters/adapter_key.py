"""What memory and caches know an adapter by. Each task of an adapter that has tasks is one of its own there.

A key is the digest of the manifest, "sha256:<hex>", and for a task "sha256:<hex>#<task>".
"""

_MARK = "#"


def adapter_key(digest: str, task: int | None = None) -> str:
    """The key of an adapter, or of one of its tasks."""
    return digest if task is None else f"{digest}{_MARK}{task}"


def digest_of(key: str) -> str:
    """The digest that the registry has it by."""
    return key.partition(_MARK)[0]


def task_of(key: str) -> int | None:
    """Which of its tasks it is; None if it has none."""
    task = key.partition(_MARK)[2]
    return int(task) if task else None


def is_part_of(key: str, whole: str) -> bool:
    """Whether it is that adapter, or one of its tasks."""
    return whole in (key, digest_of(key))
