"""hotshoe import: an adapter from a PEFT directory, an OCI layout, an archive of one, or the Hugging Face hub."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server, name_and_tag
from hotshoe.clients.cli.progress import byte_progress

if TYPE_CHECKING:
    from hotshoe.clients.exchange.imports import Imported

ANOTHER = (
    "here it has another digest, for its manifest names another base model, or this version of hotshoe would not have "
    "written it. Its signatures were left behind: they are not for these bytes."
)

DOING = {"download": "downloading", "hash": "hashing", "upload": "uploading"}


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A PEFT directory, an OCI layout, a tar of one, or hf://ORG/NAME[@REVISION][/FOLDER]."
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="What to call it; :latest if it has no tag.")],
    ref: Annotated[
        str | None, typer.Option(metavar="REF", help="Which of a layout's adapters, by its ref.name.")
    ] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Take this server's base model for the one that the layout names.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Publish an adapter that another tool or registry wrote.

    Every digest of a layout is verified. What `hotshoe export` wrote keeps its digest, its parents, its signatures and
    its reports. From the Hugging Face hub (HF_TOKEN, HF_ENDPOINT and HF_HOME hold) only an adapter's files are fetched;
    the manifest names the commit.
    """
    from hotshoe.clients import Client, TransferProgress
    from hotshoe.clients.exchange.imports import import_adapter

    name, tag = name_and_tag(target)
    with Client(server) as client, byte_progress() as update:

        def progress(step: TransferProgress) -> None:
            update(DOING[step.stage], step.completed_bytes, step.total_bytes)

        done = import_adapter(client, source, name, tag=tag, reference=ref, other_base=other_base, progress=progress)
    if done.is_another:
        print(f"hotshoe: it was {done.original_digest}; {ANOTHER}", file=sys.stderr)
    for reason in done.left_behind:
        print(output.printable(f"hotshoe: a document about it was left behind: {reason}"), file=sys.stderr)
    if json:
        fields = {"created": done.created, "original_digest": done.original_digest or None, "documents": done.documents}
        return output.print_json({**fields, "commit": done.commit or None, "adapter": done.adapter})
    _print_imported(name, tag, done)


def _print_imported(name: str, tag: str, done: "Imported") -> None:
    adapter = done.adapter
    word = "imported" if done.created else "already there"
    along = f"  with {done.documents} document{'s'[: done.documents > 1]} about it" if done.documents else ""
    along += f"  of commit {done.commit}" if done.commit else ""
    size = output.human_bytes(adapter.size_bytes)
    print(f"{word} {name}:{tag}  {adapter.kind}  {size}{along}\n{name}@{adapter.digest}")


import_.__name__ = "import"  # the verb; Python keeps the word for itself
