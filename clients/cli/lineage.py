"""hotshoe lineage: the tree of what an adapter was made from."""

import json as jsonlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Adapter

_TOLD = ("op", "method", "energy_kept")  # of a recipe, in words of their own here or by show


def lineage(reference: Reference, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Draw what an adapter was made from, and what was made from it.

    Tells how each was made, and how it was evaluated.
    """
    from hotshoe.clients import Client

    with Client(server) as client:
        family = client.lineage(reference)
    if json:
        return output.print_json(family)
    known = {adapter.digest: adapter for adapter in (family.adapter, *family.ancestors)}
    print(output.printable(_named(family.adapter) + _reported(family.adapter)))
    for line in _branches(family.adapter, known, frozenset()):
        print(output.printable(line))
    for child in family.children:
        print(output.printable(f"→ {_named(child)}{_made_by(child)}{_reported(child)}"))


def _branches(adapter: "Adapter", known: dict[str, "Adapter"], above: frozenset[str]) -> Iterator[str]:
    """The lines below an adapter, its parents' first; a loop, which no honest manifest has, is not followed."""
    above |= {adapter.digest}
    for index, parent in enumerate(adapter.parents):
        is_last = index == len(adapter.parents) - 1
        found = known.get(parent.digest)
        name = _named(found) if found else f"{output.short_digest(parent.digest)} (not in this registry)"
        more = (_made_by(adapter) if index == 0 else "") + (_reported(found) if found else "")
        yield f"{'└─' if is_last else '├─'} {parent.weight:g} × {name}{more}"
        if found and parent.digest not in above:
            indent = "   " if is_last else "│  "
            yield from (indent + line for line in _branches(found, known, above))


def _named(adapter: "Adapter") -> str:
    tags = f" ({', '.join(adapter.tags)})" if adapter.tags else ""
    return f"{adapter.name}@{output.short_digest(adapter.digest)}{tags}"


def _made_by(adapter: "Adapter") -> str:
    """By what an adapter's parents became it."""
    if not adapter.recipe:
        return ""
    recipe = jsonlib.loads(adapter.recipe)
    chosen = [f"{key}={value}" for key, value in recipe.items() if value and key not in _TOLD and value != "delta"]
    return ", ".join([f"  by {recipe.get('method') or recipe.get('op')}", *chosen])


def _reported(adapter: "Adapter") -> str:
    """What evaluations say of an adapter."""
    from hotshoe.clients.evaluations import SUMMARY, evaluations

    summaries = [one.annotations[SUMMARY] for one in evaluations(adapter) if SUMMARY in one.annotations]
    return f"  [{'; '.join(summaries)}]" if summaries else ""
