"""Adapters in repositories of the Hugging Face hub, by way of huggingface_hub: its token, endpoint and cache hold.

    hf://ORG/NAME[@REVISION][/FOLDER]      a branch, tag or commit, "main" by default; its slashes are written %2F

Only an adapter's own files are fetched, of the one commit that the revision points at, and each is hashed against what
the hub lists of that commit: what lies in the cache is not believed either.
"""

import hashlib
import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hotshoe.clients.adapter_files import CARD, CONFIG, HUB_HEAD, HUB_INTERFACE, HUB_WEIGHTS, WEIGHTS
from hotshoe.clients.errors import HubError, HubNotFound, HubRefused
from hotshoe.clients.progress import Progress, ProgressCounter, ignore_progress

SCHEME = "hf://"
SOURCE = "org.opencontainers.image.source"
REVISION = "org.opencontainers.image.revision"
LICENSES = "org.opencontainers.image.licenses"

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin")
_URL = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LICENSE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
_LIST_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubReference:
    """A revision of a repository, and the folder of the adapter in it, "" for its root."""

    repository: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> "HubReference":
        """Reads "hf://ORG/NAME[@REVISION][/FOLDER]". Raises ValueError."""
        found = _URL.fullmatch(text)
        revision = unquote(found[2] or "main") if found else ""
        folder = (found[3] or "").rstrip("/") if found else ""
        parts = folder.split("/") if folder else []
        plain = all(part and part.isprintable() and part not in (".", "..") for part in parts)
        if not (found and _NAMES.fullmatch(found[1]) and _REVISION.fullmatch(revision) and plain):
            raise ValueError(f"{text!r} is not hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME@REVISION/FOLDER")
        return cls(found[1], revision, folder)

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}@{self.revision}" + (f"/{self.folder}" if self.folder else "")


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """An adapter's files in a directory, and what its manifest is to say of where they came from."""

    directory: Path
    commit: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file as the hub lists it: with the sha256 of its bytes if it lies in LFS, else with the sha1 that is git's."""

    path: str
    size_bytes: int
    sha256: str
    git_id: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def is_whole(self, path: Path) -> bool:
        """Whether a file is what is listed."""
        if path.stat().st_size != self.size_bytes:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size_bytes)
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                digest.update(data)
        return digest.hexdigest() == (self.sha256 or self.git_id)


@contextmanager
def fetch(
    reference: HubReference,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = ignore_progress,
) -> Iterator[HubAdapter]:
    """An adapter's files, whole, in a directory that is there until the block ends.

    How long it waits for a silent hub, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT say.

    Args:
        endpoint, token, cache: in place of huggingface_hub's own: HF_ENDPOINT, HF_TOKEN, HF_HOME and the like.

    Raises:
        HubNotFound: no such repository, revision or file; also of a private one for which the token is missing.
        HubRefused: it is gated, or the token is not taken.
        HubError: it could not be fetched, or is not what the hub lists. Every message names the reference and the file.
    """
    repository = _Repository(reference, endpoint=endpoint, token=token, cache=cache)
    commit, chosen, annotations = repository.list()
    counter = ProgressCounter("download", sum(one.size_bytes for one in chosen), progress)
    with tempfile.TemporaryDirectory(prefix="hotshoe-hub-") as work:
        for one in chosen:
            path = repository.download(one, commit, counter)
            (Path(work) / one.name).symlink_to(path)
            counter.finish(one.name, one.size_bytes)
        yield HubAdapter(Path(work), commit, annotations)


class _Repository:
    """One revision of a repository, asked by huggingface_hub."""

    def __init__(
        self,
        reference: HubReference,
        *,
        endpoint: str | None,
        token: str | None,
        cache: str | os.PathLike[str] | None,
    ) -> None:
        self._reference = reference
        self._hub = _library()
        self._api = self._hub.HfApi(endpoint=endpoint, token=token)
        self._cache = cache

    def list(self) -> tuple[str, Sequence[_Listed], Mapping[str, str]]:
        """The commit, the files of it that are the adapter, and the annotations that tell of it."""
        reference = self._reference
        with self._told(""):
            listing = self._listing()
            commit = str(listing.sha)
            if not _COMMIT.fullmatch(commit):
                raise ValueError(f"it names no commit, but {commit[:80]!r}")
            files = [_listed(one) for one in listing.siblings or ()]
        return commit, _chosen(reference, files), _annotations(self._api.endpoint, reference, commit, listing)

    def _listing(self) -> Any:
        ask = partial(self._api.model_info, revision=self._reference.revision, files_metadata=True)
        try:
            return ask(self._reference.repository, timeout=_LIST_SECONDS)
        except self._hub.errors.HTTPError as error:
            if isinstance(error, self._hub.errors.HfHubHTTPError):
                raise
            # It kept a connection that the hub has closed meanwhile, or the network stumbled.
            return ask(self._reference.repository, timeout=_LIST_SECONDS)

    def download(self, one: _Listed, commit: str, counter: ProgressCounter) -> Path:
        """A file, verified, where the cache has it."""
        for again in (False, True):  # the cache may have kept what is damaged
            with self._told(one.path):
                path = self._api.hf_hub_download(
                    self._reference.repository,
                    one.path,
                    revision=commit,
                    cache_dir=self._cache,
                    force_download=again,
                    tqdm_class=self._bar(one, counter),
                )
            found = Path(path).resolve()
            if one.is_whole(found):
                return found
        raise HubError(f"{self._reference}: {one.path}: has other bytes than the hub lists for commit {commit}")

    def _bar(self, one: _Listed, counter: ProgressCounter) -> type:
        """What it takes for its progress bar: passes the bytes on, and ends a download that has too many."""
        base: Any = self._hub.utils.tqdm
        too_many = HubError(
            f"{self._reference}: {one.path}: it sends more than the {one.size_bytes} bytes that it lists"
        )

        class Bar(base):  # type: ignore[misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                self._done = int(options.get("initial") or 0)
                super().__init__(*arguments, **{**options, "disable": True})

            def update(self, count: float | None = 1) -> None:
                self._done += int(count or 0)
                if self._done > one.size_bytes:
                    raise too_many
                counter.at(one.name, max(0, self._done))

            # What Xet's chunks are on the wire, compressed: told by itself, and nobody's concern here.
            def update_transfer(self, count: float) -> None: ...
            def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None: ...

        return Bar

    @contextmanager
    def _told(self, file: str) -> Iterator[None]:
        """Turns what it raises into errors that name the repository, the revision and the file."""
        errors = self._hub.errors
        where = f"{self._reference}: {file}" if file else str(self._reference)
        try:
            yield
        except errors.GatedRepoError as error:
            raise HubRefused(f"{where}: gated: accept its terms on its page, and give HF_TOKEN") from error
        except errors.RepositoryNotFoundError as error:
            raise HubNotFound(f"{where}: no such repository, or a private one that HF_TOKEN does not open") from error
        except errors.RevisionNotFoundError as error:
            raise HubNotFound(f"{where}: no such revision") from error
        except errors.OfflineModeIsEnabled as error:
            raise HubError(f"{where}: HF_HUB_OFFLINE is set") from error
        except errors.LocalEntryNotFoundError as error:  # it looked in its cache after the hub had failed
            raise self._failed(where, error.__cause__ or error) from error
        except errors.EntryNotFoundError as error:
            raise HubNotFound(f"{where}: no such file") from error
        except (errors.HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._failed(where, error) from error

    def _failed(self, where: str, error: BaseException) -> HubError:
        if isinstance(error, self._hub.errors.HfHubHTTPError):
            status = error.response.status_code
            return (HubRefused if status in (401, 403) else HubError)(f"{where}: it answered {status}")
        reason = ascii(" ".join(str(error).split())[:300])[1:-1]
        return HubError(f"{where}: {reason or type(error).__name__}")


def _library() -> Any:
    try:
        hub = importlib.import_module("huggingface_hub")
        for part in ("errors", "utils"):
            importlib.import_module(f"huggingface_hub.{part}")
    except ImportError as error:
        raise HubError(f"{SCHEME} needs huggingface_hub: pip install 'hotshoe[hub]' ({error})") from None
    return hub


def _listed(sibling: Any) -> _Listed:
    sha256 = "" if sibling.lfs is None else str(sibling.lfs.sha256)
    git_id, size = str(sibling.blob_id or ""), sibling.size
    return _Listed(str(sibling.rfilename), size if type(size) is int else -1, sha256, git_id)


def _chosen(reference: HubReference, listed: Sequence[_Listed]) -> list[_Listed]:
    """The files that are an adapter, PEFT's or AdapterHub's, and a card if there is one. Never a pickle."""
    by_path = {one.path: one for one in listed}
    prefix = f"{reference.folder}/" if reference.folder else ""
    weights = WEIGHTS
    if prefix + WEIGHTS not in by_path and prefix + HUB_WEIGHTS in by_path:
        weights = HUB_WEIGHTS
    for name in (CONFIG, weights):
        if prefix + name not in by_path:
            pickles = [pickle for pickle in _PICKLES if prefix + pickle in by_path]
            hint = f"; {pickles[0]} is a pickle, which can run code and is never read" if pickles else ""
            raise HubNotFound(f"{reference}: {prefix + name}: not in the repository{hint}")
    names = [CONFIG, weights]
    if weights == HUB_WEIGHTS:  # a head is refused once it is seen, and its interface is optional
        names += [name for name in (HUB_INTERFACE, HUB_HEAD) if prefix + name in by_path]
    cards = [path for path in (prefix + CARD, CARD) if path in by_path]
    chosen = [by_path[path] for path in (*(prefix + name for name in names), *cards[:1])]
    for one in chosen:
        if one.size_bytes < 0 or not (one.sha256 or one.git_id):
            raise HubError(f"{reference}: {one.path}: the hub lists no size or no hash of it")
    return chosen


def _annotations(endpoint: str, reference: HubReference, commit: str, listing: Any) -> dict[str, str]:
    url = urlsplit(endpoint)
    source = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/{reference.repository}"
    if reference.folder:
        source += f"/tree/{commit}/{reference.folder}"
    annotations = {SOURCE: source, REVISION: commit}
    license = getattr(listing.card_data, "license", None)
    if isinstance(license, str) and _LICENSE.fullmatch(license):
        annotations[LICENSES] = license
    return annotations
