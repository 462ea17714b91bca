"""An adapter that is found in an OCI layout, and what is said about it, verified and written to a directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshoe.clients.adapter_files import CARD, CONFIG, WEIGHTS, AdapterFile
from hotshoe.clients.errors import InvalidLayout
from hotshoe.clients.exchange.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    MANIFEST_TYPE,
    MODELPACK_TYPE,
    REF_NAME,
)
from hotshoe.clients.exchange.sources import Source, copy_blob, read_blob, read_small
from hotshoe.clients.signatures import FILE_PATH

MAX_INDEX_BYTES = 16 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_LAYERS = 64
MAX_DOCUMENT_BYTES = 1 << 20
MAX_DOCUMENTS = 256
FILES = (WEIGHTS, CONFIG, CARD)
_REGISTRY_CARD = "adapter.card.json"  # which the registry makes, and no other tool
_CONFIG_BLOB = "config"
_TITLE = "org.opencontainers.image.title"
# Annotations that the registry makes; of them a publisher may say the base model's.
_MADE = "dev.hotshoe.adapter."
BASE_DIGEST = _MADE + "base.digest"
_BASE_NAME = _MADE + "base.name"
_APPROXIMATION = _MADE + "approximation"
_DIAGNOSIS_TYPE = "application/vnd.hotshoe.intruder.v1+json"  # the server's own
# What reading a JSON document of the wrong form raises.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Document:
    """A document about an adapter: its manifest as it stands, and as it can be attached again."""

    manifest: bytes
    artifact_type: str
    file_name: str
    data: bytes
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LayoutAdapter:
    """An adapter that was found in a layout, verified."""

    digest: str
    manifest: bytes
    files: tuple[AdapterFile, ...]  # all that the manifest names, as far as an adapter has such files
    annotations: Mapping[str, str]  # that a publisher may give
    documents: tuple[Document, ...]
    left_behind: tuple[str, ...]  # why, of each document that cannot be attached
    approximate_rank: int  # to which its publisher had it cut; 0 if it is exact

    @property
    def is_ours(self) -> bool:
        """Whether a hotshoe registry made it, as far as its files say."""
        return _REGISTRY_CARD in {file.file_name for file in self.files}

    @property
    def base_digest(self) -> str:
        return self.annotations.get(BASE_DIGEST, "")


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
        digest, document = _pick(source, listed, reference)
        manifest = json.loads(document)
        files = _copy_files(source, manifest, directory)
        annotations = {
            key: _text(value)
            for key, value in manifest.get("annotations", {}).items()
            if not key.startswith(_MADE) or key in (_BASE_NAME, BASE_DIGEST)
        }
        documents, left_behind = _documents(source, listed, digest)
        rank = _approximate_rank(manifest)
        return LayoutAdapter(digest, document, tuple(files), annotations, tuple(documents), tuple(left_behind), rank)
    except _MALFORMED as error:
        raise InvalidLayout(f"a document of it has another form than OCI's ({type(error).__name__}: {error})") from None


def _approximate_rank(manifest: Mapping[str, Any]) -> int:
    text = manifest.get("annotations", {}).get(_APPROXIMATION)
    rank = 0 if text is None else json.loads(text)["rank"]
    if type(rank) is not int or not 0 <= rank < 1 << 31:
        raise InvalidLayout(f"{_APPROXIMATION}: expected a rank, found {ascii(rank)[:80]}")
    return rank


def _pick(source: Source, listed: list[Any], reference: str | None) -> tuple[str, bytes]:
    """The digest and the manifest of the one that is meant."""
    found: dict[str, bytes] = {}
    names: list[str] = []
    for one in listed:
        tag = str((one.get("annotations") or {}).get(REF_NAME, ""))
        if one.get("artifactType", MODELPACK_TYPE) != MODELPACK_TYPE:
            continue
        names.append(tag)
        if reference in (None, tag):
            document, manifest = _manifest(source, one)
            if manifest.get("artifactType") == MODELPACK_TYPE:
                found[one["digest"]] = document
    if len(found) == 1:
        return found.popitem()
    there = ", ".join(ascii(name)[:80] for name in sorted(filter(None, set(names)))[:20]) or "none with a name"
    if found:
        raise InvalidLayout(f"it holds {len(found)} adapters; say which: {there}")
    raise InvalidLayout(f"it holds no such adapter of type {MODELPACK_TYPE}; there is {there}")


def _manifest(source: Source, descriptor: Any) -> tuple[bytes, dict[str, Any]]:
    """Its bytes, and what they say."""
    document = read_blob(source, _text(descriptor["digest"]), _size(descriptor, MAX_MANIFEST_BYTES))
    manifest = json.loads(document)
    if not isinstance(manifest, dict):
        raise InvalidLayout(f"blob {descriptor['digest']}: not a manifest")
    return document, manifest


def _copy_files(source: Source, manifest: Mapping[str, Any], directory: Path) -> list[AdapterFile]:
    """Verifies config and layers; the config, and the layers that are an adapter's files, are written."""
    layers = manifest["layers"]
    if len(layers) > MAX_LAYERS:
        raise InvalidLayout(f"{len(layers)} layers; expected at most {MAX_LAYERS}")
    written = [_copy(source, manifest["config"], directory / _CONFIG_BLOB)]
    for layer in layers:
        annotations = layer.get("annotations") or {}
        name = _text(annotations.get(FILE_PATH, annotations.get(_TITLE, "")))
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise InvalidLayout(f"layer {ascii(name[:80])}: not a path below its directory")
        if name not in (*FILES, _REGISTRY_CARD) or not _text(layer["mediaType"]).endswith(".raw"):
            copy_blob(source, _text(layer["digest"]), _size(layer), None)
            continue
        if name in {file.file_name for file in written}:
            raise InvalidLayout(f"layer {name}: there twice")
        written.append(_copy(source, layer, directory / name))
    if not {WEIGHTS, CONFIG} <= {file.file_name for file in written}:
        raise InvalidLayout(f"it has no {WEIGHTS} or no {CONFIG} as a raw layer")
    return written


def _copy(source: Source, descriptor: Any, path: Path) -> AdapterFile:
    file = AdapterFile(path, _text(descriptor["digest"]), _size(descriptor))
    copy_blob(source, file.digest, file.size_bytes, path)
    return file


def _documents(source: Source, listed: list[Any], subject: str) -> tuple[list[Document], list[str]]:
    """What is said about an adapter, but for what servers say; and why some of it cannot be attached."""
    documents: list[Document] = []
    left_behind: list[str] = []
    for one in listed:
        if one.get("artifactType") in (MODELPACK_TYPE, _DIAGNOSIS_TYPE):
            continue
        document, manifest = _manifest(source, one)
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
        documents.append(Document(document, kind, _text(title), data, annotations))
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
