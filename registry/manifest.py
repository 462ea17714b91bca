"""An adapter's OCI manifest, strictly valid for CNCF ModelPack; canonical JSON without times, so equal bytes and equal
annotations have an equal digest under every name.

    manifest  artifactType application/vnd.cncf.model.manifest.v1+json, annotations dev.hotshoe.adapter.*
     config   application/vnd.cncf.model.config.v1+json       only the keys of ModelPack's schema
     layers   weight.v1.raw adapter_model.safetensors, weight.config.v1.raw adapter_config.json and adapter.card.json
              (ours: ModelPack knows no adapters), doc.v1.raw README.md; of AdapterHub's package adapter.safetensors
              and perhaps adapter_interface.json
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import rfc8785

from hotshoe.registry.digest import digest_of, is_digest
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import Approximation

if TYPE_CHECKING:
    from hotshoe.registry.formats.lowering import AdapterSummary

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"

WEIGHTS_FILE = "adapter_model.safetensors"
HUB_WEIGHTS_FILE = "adapter.safetensors"
HUB_INTERFACE_FILE = "adapter_interface.json"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "adapter.card.json"
README_FILE = "README.md"
WEIGHTS_FILES = frozenset({WEIGHTS_FILE, HUB_WEIGHTS_FILE})  # of which an adapter has one
# The order of the layers, and the only files an adapter has.
LAYER_TYPES: Mapping[str, str] = MappingProxyType(
    {
        WEIGHTS_FILE: "application/vnd.cncf.model.weight.v1.raw",
        HUB_WEIGHTS_FILE: "application/vnd.cncf.model.weight.v1.raw",
        CONFIG_FILE: "application/vnd.cncf.model.weight.config.v1.raw",
        HUB_INTERFACE_FILE: "application/vnd.cncf.model.weight.config.v1.raw",
        CARD_FILE: "application/vnd.cncf.model.weight.config.v1.raw",
        README_FILE: "application/vnd.cncf.model.doc.v1.raw",
    }
)

_PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}

ANNOTATION_PREFIX = "dev.hotshoe.adapter."
BASE_DIGEST = ANNOTATION_PREFIX + "base.digest"
BASE_NAME = ANNOTATION_PREFIX + "base.name"
PARENTS = ANNOTATION_PREFIX + "parents"
_RECIPE = ANNOTATION_PREFIX + "recipe"
_APPROXIMATION = ANNOTATION_PREFIX + "approximation"
_TASKS = ANNOTATION_PREFIX + "tasks"  # how many, of adapters that have some
_FILE_PATH = "org.cncf.model.filepath"
FILE_TITLE = "org.opencontainers.image.title"

# What reading a JSON document of the wrong form raises.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class FileDescriptor:
    """One file of an adapter."""

    file_name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter that another was made from."""

    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class Lineage:
    """What an adapter was made from, and how: `recipe` is JSON."""

    parents: tuple[Parent, ...]
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """What a manifest says: everything about an adapter but its name and tags."""

    digest: str
    kind: str  # PEFT's peft_type, or AdapterHub's method
    base_model: str
    base_digest: str
    rank: int
    virtual_tokens: int  # positions that it puts before every prompt
    target_modules: tuple[str, ...]
    files: tuple[FileDescriptor, ...]
    annotations: Mapping[str, str]
    config_digest: str
    parents: tuple[Parent, ...] = ()
    recipe: str = ""  # JSON
    approximation: Approximation | None = None  # None: it is served as it was trained
    num_tasks: int = 0  # of which a request names one; 0 if it has none

    @property
    def approximate_rank(self) -> int:
        """What `lower_adapter` is to be told."""
        return self.approximation.rank if self.approximation else 0

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests that the manifest names."""
        return (self.config_digest, *(file.digest for file in self.files))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord(AdapterContent):
    """One adapter under one name, with the tags that point at it now, sorted."""

    name: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, content: AdapterContent, *, name: str, tags: Sequence[str]) -> Self:
        """What a manifest says, under a name."""
        said = {field.name: getattr(content, field.name) for field in fields(AdapterContent)}
        return cls(**said, name=name, tags=tuple(sorted(tags)))


@dataclass(frozen=True, slots=True)
class Artifact:
    """The three documents that we make for an adapter, as bytes."""

    card: bytes
    config: bytes
    manifest: bytes

    @property
    def content(self) -> AdapterContent:
        return read_manifest(self.manifest)


class NotAnAdapter(Exception):
    """A manifest that `build_artifact` did not make."""


def build_artifact(
    files: Iterable[FileDescriptor],
    *,
    summary: "AdapterSummary",
    base: BaseShape,
    base_name: str,
    annotations: Mapping[str, str],
    lineage: Lineage | None = None,
    approximation: Approximation | None = None,
) -> Artifact:
    """Makes card, config and manifest of checked files; a pure function of its arguments."""
    kept = None if approximation is None else _rounded(approximation)
    given = {file.file_name: file for file in files}
    card = canonical_json(_card(given.values(), summary=summary, base=base, base_name=base_name, kept=kept))
    given[CARD_FILE] = FileDescriptor(CARD_FILE, digest_of(card), len(card))
    layers = [given[name] for name in LAYER_TYPES if name in given]
    config = canonical_json(
        {
            # No name: the same bytes may be published under several.
            "descriptor": {"family": base.model_type},
            "config": {"architecture": "transformer", "format": "safetensors", "precision": _precision(summary.dtype)},
            "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        }
    )
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
            "layers": [_layer(layer) for layer in layers],
            "annotations": {
                **annotations,
                **_lineage_annotations(lineage),
                **({} if kept is None else {_APPROXIMATION: canonical_json(kept).decode()}),
                ANNOTATION_PREFIX + "schema": "1",
                ANNOTATION_PREFIX + "kind": summary.kind,
                ANNOTATION_PREFIX + "rank": str(summary.rank),
                ANNOTATION_PREFIX + "virtual_tokens": str(summary.virtual_tokens),
                **({_TASKS: str(summary.num_tasks)} if summary.num_tasks else {}),
                ANNOTATION_PREFIX + "targets": ",".join(summary.target_modules),
                ANNOTATION_PREFIX + "dtype": summary.dtype,
                BASE_DIGEST: base.digest,
                BASE_NAME: base_name,
            },
        }
    )
    return Artifact(card=card, config=config, manifest=manifest)


def read_manifest(document: bytes) -> AdapterContent:
    """Reads a manifest that `build_artifact` made.

    Raises:
        NotAnAdapter: it is another document.
    """
    try:
        manifest = json.loads(document)
        if manifest["artifactType"] != ARTIFACT_TYPE or manifest["config"]["mediaType"] != CONFIG_TYPE:
            raise NotAnAdapter("its artifactType or config is not ModelPack's")
        annotations = {str(key): str(value) for key, value in manifest["annotations"].items()}
        content = AdapterContent(
            digest=digest_of(document),
            kind=annotations[ANNOTATION_PREFIX + "kind"],
            base_model=annotations[BASE_NAME],
            base_digest=annotations[BASE_DIGEST],
            rank=int(annotations[ANNOTATION_PREFIX + "rank"]),
            virtual_tokens=int(annotations[ANNOTATION_PREFIX + "virtual_tokens"]),
            target_modules=tuple(filter(None, annotations[ANNOTATION_PREFIX + "targets"].split(","))),
            files=tuple(_file(layer) for layer in manifest["layers"]),
            annotations=MappingProxyType(annotations),
            config_digest=manifest["config"]["digest"],
            parents=_parents(annotations.get(PARENTS, "[]")),
            recipe=annotations.get(_RECIPE, ""),
            approximation=_approximation(annotations.get(_APPROXIMATION)),
            num_tasks=int(annotations.get(_TASKS, "0")),
        )
    except MALFORMED as error:
        raise NotAnAdapter(f"it is no adapter's manifest ({type(error).__name__}: {error})") from error
    names = {file.file_name for file in content.files}
    if CONFIG_FILE not in names or len(names & WEIGHTS_FILES) != 1:
        raise NotAnAdapter(f"it has no {CONFIG_FILE}, or not just one of {' and '.join(sorted(WEIGHTS_FILES))}")
    if not all(is_digest(digest) for digest in content.blobs):
        raise NotAnAdapter("it names a blob by something else than a sha256 digest")
    return content


def blob_descriptors(document: bytes) -> list[FileDescriptor]:
    """The config and the layers of a manifest that `read_manifest` or `read_referrer` reads, with their sizes."""
    manifest = json.loads(document)
    config = manifest["config"]
    layers = [
        FileDescriptor(str(layer["annotations"][FILE_TITLE]), layer["digest"], int(layer["size"]))
        for layer in manifest["layers"]
    ]
    return [FileDescriptor("config", config["digest"], int(config["size"])), *layers]


def canonical_json(value: Any) -> bytes:
    """RFC 8785: the one serialization of a value."""
    return rfc8785.dumps(value)


def _card(
    files: Iterable[FileDescriptor],
    *,
    summary: "AdapterSummary",
    base: BaseShape,
    base_name: str,
    kept: Mapping[str, Any] | None,
) -> dict[str, Any]:
    weights = next(file for file in files if file.file_name in WEIGHTS_FILES)
    return {
        "schema": 1,
        "kind": summary.kind,
        "base": {"name": base_name, "digest": base.digest, "fingerprint": _base_fingerprint(base)},
        "rank": summary.rank,
        "target_modules": list(summary.target_modules),
        "virtual_tokens": summary.virtual_tokens,
        "dtype": summary.dtype,
        "params": summary.num_parameters,
        "tensors": summary.num_tensors,
        "bytes": weights.size_bytes,
        **({} if kept is None else {"approximation": kept}),
        **({"tasks": summary.num_tasks} if summary.num_tasks else {}),
    }


def _lineage_annotations(lineage: Lineage | None) -> dict[str, str]:
    if lineage is None:
        return {}
    parents = [[parent.digest, parent.weight] for parent in lineage.parents]
    return {PARENTS: canonical_json(parents).decode(), _RECIPE: canonical_json(dict(lineage.recipe)).decode()}


def _parents(text: str) -> tuple[Parent, ...]:
    return tuple(Parent(str(digest), float(weight)) for digest, weight in json.loads(text))


def _rounded(approximation: Approximation) -> dict[str, Any]:
    """As documents have it: shares to four digits, which every machine computes alike."""
    return {
        "rank": approximation.rank,
        "energy": round(approximation.energy, 4),
        "least_energy": round(approximation.least_energy, 4),
        "least_linear": approximation.least_linear,
    }


def _approximation(text: str | None) -> Approximation | None:
    if text is None:
        return None
    kept = json.loads(text)
    shares = float(kept["energy"]), float(kept["least_energy"])
    return Approximation(int(kept["rank"]), *shares, str(kept["least_linear"]))


def _base_fingerprint(base: BaseShape) -> dict[str, Any]:
    # What another copy of the base model has in common with this one when its digest differs.
    linears = sorted([s.module, s.out_features, s.in_features, s.has_bias] for s in base.linears.values())
    return {
        "model_type": base.model_type,
        "hidden_size": base.hidden_size,
        "num_hidden_layers": base.num_layers,
        "vocab_size": base.vocab_size,
        "shapes_sha256": hashlib.sha256(canonical_json(linears)).hexdigest(),
    }


def _precision(dtype: str) -> str:
    """ModelPack's word for a safetensors dtype."""
    return "mixed" if "+" in dtype else _PRECISIONS.get(dtype, dtype.lower())


def _layer(file: FileDescriptor) -> dict[str, Any]:
    return {
        "mediaType": LAYER_TYPES[file.file_name],
        "digest": file.digest,
        "size": file.size_bytes,
        "annotations": {_FILE_PATH: file.file_name, FILE_TITLE: file.file_name},
    }


def _file(layer: Mapping[str, Any]) -> FileDescriptor:
    name = layer["annotations"][_FILE_PATH]
    if name not in LAYER_TYPES:
        raise NotAnAdapter(f"it has a layer {str(name)[:80]!r}")
    return FileDescriptor(name, layer["digest"], int(layer["size"]))
