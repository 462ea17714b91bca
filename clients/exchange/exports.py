"""A published adapter, fetched and verified, in the form that another tool reads."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from hotshoe.clients.adapter_files import CONFIG
from hotshoe.clients.errors import DataLoss, HotshoeError
from hotshoe.clients.exchange.archives import write_archive
from hotshoe.clients.exchange.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    MODELPACK_TYPE,
    REF_NAME,
    SUBJECT,
    LayoutWriter,
    canonical_json,
    descriptor,
)
from hotshoe.clients.progress import Progress, ignore_progress
from hotshoe.clients.signatures import check_manifest
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.clients.client import Client

MODELS_DIRECTORY = "models"  # where a modelcar's files are looked for
SOURCE_DIGEST = "dev.hotshoe.source.digest"  # of an image's manifest: the adapter that it was made of
# Of a LoRA's config: what Ollama, which reads r and lora_alpha, does not.
_BEYOND_OLLAMA = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save"),
    *("trainable_token_indices", "alora_invocation_tokens", "layer_replication", "fan_in_fan_out"),
)
_IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_IMAGE_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


class CannotExport(HotshoeError):
    """An adapter that has no such form; the message says why."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document about an adapter: its manifest, and the blobs that this names."""

    artifact_type: str
    manifest: bytes
    blobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """An adapter's files in a directory, and the other bytes that are it."""

    adapter: registry.Adapter
    reference: str  # "name:tag", for formats that name what they hold
    files: Mapping[str, Path]  # by name, each verified
    manifest: bytes
    config: bytes
    documents: tuple[Document, ...]


def export(
    client: "Client",
    reference: str,
    destination: str | os.PathLike[str],
    *,
    form: str,
    progress: Progress = ignore_progress,
) -> registry.Adapter:
    """Writes an adapter to `destination`, which is there whole or not at all, in one of FORMATS.

    Raises:
        CannotExport: it has no such form.
        DataLoss: what came is not what its digest says.
        FileExistsError: there is something else than an empty directory already.
    """
    if form not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, not {form!r}")
    target = Path(destination)
    if os.path.lexists(target) and not (target.is_dir() and form != "oci-archive" and not any(target.iterdir())):
        raise FileExistsError(f"{target}: is there already; expected a new name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        fetched = _fetch(client, reference, Path(work) / "files", progress)
        made = Path(work) / "made"
        FORMATS[form](fetched, made)
        os.replace(made, target)
    return fetched.adapter


def _fetch(client: "Client", reference: str, directory: Path, progress: Progress) -> Fetched:
    adapter = client.pull(reference, directory, progress=progress)
    manifest = client.read_blob(adapter.digest)
    check_manifest(adapter, manifest)
    return Fetched(
        adapter=adapter,
        reference=_name_of(adapter, reference),
        files={blob.file_name: directory / blob.file_name for blob in adapter.blobs},
        manifest=manifest,
        config=client.read_blob(_config_digest(manifest)),
        documents=tuple(_document(client, referrer) for referrer in adapter.referrers),
    )


def _document(client: "Client", referrer: registry.Referrer) -> Document:
    manifest = client.read_blob(referrer.digest)
    config = client.read_blob(_config_digest(manifest))
    return Document(referrer.artifact_type, manifest, (config, client.read_blob(referrer.document.digest)))


def _config_digest(manifest: bytes) -> str:
    try:
        return str(json.loads(manifest)["config"]["digest"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataLoss("the server sent a manifest without a config", status=grpc.StatusCode.DATA_LOSS) from None


def _name_of(adapter: registry.Adapter, reference: str) -> str:
    """The reference with a tag: as it was asked for, else one that points there, else a piece of the digest."""
    name, _, tag = reference.partition("@")[0].partition(":")
    if "@" in reference:
        tag = next(iter(sorted(adapter.tags)), adapter.digest.removeprefix("sha256:")[:12])
    return f"{name}:{tag or 'latest'}"


def _directory(fetched: Fetched, made: Path) -> None:
    """The files by name, as PEFT and vLLM load them."""
    made.mkdir()
    for name, path in fetched.files.items():
        os.replace(path, made / name)


def _layout(fetched: Fetched, made: Path) -> None:
    """The adapter as the registry has it, with equal digests, and the documents about it: signatures, reports."""
    writer = LayoutWriter(made)
    for blob in fetched.adapter.blobs:
        writer.take(fetched.files[blob.file_name], blob.digest)
    for data in (fetched.config, fetched.manifest):
        writer.add(data)
    tag = {REF_NAME: fetched.reference}
    manifests = [descriptor(fetched.manifest, artifactType=MODELPACK_TYPE, annotations=tag)]
    for document in reversed(fetched.documents):  # the oldest first, as the registry lists them
        for data in (*document.blobs, document.manifest):
            writer.add(data)
        about = {SUBJECT: fetched.adapter.digest}
        manifests.append(descriptor(document.manifest, artifactType=document.artifact_type, annotations=about))
    writer.finish(manifests)


def _archive(fetched: Fetched, made: Path) -> None:
    """That layout in one file, as skopeo's oci-archive: is."""
    layout = made.with_name("layout")
    _layout(fetched, layout)
    blobs = sorted((layout / "blobs" / "sha256").iterdir())
    names = [LAYOUT_FILE, INDEX_FILE, *(f"blobs/sha256/{path.name}" for path in blobs)]
    with made.open("wb") as output:
        write_archive(output, ((name, layout / name) for name in names))


def _modelcar(fetched: Fetched, made: Path) -> None:
    """An ordinary image, for those who mount images: a layer for each file, below /models; equal bytes every time."""
    writer = LayoutWriter(made)
    layers: list[dict[str, Any]] = []
    for name, path in sorted(fetched.files.items()):
        with writer.open() as blob:
            write_archive(blob, [(f"{MODELS_DIRECTORY}/{name}", path)])
        layers.append({"mediaType": _IMAGE_LAYER_TYPE, "digest": blob.digest, "size": blob.size_bytes})
    config = canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
    )
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": _IMAGE_CONFIG_TYPE, "digest": writer.add(config), "size": len(config)},
            "layers": layers,
            "annotations": {SOURCE_DIGEST: fetched.adapter.digest},
        }
    )
    writer.add(manifest)
    writer.finish([descriptor(manifest, annotations={REF_NAME: fetched.reference.partition(":")[2]})])


def _ollama(fetched: Fetched, made: Path) -> None:
    """The files and a Modelfile: `ollama create NAME -f Modelfile` once FROM names a model that Ollama has."""
    adapter = fetched.adapter
    if adapter.kind != "LORA":
        raise CannotExport(f"{adapter.name}: Ollama reads adapters of kind LORA only, this one is {adapter.kind}")
    config = json.loads(fetched.files[CONFIG].read_bytes())
    if beyond := [name for name in _BEYOND_OLLAMA if config.get(name) not in (None, False, "none", [], {})]:
        raise CannotExport(f"{adapter.name}: Ollama would drop its {', '.join(beyond)}, and answer otherwise than here")
    if not adapter.base_model.isprintable():  # it would be lines of the Modelfile
        raise CannotExport(f"{adapter.name}: its base model's name is not printable")
    _directory(fetched, made)
    (made / "Modelfile").write_text(f"FROM {adapter.base_model}\nADAPTER .\n")


FORMATS: Mapping[str, Callable[[Fetched, Path], None]] = {
    "dir": _directory,
    "oci": _layout,
    "oci-archive": _archive,
    "modelcar": _modelcar,
    "ollama": _ollama,
}
