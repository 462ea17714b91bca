"""Adapters from outside: a PEFT directory, an OCI layout in a directory or an archive, or a repository of the Hugging
Face hub, published again.

Equal files and annotations have an equal digest wherever they are published, so that what was exported comes back as
the same adapter. Where it cannot, because its manifest names parents or the base model is another one, `Imported` says.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotshoe.clients.adapter_files import CARD, CONFIG, WEIGHTS, Progress, ignore_progress
from hotshoe.clients.errors import InvalidAdapterDirectory, InvalidArgument, InvalidLayout
from hotshoe.clients.exchange.hub import SCHEME, HubReference, fetch
from hotshoe.clients.exchange.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    MANIFEST_TYPE,
    MODELPACK_TYPE,
    REF_NAME,
)
from hotshoe.clients.exchange.sources import Source, copy_blob, open_source, read_blob, read_small
from hotshoe.clients.signatures import FILE_PATH
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.clients.client import Client

MAX_INDEX_BYTES = 16 << 20
MAX_MANIFEST_BYTES = 4 << 20
MAX_LAYERS = 64
MAX_DOCUMENT_BYTES = 1 << 20
MAX_DOCUMENTS = 256
FILES = (WEIGHTS, CONFIG, CARD)
_TITLE = "org.opencontainers.image.title"
# Annotations that the registry makes; of them a publisher may say the base model's.
_MADE = "dev.hotshoe.adapter."
_BASE_NAME, _BASE_DIGEST = _MADE + "base.name", _MADE + "base.digest"
_APPROXIMATION = _MADE + "approximation"
_DIAGNOSIS_TYPE = "application/vnd.hotshoe.intruder.v1+json"  # the server's own
# What reading a JSON document of the wrong form raises.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


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


@dataclass(frozen=True, slots=True)
class Document:
    """A document about an adapter, as it can be attached again."""

    artifact_type: str
    file_name: str
    data: bytes
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LayoutAdapter:
    """An adapter that was found in a layout, verified."""

    digest: str
    annotations: Mapping[str, str]
    documents: tuple[Document, ...]
    left_behind: tuple[str, ...]  # why, of each document that cannot be attached
    approximate_rank: int  # to which its publisher had it cut; 0 if it is exact


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
        with open_source(path) as opened:
            found = read_layout(opened, Path(work), reference)
        annotations = {
            key: value for key, value in found.annotations.items() if not (other_base and key == _BASE_DIGEST)
        }
        response = client.publish_directory(
            work,
            name,
            tags=[tag],
            annotations=annotations,
            approximate_rank=found.approximate_rank,
            progress=progress,
        )
    adapter = response.adapter
    if adapter.digest != found.digest:  # documents are about other bytes
        return Imported(adapter, response.created, found.digest, 0, ())
    refused = [reason for document in found.documents if (reason := _attach(client, adapter, document))]
    count = len(found.documents) - len(refused)
    return Imported(adapter, response.created, found.digest, count, (*found.left_behind, *refused))


def _from_hub(client: "Client", source: HubReference, name: str, *, tag: str, progress: Progress) -> Imported:
    with fetch(source, progress=progress) as found:
        response = client.publish_directory(
            found.directory, name, tags=[tag], annotations=found.annotations, progress=progress
        )
    return Imported(response.adapter, response.created, "", 0, (), found.commit)


def _attach(client: "Client", adapter: registry.Adapter, document: Document) -> str:
    """Why the server does not take a document; "" if it does."""
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


def read_layout(source: Source, directory: Path, reference: str | None) -> LayoutAdapter:
    """Finds one adapter, verifies every blob that it names, and writes its files into `directory`.

    Raises:
        InvalidLayout: there is none, or several, or one is damaged.
    """
    try:
        if json.loads(read_small(source, LAYOUT_FILE, 4096)) != LAYOUT_VERSION:
            raise InvalidLayout(f"{LAYOUT_FILE}: expected version {LAYOUT_VERSION['imageLayoutVersion']}")
        index = json.loads(read_small(source, INDEX_FILE, MAX_INDEX_BYTES))
        listed = [one for one in index["manifests"] if one.get("mediaType") == MANIFEST_TYPE]
        digest, manifest = _pick(source, listed, reference)
        _copy_files(source, manifest, directory)
        annotations = {
            key: _text(value)
            for key, value in manifest.get("annotations", {}).items()
            if not key.startswith(_MADE) or key in (_BASE_NAME, _BASE_DIGEST)
        }
        documents, left_behind = _documents(source, listed, digest)
        rank = _approximate_rank(manifest)
        return LayoutAdapter(digest, annotations, tuple(documents), tuple(left_behind), rank)
    except _MALFORMED as error:
        raise InvalidLayout(f"a document of it has another form than OCI's ({type(error).__name__}: {error})") from None


def _approximate_rank(manifest: Mapping[str, Any]) -> int:
    text = manifest.get("annotations", {}).get(_APPROXIMATION)
    rank = 0 if text is None else json.loads(text)["rank"]
    if type(rank) is not int or not 0 <= rank < 1 << 31:
        raise InvalidLayout(f"{_APPROXIMATION}: expected a rank, found {ascii(rank)[:80]}")
    return rank


def _pick(source: Source, listed: list[Any], reference: str | None) -> tuple[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for one in listed:
        tag = str((one.get("annotations") or {}).get(REF_NAME, ""))
        if one.get("artifactType", MODELPACK_TYPE) != MODELPACK_TYPE:
            continue
        names.append(tag)
        if reference in (None, tag):
            manifest = _manifest(source, one)
            if manifest.get("artifactType") == MODELPACK_TYPE:
                found[one["digest"]] = manifest
    if len(found) == 1:
        return found.popitem()
    there = ", ".join(ascii(name)[:80] for name in sorted(filter(None, set(names)))[:20]) or "none with a name"
    if found:
        raise InvalidLayout(f"it holds {len(found)} adapters; say which: {there}")
    raise InvalidLayout(f"it holds no such adapter of type {MODELPACK_TYPE}; there is {there}")


def _manifest(source: Source, descriptor: Any) -> dict[str, Any]:
    size = _size(descriptor, MAX_MANIFEST_BYTES)
    manifest = json.loads(read_blob(source, _text(descriptor["digest"]), size))
    if not isinstance(manifest, dict):
        raise InvalidLayout(f"blob {descriptor['digest']}: not a manifest")
    return manifest


def _copy_files(source: Source, manifest: Mapping[str, Any], directory: Path) -> None:
    """Verifies config and layers; the layers that are an adapter's files are written."""
    layers = manifest["layers"]
    if len(layers) > MAX_LAYERS:
        raise InvalidLayout(f"{len(layers)} layers; expected at most {MAX_LAYERS}")
    copy_blob(source, _text(manifest["config"]["digest"]), _size(manifest["config"]), None)
    written: set[str] = set()
    for layer in layers:
        annotations = layer.get("annotations") or {}
        name = _text(annotations.get(FILE_PATH, annotations.get(_TITLE, "")))
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise InvalidLayout(f"layer {ascii(name[:80])}: not a path below its directory")
        is_file = name in FILES and _text(layer["mediaType"]).endswith(".raw")
        if is_file and name in written:
            raise InvalidLayout(f"layer {name}: there twice")
        copy_blob(source, _text(layer["digest"]), _size(layer), directory / name if is_file else None)
        written |= {name} if is_file else set()
    if not {WEIGHTS, CONFIG} <= written:
        raise InvalidLayout(f"it has no {WEIGHTS} or no {CONFIG} as a raw layer")


def _documents(source: Source, listed: list[Any], subject: str) -> tuple[list[Document], list[str]]:
    """What is said about an adapter, but for what servers say; and why some of it cannot be attached."""
    documents: list[Document] = []
    left_behind: list[str] = []
    for one in listed:
        if one.get("artifactType") in (MODELPACK_TYPE, _DIAGNOSIS_TYPE):
            continue
        manifest = _manifest(source, one)
        if (manifest.get("subject") or {}).get("digest") != subject or manifest.get("artifactType") == _DIAGNOSIS_TYPE:
            continue
        if len(documents) + len(left_behind) >= MAX_DOCUMENTS:
            raise InvalidLayout(f"more than {MAX_DOCUMENTS} documents about one adapter")
        kind, layers = _text(manifest["artifactType"]), list(manifest["layers"])
        title = (layers[0].get("annotations") or {}).get(_TITLE) if len(layers) == 1 else None
        if title is None:
            left_behind.append(f"{kind}: expected one layer with a file's name")
            continue
        size = _size(layers[0], MAX_DOCUMENT_BYTES)
        annotations = {key: _text(value) for key, value in (manifest.get("annotations") or {}).items()}
        data = read_blob(source, _text(layers[0]["digest"]), size)
        documents.append(Document(kind, _text(title), data, annotations))
    return documents, left_behind


def _size(descriptor: Any, limit: int | None = None) -> int:
    size = descriptor["size"]
    if type(size) is not int or size < 0 or (limit is not None and size > limit):
        raise InvalidLayout(
            f"size {ascii(size)[:80]}: expected a number of bytes" + (f" up to {limit}" if limit else "")
        )
    return size


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidLayout(f"{ascii(value)[:80]}: expected text")
    value.encode()  # half a surrogate pair is none
    return value
