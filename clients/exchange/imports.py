"""Adapters from outside: an OCI layout in a directory or an archive, which comes as it stands, or a PEFT directory or a
repository of the Hugging Face hub, which is published.

What was exported comes back as the same adapter, with parents, recipe, signatures and reports. Where it cannot, because
the base model is another one or hotshoe did not write its manifest, it is published anew, and `Imported` says so.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hotshoe.clients.adapter_files import CONFIG
from hotshoe.clients.errors import InvalidAdapterDirectory, InvalidArgument, InvalidLayout
from hotshoe.clients.exchange.hub import SCHEME, HubReference, fetch
from hotshoe.clients.exchange.layout import LAYOUT_FILE
from hotshoe.clients.exchange.layout_reader import BASE_DIGEST, Document, LayoutAdapter, read_layout
from hotshoe.clients.exchange.sources import open_source
from hotshoe.clients.progress import Progress, ignore_progress
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.clients.client import Client


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import."""

    adapter: registry.Adapter
    created: bool
    original_digest: str  # "" where the source has none
    documents: int  # about it, that came along
    left_behind: tuple[str, ...]  # of those that did not, why
    commit: str = ""  # of a repository of the hub

    @property
    def is_another(self) -> bool:
        """Whether it has another digest than it had in its layout."""
        return self.original_digest not in ("", self.adapter.digest)


def import_adapter(
    client: "Client",
    source: str | os.PathLike[str],
    name: str,
    *,
    tag: str = "latest",
    reference: str | None = None,
    other_base: bool = False,
    progress: Progress = ignore_progress,
) -> Imported:
    """Publishes what `source` holds as `name`, and attaches the documents about it that a layout has.

    Args:
        source: a path, or "hf://ORG/NAME[@REVISION][/FOLDER]", of which the manifest will name the commit.
        reference: which of a layout's adapters, by its ref.name, where there are several.
        other_base: publish for the server's base model, though the layout says another one of the same shape.

    Raises:
        InvalidAdapterDirectory, InvalidLayout, HubError: it is no adapter, or damaged; nothing was sent.
        FailedPrecondition: it does not fit the server's base model.
    """
    if isinstance(source, str) and source.startswith(SCHEME):
        if reference is not None:
            raise ValueError("a repository's folder is one adapter: a reference picks one of a layout's")
        return _from_hub(client, HubReference.parse(source), name, tag=tag, progress=progress)
    path = Path(source)
    if (path / CONFIG).is_file():
        if reference is not None:
            raise ValueError("a PEFT directory is one adapter: a reference picks one of a layout's")
        response = client.publish_directory(path, name, tags=[tag], progress=progress)
        return Imported(response.adapter, response.created, "", 0, ())
    if path.is_dir() and not (path / LAYOUT_FILE).exists():
        raise InvalidAdapterDirectory(f"{path}: neither a PEFT directory nor an OCI layout")
    with tempfile.TemporaryDirectory(prefix="hotshoe-import-") as work:
        try:
            with open_source(path) as opened:
                found = read_layout(opened, Path(work), reference)
        except InvalidLayout as error:
            raise InvalidLayout(f"{path}: {error}") from None
        came = _adopt(client, found, name, tag=tag, other_base=other_base, progress=progress)
        adapter, created = came or _publish(
            client, found, Path(work), name, tag=tag, other_base=other_base, progress=progress
        )
    if adapter.digest != found.digest:  # documents are about other bytes
        return Imported(adapter, created, found.digest, 0, ())
    refused = [reason for document in found.documents if (reason := _keep(client, adapter, document))]
    count = len(found.documents) - len(refused)
    return Imported(adapter, created, found.digest, count, (*found.left_behind, *refused))


def _from_hub(client: "Client", source: HubReference, name: str, *, tag: str, progress: Progress) -> Imported:
    with fetch(source, progress=progress) as found:
        try:
            response = client.publish_directory(
                found.directory, name, tags=[tag], annotations=found.annotations, progress=progress
            )
        except InvalidAdapterDirectory as error:
            raise InvalidAdapterDirectory(str(error).replace(str(found.directory), str(source))) from error
    return Imported(response.adapter, response.created, "", 0, (), found.commit)


def _adopt(
    client: "Client", found: LayoutAdapter, name: str, *, tag: str, other_base: bool, progress: Progress
) -> tuple[registry.Adapter, bool] | None:
    """Takes an adapter as it stands; None if it must be published anew."""
    if not found.is_ours or (other_base and found.base_digest != client.model_info().base_digest):
        return None
    try:
        response = client.adopt(found.manifest, found.files, name, tags=[tag], progress=progress)
    except InvalidArgument as error:  # another version of hotshoe wrote the manifest
        if not any(violation.field.startswith("manifest") for violation in error.field_violations):
            raise
        return None
    return response.adapter, response.created


def _publish(
    client: "Client",
    found: LayoutAdapter,
    directory: Path,
    name: str,
    *,
    tag: str,
    other_base: bool,
    progress: Progress,
) -> tuple[registry.Adapter, bool]:
    annotations = {key: value for key, value in found.annotations.items() if not (other_base and key == BASE_DIGEST)}
    response = client.publish_directory(
        directory,
        name,
        tags=[tag],
        annotations=annotations,
        approximate_rank=found.approximate_rank,
        progress=progress,
    )
    return response.adapter, response.created


def _keep(client: "Client", adapter: registry.Adapter, document: Document) -> str:
    """Why the server does not take a document; "" if it does."""
    try:
        client.adopt_referrer(document.manifest, document.data)
        return ""
    except InvalidArgument:  # another tool wrote its manifest
        pass
    try:
        client.attach(
            f"{adapter.name}@{adapter.digest}",
            document.data,
            artifact_type=document.artifact_type,
            file_name=document.file_name,
            annotations=document.annotations,
        )
    except InvalidArgument as error:
        return f"{document.artifact_type}: {error.message}"
    return ""
