"""Signing against a server with a policy: who is served, who is refused, and what a client verifies by itself."""

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer
from signing_policies import rule, write_policy
from typer.testing import CliRunner

from hotshoe.clients import AsyncClient, Client, DataLoss, FailedPrecondition, InvalidArgument
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.clients.local_server import LocalServer, ServerDidNotStart
from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.referrer import DIAGNOSIS_TYPE
from hotshoe.registry.signing.bundle import BUNDLE_TYPE, sign
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import Policy

FIRST, SECOND, STRANGER = PrivateKey.new(), PrivateKey.new(), PrivateKey.new()
TEXT = rule("prod/*", "require", threshold=2) + rule("test/*", "warn") + rule("*", "off")
CHAT = [{"role": "user", "content": "hi"}]


def arguments(base: Path, root: Path) -> list[str]:
    free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--device", "cpu", "--threads", "1"]
    paths = [
        "--base",
        str(base),
        "--registry",
        str(root / "registry"),
        "--policy",
        str(root / "policy" / "policy.toml"),
    ]
    return [*paths, *free, "--backend", "reference"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signing")


@pytest.fixture(scope="module")
def guarded(adapters: dict[str, Path], root: Path) -> Iterator[LocalServer]:
    """A server whose policy has three kinds of names."""
    write_policy(root / "policy", TEXT, FIRST, SECOND)
    with LocalServer(arguments(adapters[""], root), root / "server.log") as running:
        yield running


@pytest.fixture
def client(guarded: LocalServer) -> Iterator[Client]:
    with Client(guarded.grpc) as connected:
        yield connected


def publish(client: Client, directory: Path, name: str) -> registry_pb2.Adapter:
    return client.publish_directory(directory, name).adapter


def answer(client: Client, *names: str) -> list[str]:
    return [adapter.digest for adapter in client.generate(CHAT, adapters=list(names), max_new_tokens=2).adapters]


def test_an_unsigned_adapter_is_stored_and_refused_until_it_is_signed(client: Client, adapters) -> None:
    adapter = publish(client, adapters["amber"], "prod/amber")
    assert adapter.verification.mode == registry_pb2.Verification.MODE_REQUIRE
    assert adapter.verification.threshold == 2 and "none there" in adapter.verification.problem
    assert client.get_adapter("prod/amber").verification == adapter.verification
    for use in (
        lambda: answer(client, "prod/amber"),
        lambda: answer(client, f"prod/amber@{adapter.digest}"),
        lambda: client.score(CHAT, ["a", "b"], adapters="prod/amber"),
        lambda: list(client.stream(CHAT, adapters="prod/amber", max_new_tokens=2)),
        lambda: client.load("prod/amber"),
        lambda: client.load("prod/amber", tier="host"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            use()
        assert caught.value.reason == "SIGNATURES_MISSING"
        for part in (f"prod/amber@{adapter.digest}", '"prod/*"', "2 of the keys", FIRST.public.key_id):
            assert part in caught.value.message
    client.sign("prod/amber", FIRST)
    client.sign("prod/amber", FIRST)
    client.sign("prod/amber", STRANGER)
    with pytest.raises(FailedPrecondition, match="1 there"):
        answer(client, "prod/amber")
    signed = client.sign("prod/amber", SECOND)
    assert signed.subject == adapter.digest and signed.referrer.artifact_type == BUNDLE_TYPE
    assert answer(client, "prod/amber") == [adapter.digest]
    assert client.load("prod/amber").digest == adapter.digest
    verification = client.get_adapter("prod/amber").verification
    assert set(verification.key_ids) == {FIRST.public.key_id, SECOND.public.key_id} and verification.problem == ""


def test_an_adapter_in_memory_is_not_served_under_a_name_that_asks_for_more(client: Client, adapters) -> None:
    digest = publish(client, adapters["birch"], "dev/birch").digest
    assert answer(client, "dev/birch") == [digest]
    assert publish(client, adapters["birch"], "prod/birch").digest == digest
    with pytest.raises(FailedPrecondition, match="prod/birch"):
        answer(client, "prod/birch")
    with pytest.raises(FailedPrecondition, match="prod/birch"):
        answer(client, "dev/birch", "prod/birch")
    assert answer(client, "dev/birch") == [digest]


def test_a_warning_is_logged_once_for_a_digest(client: Client, guarded: LocalServer, adapters, root: Path) -> None:
    digest = publish(client, adapters["cedar"], "test/cedar").digest
    for _ in range(3):
        assert answer(client, "test/cedar") == [digest]
    lines = [line for line in (root / "server.log").read_text().splitlines() if "unsigned" in line]
    assert len(lines) == 1 and digest in lines[0] and "test/*" in lines[0]


def test_a_revoked_key_ends_what_it_had_allowed_without_a_restart(client: Client, adapters, root: Path) -> None:
    digest = publish(client, adapters["delta"], "prod/delta").digest
    client.sign("prod/delta", FIRST)
    client.sign("prod/delta", SECOND)
    assert answer(client, "prod/delta") == [digest]
    write_policy(root / "policy", f'revoked = ["{FIRST.public.key_id}"]\n{TEXT}', FIRST, SECOND)
    try:
        deadline = time.monotonic() + 100
        with pytest.raises(FailedPrecondition, match="is revoked"):
            while time.monotonic() < deadline:
                answer(client, "prod/delta")
                time.sleep(0.1)
    finally:
        write_policy(root / "policy", TEXT, FIRST, SECOND)
    deadline = time.monotonic() + 100
    while client.get_adapter("prod/delta").verification.problem:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer(client, "prod/delta") == [digest]


def test_a_server_does_not_start_on_a_policy_that_it_cannot_follow(adapters, tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", rule("*", "require"))
    with (
        pytest.raises(ServerDidNotStart, match="expected one key"),
        LocalServer(arguments(adapters[""], tmp_path), tmp_path / "log"),
    ):
        raise AssertionError("it started")


def test_what_is_attached_is_checked(client: Client, adapters) -> None:
    digest = publish(client, adapters["amber"], "dev/attached").digest
    attached = client.attach(
        "dev/attached", b"{}", artifact_type="text/eval", file_name="eval.json", annotations={"a": "b"}
    )
    assert client.read_blob(attached.referrer.document.digest) == b"{}"
    # The doctor's report may have come before it, after it, or not yet.
    assert attached.referrer in client.get_adapter("dev/attached").referrers and attached.subject == digest
    right: dict[str, Any] = {"document": b"{}", "artifact_type": "text/eval", "file_name": "eval.json"}
    for field, change in {
        "artifact_type": {"artifact_type": DIAGNOSIS_TYPE},
        "file_name": {"file_name": "a/b"},
        "document": {"artifact_type": BUNDLE_TYPE, "document": sign(f"sha256:{'0' * 64}", FIRST)},
    }.items():
        with pytest.raises(InvalidArgument) as caught:
            client.attach("dev/attached", **(right | change))
        assert [violation.field for violation in caught.value.field_violations] == [field]


def test_a_client_verifies_by_itself(client: Client, guarded: LocalServer, adapters) -> None:
    publish(client, adapters["amber"], "dev/verified")
    mine = PrivateKey.new()
    policy = Policy.of_keys({mine.public.key_id: mine.public})
    assert not client.verify("dev/verified", policy).is_met

    async def sign_and_verify() -> bool:
        async with AsyncClient(guarded.grpc) as twin:
            await twin.sign("dev/verified", mine)
            attached = await twin.attach("dev/verified", b"x", artifact_type="text/x", file_name="x")
            assert await twin.read_blob(attached.referrer.document.digest) == b"x"
            return (await twin.verify("dev/verified", policy)).is_met

    assert asyncio.run(sign_and_verify()) and client.verify("dev/verified", policy).is_met


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("size", "other files than the manifest"),
        ("name", "other files than the manifest"),
        ("not json", "other files than the manifest"),
        ("another manifest", "another digest"),
        ("endless", "more than"),
    ],
)
def test_a_server_that_lies_is_found_out(scripted: ScriptedServer, lie: str, why: str) -> None:
    blob = registry_pb2.Blob(file_name="adapter_model.safetensors", digest=f"sha256:{'1' * 64}", size_bytes=3)
    named = {"org.cncf.model.filepath": blob.file_name}
    manifest = json.dumps({"layers": [{"digest": blob.digest, "size": 3, "annotations": named}]}).encode()
    truth = {"not json": b"[" * 9999, "endless": b" " * (5 << 20)}.get(lie, manifest)
    sent = truth + b" " if lie == "another manifest" else truth
    blob.size_bytes += lie == "size"
    blob.file_name = "README.md" if lie == "name" else blob.file_name
    adapter = registry_pb2.Adapter(name="a", digest=f"sha256:{hashlib.sha256(truth).hexdigest()}", blobs=[blob])
    scripted.answer("RegistryService/GetAdapter", registry_pb2.GetAdapterResponse(adapter=adapter))
    parts = [registry_pb2.DownloadBlobResponse(data=sent[at : at + (1 << 20)]) for at in range(0, len(sent), 1 << 20)]
    scripted.answer("RegistryService/DownloadBlob", parts)
    with Client(scripted.address) as client, pytest.raises(DataLoss, match=why):
        client.verify("a", Policy.of_keys({FIRST.public.key_id: FIRST.public}))


class Shell:
    """Runs `hotshoe` against one server."""

    def __init__(self, server: str) -> None:
        self.server = server

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        result = CliRunner().invoke(command_line(), list(map(str, words)), env={"HOTSHOE_SERVER": self.server})
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout + result.stderr


def test_what_may_not_be_served_has_no_view_until_it_is_signed(client: Client, adapters, root: Path) -> None:
    own = {"test": "views"}  # a digest of its own: what is signed here is signed under every name
    adapter = client.publish_directory(adapters["birch"], "prod/viewed", annotations=own).adapter
    views = root / "registry" / "views"
    for reference in ("prod/viewed", f"prod/viewed@{adapter.digest}"):
        with pytest.raises(FailedPrecondition, match="asks for signatures"):
            client.view(reference)
    assert adapter.digest[7:] not in {path.name for path in views.iterdir()} and not client.unview("prod/viewed")
    client.sign("prod/viewed", FIRST)
    client.sign("prod/viewed", SECOND)
    assert Path(client.view("prod/viewed").path).parent == views and client.unview("prod/viewed")


def test_the_verbs_make_a_key_sign_and_verify(guarded: LocalServer, adapters, tmp_path: Path, root: Path) -> None:
    hotshoe = Shell(guarded.grpc)
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    key_id = json.loads(hotshoe("key", "new", mine, "--json"))["key_id"]
    hotshoe("key", "new", other)
    assert mine.stat().st_mode & 0o777 == 0o600
    before = mine.read_bytes()
    hotshoe("key", "new", mine, code=1)
    assert mine.read_bytes() == before
    shown = hotshoe("key", "show", mine, f"{mine}.pub")
    assert shown.count(key_id) == 2
    assert "not served yet" in hotshoe("publish", adapters["cedar"], "prod/verbs")
    digest = json.loads(hotshoe("show", "prod/verbs", "--json"))["digest"]
    assert "require: " in hotshoe("show", "prod/verbs")
    assert "expected signatures by 1 of the keys" in hotshoe("verify", "prod/verbs", "--key", f"{mine}.pub", code=5)
    assert hotshoe("sign", "prod/verbs", "--key", mine).split() == ["signed", digest, "by", key_id]
    assert f"signed by {key_id}" in hotshoe("verify", "prod/verbs", "--key", f"{mine}.pub", "--key", f"{other}.pub")
    two = ("verify", "prod/verbs", "--key", f"{mine}.pub", "--key", f"{other}.pub", "--threshold", "2")
    hotshoe(*two, code=5)
    hotshoe("sign", "prod/verbs", "--key", other)
    verified = json.loads(hotshoe(*two, "--json"))
    assert verified["verified"] and len(verified["key_ids"]) == 2 and verified["digest"] == digest
    hotshoe("verify", "prod/verbs", "--policy", root / "policy" / "policy.toml", code=5)
    hotshoe("publish", adapters["birch"], "dev/anybody")
    assert "no signature asked for" in hotshoe("verify", "dev/anybody", "--policy", root / "policy" / "policy.toml")
    hotshoe("verify", "prod/verbs", code=2)
    hotshoe("verify", "prod/verbs", "--key", mine, code=2)  # a private one
    hotshoe("sign", "prod/verbs", "--key", f"{mine}.pub", code=2)
    hotshoe("sign", "prod/verbs", "--key", tmp_path / "nowhere", code=1)
    hotshoe("sign", "nowhere", "--key", mine, code=4)
    assert "BEGIN" not in hotshoe("sign", "prod/verbs", "--key", mine, "--json")
