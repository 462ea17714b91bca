"""hotshoe show: all that the registry knows of one adapter."""

from typing import TYPE_CHECKING

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import Referrer, Verification

# Annotations that have a field of their own; --json has them all.
_TOLD = {
    f"dev.hotshoe.adapter.{name}"
    for name in ("approximation", "base.digest", "base.name", "kind", "parents", "rank", "recipe", "targets", "tasks")
}


def show(reference: Reference, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Show all about an adapter."""
    from hotshoe.clients import Client

    with Client(server) as client:
        adapter = client.get_adapter(reference)
    if json:
        return output.print_json(adapter)
    fields: list[tuple[str, object]] = [
        ("name", adapter.name),
        ("digest", adapter.digest),
        ("tags", ", ".join(adapter.tags)),
        ("kind", adapter.kind),
        ("rank", adapter.rank or "-"),
        *([("tasks", f"0 to {adapter.num_tasks - 1}")] if adapter.num_tasks else []),
        ("targets", ", ".join(adapter.target_modules)),
        ("base", f"{adapter.base_model} {adapter.base_digest}"),
        ("size", output.human_bytes(adapter.size_bytes)),
    ]
    if adapter.HasField("approximation"):
        fields.append(("approximation", output.approximation(adapter.approximation)))
    fields += [("parent", f"{parent.digest} weight {parent.weight:g}") for parent in adapter.parents]
    if adapter.recipe:
        fields.append(("recipe", adapter.recipe))
    if adapter.HasField("verification"):
        fields.append(("policy", _verification(adapter.verification)))
    fields += [_document(referrer) for referrer in adapter.referrers]
    fields += [(blob.file_name, f"{blob.digest} {output.human_bytes(blob.size_bytes)}") for blob in adapter.blobs]
    fields += sorted((key, value) for key, value in adapter.annotations.items() if key not in _TOLD)
    output.print_fields(fields)


def _document(referrer: "Referrer") -> tuple[str, str]:
    """A document about the adapter: by its file's name, what its annotations say, and where it is."""
    said = ", ".join(referrer.annotations[key] for key in sorted(referrer.annotations))
    return referrer.document.file_name.removesuffix(".json"), f"{said} {referrer.document.digest}".strip()


def _verification(verification: "Verification") -> str:
    """What the policy says, in words."""
    mode = output.enum_word(verification, "mode")
    if mode == "off":
        return mode
    return f"{mode}: " + (verification.problem or f"signed by {', '.join(verification.key_ids)}")
