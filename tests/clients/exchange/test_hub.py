"""From a Hugging Face hub to a server of ours, by the real huggingface_hub; and hubs that lie, break or refuse."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_proxy import Answer, Fault, FaultProxy, endless, position_of
from hub_adapters import FIXTURES
from hub_server import HubServer, Repository
from store_adapters import lora_files

from hotshoe.clients import Client
from hotshoe.clients.adapter_files import CARD, CONFIG, HUB_HEAD, HUB_WEIGHTS, WEIGHTS, scan_directory
from hotshoe.clients.errors import HubError, HubNotFound, HubRefused, InvalidAdapterDirectory
from hotshoe.clients.exchange.hub import LICENSES, REVISION, SOURCE, HubReference, _Listed, _Repository, fetch
from hotshoe.clients.exchange.imports import import_adapter
from hotshoe.clients.local_server import LocalServer
from hotshoe.clients.progress import ProgressCounter, TransferProgress

TOKEN = "hf_of_these_tests"
FILES = lora_files(1) | {CARD: b"# one\n", "adapter_model.bin": b"a pickle", "optimizer.safetensors": b"no adapter's"}
MAIN = HubReference("org/one", "main", "")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    folder = {f"checkpoint-1/{name}": data for name, data in lora_files(2).items()}
    repositories = {
        "org/one": Repository({**FILES, **folder}, revisions=("main", "v1", "refs/pr/1"), card={"license": "mit"}),
        "org/private": Repository(lora_files(3), token=TOKEN),
        "org/gated": Repository(lora_files(4), token=TOKEN, gated=True),
        "org/pickled": Repository({name: FILES[name] for name in (CONFIG, "adapter_model.bin")}),
        "org/empty": Repository({"README.md": b"nothing"}),
        "org/bare": Repository(lora_files(5), lfs=()),
    }
    server = HubServer(repositories)
    yield server
    server.close()


@pytest.fixture
def get(hub: HubServer, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Fetches, and reads what is in the directory while it is there."""

    def get(text: str, **options: Any) -> dict[str, bytes]:
        options = {"endpoint": hub.endpoint, "cache": tmp_path / "cache", **options}
        with fetch(HubReference.parse(text), **options) as found:
            return {path.name: path.read_bytes() for path in found.directory.iterdir()}

    return get


def test_only_an_adapters_files_are_fetched_and_the_commit_is_told(hub: HubServer, tmp_path: Path) -> None:
    hub.requests.clear()
    steps: list[TransferProgress] = []
    with fetch(MAIN, endpoint=hub.endpoint, cache=tmp_path, progress=steps.append) as found:
        assert {path.name: path.read_bytes() for path in found.directory.iterdir()} == {
            name: FILES[name] for name in (CONFIG, WEIGHTS, CARD)
        }
        assert found.commit == hub.repositories["org/one"].commit
        assert found.annotations == {
            SOURCE: f"{hub.endpoint}/org/one", REVISION: found.commit, LICENSES: "mit"
        }  # fmt: skip
    assert not found.directory.exists()
    fetched = {line.rpartition("/")[2] for line in hub.requests if line.startswith("GET /org")}
    assert fetched <= {CONFIG, WEIGHTS, CARD} and f"GET /org/one/resolve/{found.commit}/{CONFIG}" in hub.requests
    total = sum(len(FILES[name]) for name in (CONFIG, WEIGHTS, CARD))
    assert steps[-1] == TransferProgress("download", CARD, total, total)
    assert [step.completed_bytes for step in steps] == sorted(step.completed_bytes for step in steps)


def test_xets_progress_is_that_of_the_files_bytes(hub: HubServer) -> None:
    """As huggingface_hub tells it of Xet storage, where more or fewer bytes may travel than a file has."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    steps: list[TransferProgress] = []
    one = _Listed(WEIGHTS, 1000, "0" * 64, "")
    repository = _Repository(MAIN, endpoint=hub.endpoint, token=None, cache=None)
    bar = repository._bar(one, ProgressCounter("download", 1000, steps.append))
    with XetDownloadProgressReporter(reconstruction_desc="", total=1000, log_level=30, tqdm_class=bar) as reporter:
        for written, travelled in ((0, 900), (600, 1300), (1000, 1400)):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes_completed=written,
                    total_transfer_bytes_completed=travelled,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                    total_bytes=1000,
                )
            )
    assert [step.completed_bytes for step in steps] == [600, 1000]


def test_a_revision_and_a_folder_are_found(hub: HubServer, get: Callable[..., dict[str, bytes]]) -> None:
    commit = hub.repositories["org/one"].commit
    for revision in ("v1", "refs%2Fpr%2F1", commit):
        assert get(f"hf://org/one@{revision}")[WEIGHTS] == FILES[WEIGHTS]
    inner = lora_files(2)
    assert get("hf://org/one@v1/checkpoint-1/") == {**inner, CARD: FILES[CARD]}
    with fetch(HubReference.parse("hf://org/one/checkpoint-1"), endpoint=hub.endpoint) as found:
        assert found.annotations[SOURCE] == f"{hub.endpoint}/org/one/tree/{commit}/checkpoint-1"
    assert get("hf://org/bare") == lora_files(5)


def test_adapterhubs_files_are_fetched_and_a_head_is_seen_and_refused(
    hub: HubServer, get: Callable[..., dict[str, bytes]]
) -> None:
    files = {path.name: path.read_bytes() for path in (FIXTURES / "llama" / "houlsby").iterdir()}
    assert files.keys() >= {CONFIG, HUB_WEIGHTS}
    hub.repositories["hub/houlsby"] = Repository({**files, "pytorch_adapter.bin": b"a pickle"})
    assert get("hf://hub/houlsby") == {name: files[name] for name in files if name in (CONFIG, HUB_WEIGHTS, CARD)}
    hub.repositories["hub/headed"] = Repository({**files, HUB_HEAD: b"{}"})
    with fetch(HubReference.parse("hf://hub/headed"), endpoint=hub.endpoint) as found:
        with pytest.raises(InvalidAdapterDirectory, match=HUB_HEAD):
            scan_directory(found.directory)


@pytest.mark.parametrize(
    "text",
    ["hf://one", "hf://org/", "hf://org/one@", "hf://org/one@a b", "hf://org/one@..%2Fx", "hf://org/one/../two"]
    + ["hf://org/one//x", "hf:///one", "hf://../one", "hf://org/one@v1@v2", "hf://org/one/a\nb", "https://org/one"],
)
def test_what_is_no_reference_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not hf://ORG/NAME"):
        HubReference.parse(text)


@pytest.mark.parametrize(
    "text, error, words",
    [
        ("hf://org/none", HubNotFound, "hf://org/none@main: no such repository"),
        ("hf://org/private", HubNotFound, "hf://org/private@main: no such repository, or a private one"),
        ("hf://org/gated", HubRefused, f"hf://org/gated@main: {CONFIG}: gated: accept its terms"),
        ("hf://org/one@v9", HubNotFound, "hf://org/one@v9: no such revision"),
        ("hf://org/one@v1/checkpoint-2", HubNotFound, f"hf://org/one@v1/checkpoint-2: checkpoint-2/{CONFIG}: not in"),
        ("hf://org/empty", HubNotFound, f"{CONFIG}: not in the repository"),
        ("hf://org/pickled", HubNotFound, f"{WEIGHTS}: not in the repository; adapter_model.bin is a pickle"),
    ],
)
def test_what_is_not_to_be_had_is_told_by_name(
    get: Callable[..., dict[str, bytes]], text: str, error: type[HubError], words: str
) -> None:
    with pytest.raises(error, match=words):
        get(text)


def test_a_token_opens_what_is_private_or_gated(hub: HubServer, get: Callable[..., dict[str, bytes]]) -> None:
    for name, seed, error in (("org/private", 3, HubNotFound), ("org/gated", 4, HubRefused)):
        with pytest.raises(error, match=name):
            get(f"hf://{name}", token="hf_another")
        assert get(f"hf://{name}", token=TOKEN) == lora_files(seed)


def test_the_cache_serves_what_it_has_and_is_not_believed(
    hub: HubServer, get: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    whole = get("hf://org/one")
    hub.requests.clear()
    assert get("hf://org/one") == whole
    assert [line for line in hub.requests if "/resolve/" in line or "/lfs/" in line] == []
    [weights] = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    weights.resolve().write_bytes(b"?" * len(FILES[WEIGHTS]))
    assert get("hf://org/one") == whole, "what was damaged is fetched again"


# Hubs that lie or break.


def flipped(where: str) -> Fault:
    def fault(answer: Answer) -> None:
        at = position_of(where, len(answer.body))
        answer.write(answer.head() + answer.body[:at] + bytes([answer.body[at] ^ 4]) + answer.body[at + 1 :])

    return fault


def without_end(answer: Answer) -> None:
    answer.write(answer.head(Content_Length="", Transfer_Encoding="chunked"))
    for chunk in endless(b"10000\r\n" + b"x" * 65_536 + b"\r\n"):
        answer.write(chunk)


def lengthened(answer: Answer) -> None:
    answer.write(answer.head(Content_Length=str(len(answer.body) + 4)) + answer.body + b"more")


def shortened(answer: Answer) -> None:
    answer.write(answer.head(Content_Length=str(len(answer.body) - 1)) + answer.body[:-1])


def replaced(answer: Answer) -> None:
    body = lora_files(9)[WEIGHTS][: len(answer.body)].ljust(len(answer.body), b"x")
    answer.write(answer.head() + body)


def status(code: int, **headers: str) -> Fault:
    def fault(answer: Answer) -> None:
        answer.status, answer.headers = code, {"Content-Length": "0"}
        answer.write(answer.head(**headers))

    return fault


def listing(change: Callable[[Any], object]) -> Fault:
    def fault(answer: Answer) -> None:
        document = json.loads(answer.body)
        change(document)
        body = json.dumps(document).encode()
        answer.write(answer.head(Content_Length=str(len(body))) + body)

    return fault


def every(**fields: Any) -> Fault:
    return listing(lambda document: [sibling.update(fields) for sibling in document["siblings"]])


def stalled(answer: Answer) -> None:
    answer.write(answer.head() + answer.body[:100])
    answer.hold(200)


def garbled(answer: Answer) -> None:
    answer.write(answer.head(Content_Length="9") + b"{}garbled")


LIST, HEAD, CONFIG_GET, LFS = "GET /api/models", "HEAD /org", "GET /org", "GET /lfs"
FAULTS: dict[str, tuple[str, Fault]] = {
    **{f"weights flipped at the {where} byte": (LFS, flipped(where)) for where in ("first", "middle", "last")},
    **{f"config flipped at the {where} byte": (CONFIG_GET, flipped(where)) for where in ("first", "last")},
    "weights without end": (LFS, without_end),
    "config without end": (CONFIG_GET, without_end),
    "weights lengthened": (LFS, lengthened),
    "weights shortened": (LFS, shortened),
    "config shortened": (CONFIG_GET, shortened),
    "weights replaced": (LFS, replaced),
    "a status for weights": (LFS, status(503)),
    "no weights after all": (LFS, status(404)),
    "weights in a file": (HEAD, status(302, Location="file:///etc/passwd", ETag='"a"', X_Repo_Commit="b" * 40)),
    "no ETag": (HEAD, status(200, X_Repo_Commit="b" * 40)),
    "no commit": (HEAD, status(200, ETag='"a"')),
    "a lying size": (HEAD, lambda answer: answer.write(answer.head(X_Linked_Size="9", Content_Length="9"))),
    "a list that is garbled": (LIST, garbled),
    "a list of other hashes": (LIST, every(lfs={"sha256": "0" * 64, "size": 1, "pointerSize": 1}, blobId="0" * 40)),
    "a list of other sizes": (LIST, every(size=7)),
    "a list without sizes": (LIST, every(size=None)),
    "a list of no numbers": (LIST, every(size="9")),
    "a list without hashes": (LIST, every(lfs=None, blobId=None)),
    "a list of half an LFS file": (LIST, every(lfs={"sha256": "0" * 64})),
    "a list of no commit": (LIST, listing(lambda document: document.update(sha="../../etc"))),
    "a list without files": (LIST, listing(lambda document: document.update(siblings=None))),
    "a list that is refused": (LIST, status(403)),
    "a list that fails": (LIST, status(500)),
    "a list elsewhere": (LIST, status(307, Location="file:///etc/passwd")),
}


def first(method: str, prefix: str) -> Callable[[str, str], bool]:
    """Matches one request only."""
    left = [1]

    def matches(asked: str, path: str) -> bool:
        return asked == method and path.startswith(prefix) and bool(left) and bool(left.pop())

    return matches


@pytest.fixture(scope="module")
def proxy(hub: HubServer) -> Iterator[FaultProxy]:
    proxy = FaultProxy(hub.host)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_that_a_hub_spoils_is_given(proxy: FaultProxy, get: Callable[..., dict[str, bytes]], name: str) -> None:
    answer, fault = FAULTS[name]
    method, _, prefix = answer.partition(" ")
    proxy.spoil(lambda asked, path: asked == method and path.startswith(prefix), fault)
    started = time.monotonic()
    with pytest.raises(HubError, match="hf://org/one@main: ") as caught:
        get("hf://org/one", endpoint=f"http://{proxy.host}")
    assert str(caught.value).isprintable() and time.monotonic() - started < 100
    # huggingface_hub reads 10 MiB before it says so, and tries again; as much as sockets hold was under way.
    assert proxy.sent_bytes < 256 << 20
    proxy.pass_all()
    assert get("hf://org/one", endpoint=f"http://{proxy.host}")[WEIGHTS] == FILES[WEIGHTS], "nothing spoilt was kept"


def test_a_download_that_breaks_once_goes_on(proxy: FaultProxy, get: Callable[..., dict[str, bytes]]) -> None:
    proxy.spoil(first("GET", "/lfs"), lambda answer: answer.write(answer.head() + answer.body[:100]))
    assert get("hf://org/one", endpoint=f"http://{proxy.host}")[WEIGHTS] == FILES[WEIGHTS]
    proxy.pass_all()


def test_a_token_does_not_leave_the_hub(hub: HubServer, get: Callable[..., dict[str, bytes]]) -> None:
    hub.tokens.clear()
    weights = get("hf://org/private", token=TOKEN)[WEIGHTS]
    lfs = f"GET /lfs/{hashlib.sha256(weights).hexdigest()}"
    assert hub.tokens.pop(lfs) == "" and set(hub.tokens.values()) == {TOKEN}


# To a server.


def test_a_repository_is_imported_and_its_manifest_names_the_commit(
    server: LocalServer, adapters: dict[str, Path], tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in adapters["amber"].iterdir()}
    hub = HubServer({"org/amber": Repository(files, token=TOKEN, card={"license": "apache-2.0"})})
    stalls = FaultProxy(hub.host)
    stalls.spoil(first("GET", "/lfs"), stalled)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))},
        "HF_ENDPOINT": f"http://{stalls.host}",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HOTSHOE_SERVER": server.grpc,
    }

    def hotshoe(*arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-m", "hotshoe.clients.cli", *arguments]
        return subprocess.run(
            command, env={**environment, **changes}, capture_output=True, text=True, timeout=250, cwd=tmp_path
        )

    done = hotshoe("import", "hf://org/amber", "hub/amber:v1", "--json")
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    commit = hub.repositories["org/amber"].commit
    assert imported["created"] and imported["commit"] == commit
    with Client(server.grpc) as client:
        adapter = client.get_adapter("hub/amber:v1")
        assert adapter.annotations[REVISION] == commit and adapter.annotations[LICENSES] == "apache-2.0"
        assert adapter.annotations[SOURCE] == f"http://{stalls.host}/org/amber"
        assert {blob.file_name for blob in adapter.blobs} >= {CONFIG, WEIGHTS}
        with pytest.raises(ValueError, match="a reference picks"):
            import_adapter(client, "hf://org/amber", "hub/amber", reference="v1")
    assert any((tmp_path / "home" / "hub").rglob(WEIGHTS)), "the cache is where HF_HOME says"
    again = hotshoe("import", f"hf://org/amber@{commit}", "hub/again:v1")
    assert again.returncode == 0 and f"of commit {commit}" in again.stdout and adapter.digest in again.stdout
    for code, source, changes, words in (
        (4, "hf://org/amber", {"HF_TOKEN": ""}, "no such repository"),
        (1, "hf://org/amber", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (1, "hf://org/amber", {"HF_ENDPOINT": "http://127.0.0.1:1"}, "hf://org/amber@main: "),
        (2, "hf://amber", {}, "is not hf://ORG/NAME"),
    ):
        refused = hotshoe("import", source, "hub/none", **changes)
        assert refused.returncode == code and words in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1
    stalls.close()
    hub.close()


def test_without_huggingface_hub_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not here')")
    program = (
        "import sys; from hotshoe.clients.exchange.hub import HubReference, fetch\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "with fetch(HubReference('a/b', 'main', '')): pass"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "HubError: hf:// needs huggingface_hub: pip install 'hotshoe[hub]'" in done.stderr
