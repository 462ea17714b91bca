"""hotshoe publish: a PEFT or AdapterHub directory becomes an adapter of the registry."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, ApproximateRank, Json, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.protos.v1.registry_pb2 import PublishAdapterResponse


def publish(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="As PEFT's save_pretrained or AdapterHub's save_adapter writes it.")
    ],
    names: Annotated[list[str], typer.Argument(metavar="NAME[:TAG]", help="One name; :latest if it has no tag.")],
    annotation: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept in the manifest; may be repeated.")
    ] = None,
    approximate_rank: ApproximateRank = 0,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, publish nothing.")] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Publish a PEFT or AdapterHub directory as an adapter.

    Only files that the registry lacks are sent, and a broken upload goes on where it broke.
    """
    from hotshoe.clients import Client, TransferProgress

    references = [name_and_tag(text) for text in names]
    name = references[0][0]
    if others := sorted({other for other, _ in references} - {name}):
        raise ValueError(f"one publish has one name: {name}, not also {', '.join(others)}")
    annotations = dict(_key_and_value(text) for text in annotation or ())
    with Client(server) as client, byte_progress() as update:

        def progress(step: TransferProgress) -> None:
            update({"hash": "hashing", "upload": "uploading"}[step.stage], step.completed_bytes, step.total_bytes)

        response = client.publish_directory(
            directory,
            name,
            tags=[tag for _, tag in references],
            annotations=annotations,
            validate_only=validate_only,
            approximate_rank=approximate_rank,
            progress=progress,
        )
    if json:
        return output.print_json(response)
    done = "valid" if validate_only else "published" if response.created else "already there"
    tags = ",".join(tag for _, tag in references)
    _print_published(f"{done} {name}:{tags}", name, response)


def _print_published(done: str, name: str, response: "PublishAdapterResponse") -> None:
    """Prints what was done, and what there is to know of the adapter."""
    adapter = response.adapter
    size = output.human_bytes(adapter.size_bytes)
    print(f"{done}  {adapter.kind}  {size}\n{name}@{adapter.digest}")
    if adapter.HasField("approximation"):
        print(output.approximation(adapter.approximation))
    if problem := adapter.verification.problem:
        word = "not served yet" if output.enum_word(adapter.verification, "mode") == "require" else "unsigned"
        print(f"{word}: {output.printable(problem)}")
    if response.HasField("diagnosis"):
        print(f"doctor: {output.enum_word(response.diagnosis, 'grade').upper()}, {response.diagnosis.headline}")


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--annotation {text!r} is not KEY=VALUE")
    return key, value
