"""Who an adapter descends from, and who descends from it: what manifests say of parents, followed."""

from collections.abc import Iterable
from dataclasses import dataclass

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry

MAX_ANCESTORS = 1_000


@dataclass(frozen=True, slots=True)
class Family:
    """An adapter's relations, as far as the registry knows them.

    Attributes:
        ancestors: each once, those nearest to the adapter first, at most `MAX_ANCESTORS`.
        missing: digests of ancestors that are not here.
        children: adapters that name it as a parent.
    """

    adapter: AdapterRecord
    ancestors: tuple[AdapterRecord, ...]
    missing: tuple[str, ...]
    children: tuple[AdapterRecord, ...]


def family_of(registry: Registry, reference: str) -> Family:
    """Follows parents to their end. Raises what `Registry.resolve` does."""
    adapter = registry.resolve(reference)
    ancestors: dict[str, AdapterRecord] = {}
    missing: dict[str, None] = {}
    generation = _parents([adapter])
    while generation and len(ancestors) < MAX_ANCESTORS:
        found = []
        for digest in generation:
            if digest in ancestors or digest in missing or digest == adapter.digest:
                continue
            try:
                found.append(registry.adapter_record(digest))
                ancestors[digest] = found[-1]
            except (AdapterNotFound, BlobCorrupt):
                missing[digest] = None
        generation = _parents(found)
    children = registry.children(adapter.digest)
    return Family(adapter, tuple(ancestors.values())[:MAX_ANCESTORS], tuple(missing), tuple(children))


def _parents(records: Iterable[AdapterRecord]) -> list[str]:
    return list(dict.fromkeys(parent.digest for record in records for parent in record.parents))
