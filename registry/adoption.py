"""What another registry says of an adapter, checked before it is committed here as it stands.

A manifest that was published here was made here; one from elsewhere may say anything, and what it says is shown to
callers, counted with, and believed by those who load it.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hotshoe.registry.attachment import MAX_DOCUMENT_BYTES
from hotshoe.registry.digest import is_digest
from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS, DENSE_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter, kind_of
from hotshoe.registry.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    LAYER_TYPES,
    MALFORMED,
    MANIFEST_TYPE,
    README_FILE,
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    AdapterContent,
    NotAnAdapter,
    blob_descriptors,
    read_manifest,
)
from hotshoe.registry.publication import MAX_BASE_NAME_LENGTH, MAX_README_BYTES
from hotshoe.registry.referrer import NotAReferrer, Referrer, read_referrer
from hotshoe.registry.strict_json import read_config, shown
from hotshoe.registry.validation import TensorFile

MAX_MANIFEST_BYTES = 4 << 20
MAX_ANNOTATION_BYTES = 64 << 10  # of a manifest in all: targets and recipe are among them
_READ = LAYER_TYPES.keys() - {CARD_FILE, README_FILE}  # by `inspect_adapter`
_MAX_COUNT = 1 << 20  # of ranks and positions

# Told of an adapter and its files, once they are sound and before they are committed; what it raises refuses them.
Approve = Callable[[AdapterContent, Mapping[str, Path]], None]


def approve_all(content: AdapterContent, files: Mapping[str, Path]) -> None:
    """For those who take what is sound."""


def check_manifest(document: bytes) -> AdapterContent:
    """Reads an adapter's manifest from elsewhere.

    Raises:
        InvalidAdapter: hotshoe would not have written it; `field` names what is wrong.
    """
    if len(document) > MAX_MANIFEST_BYTES:
        _refuse("", f"has {len(document)} bytes; expected at most {MAX_MANIFEST_BYTES}")
    try:
        content = read_manifest(document)
        descriptors = blob_descriptors(document)
        manifest = json.loads(document)
        types = [layer["mediaType"] for layer in manifest["layers"]]
    except (NotAnAdapter, *MALFORMED) as error:
        _refuse("", shown(str(error)))
    if manifest.get("schemaVersion") != 2 or manifest.get("mediaType") != MANIFEST_TYPE or "subject" in manifest:
        _refuse("", f"expected an OCI manifest, schemaVersion 2 and {MANIFEST_TYPE}, without a subject")
    names = [file.file_name for file in content.files]
    if len(set(names)) < len(names) or CARD_FILE not in names:
        _refuse(".layers", f"expected {WEIGHTS_FILE}, {CONFIG_FILE}, {CARD_FILE} and perhaps {README_FILE}, each once")
    if types != [LAYER_TYPES[name] for name in names] or [file.file_name for file in descriptors[1:]] != names:
        _refuse(".layers", "expected the media types and titles of their files")
    for file in descriptors:
        limits = {README_FILE: MAX_README_BYTES, CARD_FILE: MAX_DOCUMENT_BYTES, "config": MAX_DOCUMENT_BYTES}
        if not 0 <= file.size_bytes <= limits.get(file.file_name, 1 << 48):
            _refuse(f".{file.file_name}", f"has {file.size_bytes} bytes")
    _check_annotations(content.annotations)
    _check_words(content)
    return content


def check_contents(content: AdapterContent, paths: Mapping[str, Path], base: BaseShape | None) -> None:
    """Holds an adapter's files against what its manifest says, and against `base` if they are for that one.

    Raises:
        InvalidAdapter: they are not what it says, or damaged; `field` names the field or tensor.
        IncompatibleAdapter: they do not fit the base.
    """
    files = {file.file_name: paths[file.file_name] for file in content.files if file.file_name in _READ}
    if base is not None and base.digest == content.base_digest:
        summary = inspect_adapter(files, base, approximate_rank=content.approximate_rank)
        found = (summary.kind, summary.rank, summary.virtual_tokens, summary.num_tasks, summary.target_modules)
        said = (content.kind, content.rank, content.virtual_tokens, content.num_tasks, content.target_modules)
        if found != said:
            _refuse(".annotations", f"expected what the files are: {summary.kind} of rank {summary.rank}")
        return
    kind = kind_of(read_config(files[CONFIG_FILE]))
    if kind != content.kind:
        _refuse(".annotations", f"expected the kind of {CONFIG_FILE}, {shown(kind)}, found {shown(content.kind)}")
    (weights,) = files.keys() & WEIGHTS_FILES
    with TensorFile.open(files[weights], name=weights, max_bytes=files[weights].stat().st_size) as tensors:
        for entry in sorted(tensors.entries.values(), key=lambda entry: entry.offset):
            tensors.check_finite(entry)


def check_referrer(document: bytes) -> Referrer:
    """Reads the manifest of a document about an adapter, from elsewhere.

    Raises:
        InvalidAdapter: hotshoe would not have written it.
    """
    if len(document) > MAX_MANIFEST_BYTES:
        _refuse("", f"has {len(document)} bytes; expected at most {MAX_MANIFEST_BYTES}")
    try:
        referrer = read_referrer(document)
    except NotAReferrer as error:
        _refuse("", shown(str(error)))
    if not (_is_plain(referrer.artifact_type) and _is_plain(referrer.document.file_name)):
        _refuse("", "expected an artifactType and a title of printable ASCII")
    if not 1 <= referrer.document.size_bytes <= MAX_DOCUMENT_BYTES:
        size = referrer.document.size_bytes
        _refuse(".layers", f"has {size} bytes; expected 1 to {MAX_DOCUMENT_BYTES}")
    _check_annotations(referrer.annotations)
    return referrer


def _check_annotations(annotations: Mapping[str, str]) -> None:
    total = sum(len(key) + len(value) for key, value in annotations.items())
    if total > MAX_ANNOTATION_BYTES:
        _refuse(".annotations", f"have {total} characters; expected at most {MAX_ANNOTATION_BYTES}")
    for key, value in annotations.items():
        if not (key and key.isascii() and key.isprintable() and value.isprintable()):
            _refuse(f".annotations[{shown(key)}]", "expected printable text on one line")


def _check_words(content: AdapterContent) -> None:
    if content.kind not in (DENSE_KINDS if content.approximation else {**ADAPTER_KINDS, **ADAPTERHUB_KINDS}):
        _refuse(".annotations", f"expected a kind that is served here, found {shown(content.kind)}")
    if (kept := content.approximation) is not None:
        shares = 0 <= kept.least_energy <= 1 and 0 <= kept.energy <= 1
        if not (1 <= kept.rank <= _MAX_COUNT and shares and _is_plain(kept.least_linear)):
            _refuse(".annotations", "expected an approximation by rank, energies from 0 to 1, and a linear's name")
    if not is_digest(content.base_digest) or len(content.base_model) > MAX_BASE_NAME_LENGTH:
        _refuse(".annotations", "expected the digest and the name of a base model")
    if not all(0 <= count <= _MAX_COUNT for count in (content.rank, content.virtual_tokens, content.num_tasks)):
        _refuse(".annotations", f"expected rank, virtual tokens and tasks from 0 to {_MAX_COUNT}")
    if not all(is_digest(parent.digest) and math.isfinite(parent.weight) for parent in content.parents):
        _refuse(".annotations", "expected parents by digest and finite weight")
    if content.recipe and not isinstance(_json(content.recipe), dict):
        _refuse(".annotations", "expected a recipe that is a JSON object")


def _is_plain(word: str) -> bool:
    return 1 <= len(word) <= 255 and word.isascii() and word.isprintable()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except MALFORMED:
        return None


def _refuse(part: str, problem: str) -> NoReturn:
    raise InvalidAdapter(f"manifest{part}", problem)
