"""Out of one server and into another: equal digests, equal answers, and forms that the real tools read."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_directories import tiny_model, write_tiny_model
from peft_adapters import write_lora
from safetensors.numpy import load_file
from scripted_server import ScriptedServer
from typer.testing import CliRunner

from hotshoe.clients import Client, DataLoss, FailedPrecondition
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.clients.errors import InvalidLayout
from hotshoe.clients.exchange.exports import FORMATS, SOURCE_DIGEST, CannotExport, export
from hotshoe.clients.exchange.imports import import_adapter
from hotshoe.clients.exchange.layout import MANIFEST_TYPE
from hotshoe.clients.local_server import LocalServer
from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import Policy

CHAT = [{"role": "user", "content": "hi"}]
KEY = PrivateKey.new()
POLICY = Policy.of_keys({KEY.public.key_id: KEY.public})

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")
needs_umoci = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed (apt: umoci)")


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.grpc) as connected:
        yield connected


def other_server(root: Path, base: Path) -> LocalServer:
    """One with a registry of its own, and nothing in it."""
    free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--device", "cpu", "--threads", "1"]
    arguments = ["--base", str(base), "--registry", str(root / "registry"), "--backend", "reference", *free]
    return LocalServer(arguments, root / "server.log")


def tool(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=250, text=True).stdout


def tokens(client: Client, reference: str) -> list[int]:
    answer = client.generate(CHAT, adapters=reference, max_new_tokens=12, ignore_eos=True)
    return [token.token_id for token in answer.completions[0].tokens]


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def hotshoe(server: str, *words: str | Path, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(command_line(), list(map(str, words)), env={"HOTSHOE_SERVER": server})
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def test_an_adapter_goes_to_another_registry_with_its_digest_its_answers_and_its_signature(
    server: LocalServer, client: Client, adapters: dict[str, Path], tmp_path: Path
) -> None:
    directory = shutil.copytree(adapters["amber"], tmp_path / "amber")
    (directory / "README.md").write_text("# amber\n")
    published = client.publish_directory(directory, "goes/amber", tags=["v1"], annotations={"team": "Grün"}).adapter
    client.sign("goes/amber:v1", KEY)
    client.attach("goes/amber:v1", b"{}", artifact_type="text/eval", file_name="eval.json", annotations={"a": "b"})
    expected = tokens(client, "goes/amber:v1")
    assert expected != tokens(client, [])  # type: ignore[arg-type]
    for form in ("oci", "oci-archive"):
        hotshoe(server.grpc, "export", "goes/amber:v1", tmp_path / form, "--format", form)
    with other_server(tmp_path, adapters[""]) as fresh, Client(fresh.grpc) as other:
        out, err = hotshoe(fresh.grpc, "import", tmp_path / "oci", "came/amber:v2")
        assert out.startswith("imported came/amber:v2") and "with 2 documents" in out and err == ""
        came = other.get_adapter("came/amber:v2")
        assert (came.digest, dict(came.annotations)) == (published.digest, dict(published.annotations))
        assert tokens(other, "came/amber:v2") == expected
        assert other.verify("came/amber:v2", POLICY).key_ids == (KEY.public.key_id,)
        went = client.get_adapter("goes/amber:v1")
        said = [
            [one for one in adapter.referrers if one.document.file_name != "doctor.json"] for adapter in (went, came)
        ]
        assert said[0] == said[1] and len(said[0]) == 2  # manifests and all
        again = import_adapter(other, tmp_path / "oci-archive", "came/amber")
        assert not again.created and not again.is_another and again.adapter.digest == published.digest


def test_a_directory_has_the_files_and_nothing_else(client: Client, adapters, tmp_path: Path) -> None:
    adapter = client.publish_directory(adapters["birch"], "plain").adapter
    export(client, "plain", tmp_path / "new" / "plain", form="dir")
    written = files_of(tmp_path / "new" / "plain")
    assert set(written) == {blob.file_name for blob in adapter.blobs} and os.listdir(tmp_path / "new") == ["plain"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert written[name] == (adapters["birch"] / name).read_bytes()
    assert (tmp_path / "new" / "plain").stat().st_mode & 0o777 == 0o777 & ~_umask()
    imported = import_adapter(client, tmp_path / "new" / "plain", "plain", tag="again")
    assert imported.adapter.digest == adapter.digest and not imported.created


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@needs_skopeo
@needs_umoci
@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_skopeo_and_umoci_read_the_layout_with_the_same_digests(
    client: Client, adapters, tmp_path: Path, form: str
) -> None:
    adapter = client.publish_directory(adapters["amber"], "tools/amber", tags=["v1"]).adapter
    client.sign("tools/amber:v1", KEY)
    export(client, "tools/amber:v1", tmp_path / "out", form=form)
    source = f"{form}:{tmp_path / 'out'}:tools/amber:v1"
    raw = tool("skopeo", "inspect", "--raw", source)
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == adapter.digest
    tool("skopeo", "copy", "--insecure-policy", source, f"dir:{tmp_path / 'copy'}")
    for blob in adapter.blobs:
        data = (tmp_path / "copy" / blob.digest.removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob.digest
    if form == "oci":
        assert tool("umoci", "ls", "--layout", tmp_path / "out").split() == ["tools/amber:v1"]
        listed = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
        assert all(one["annotations"]["dev.hotshoe.subject"] == adapter.digest for one in listed[1:])
        tool("umoci", "gc", "--layout", tmp_path / "out")
        kinds = [one["artifactType"] for one in listed[1:]]  # whoever else has said something of these bytes
        documents = import_adapter(client, tmp_path / "out", "tools/amber").documents
        assert "application/vnd.dev.sigstore.bundle.v0.3+json" in kinds
        # gc left them all; the server here makes a diagnosis of its own.
        assert documents == len(kinds) - kinds.count("application/vnd.hotshoe.intruder.v1+json")


@needs_umoci
def test_umoci_unpacks_the_modelcar(client: Client, adapters, tmp_path: Path) -> None:
    adapter = client.publish_directory(adapters["amber"], "cars/amber", tags=["v1"]).adapter
    for name in ("car", "same"):
        export(client, "cars/amber:v1", tmp_path / name, form="modelcar")
    assert files_of(tmp_path / "car") == files_of(tmp_path / "same")
    tool("umoci", "unpack", "--rootless", "--image", f"{tmp_path / 'car'}:v1", tmp_path / "bundle")
    models = tmp_path / "bundle" / "rootfs" / "models"
    assert set(files_of(tmp_path / "bundle" / "rootfs")) == {f"models/{blob.file_name}" for blob in adapter.blobs}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (models / name).read_bytes() == (adapters["amber"] / name).read_bytes()
    assert load_file(models / "adapter_model.safetensors")
    [listed] = json.loads((tmp_path / "car" / "index.json").read_bytes())["manifests"]
    manifest = json.loads(
        (tmp_path / "car" / "blobs" / "sha256" / listed["digest"].removeprefix("sha256:")).read_bytes()
    )
    assert manifest["annotations"] == {SOURCE_DIGEST: adapter.digest}


@needs_skopeo
def test_skopeo_takes_the_modelcar_for_an_ordinary_image(client: Client, adapters, tmp_path: Path) -> None:
    client.publish_directory(adapters["amber"], "cars/plain", tags=["v1"])
    export(client, "cars/plain:v1", tmp_path / "car", form="modelcar")
    seen = json.loads(tool("skopeo", "inspect", f"oci:{tmp_path / 'car'}:v1"))
    assert seen["Os"] == "linux" and len(seen["Layers"]) == 3
    with pytest.raises(InvalidLayout, match=r"car: it holds no adapter .* there is 'v1'; a modelcar has no way back"):
        import_adapter(client, tmp_path / "car", "cars/back")


def test_ollama_gets_the_files_and_two_lines(client: Client, adapters, tmp_path: Path) -> None:
    base = client.publish_directory(adapters["amber"], "llama").adapter.base_model
    export(client, "llama", tmp_path / "ollama", form="ollama")
    assert (tmp_path / "ollama" / "Modelfile").read_text() == f"FROM {base}\nADAPTER .\n"
    assert "adapter_model.safetensors" in files_of(tmp_path / "ollama")
    client.publish_directory(adapters["cedar"], "llama-ia3")
    with pytest.raises(CannotExport, match="LORA only, this one is IA3"):
        export(client, "llama-ia3", tmp_path / "ia3", form="ollama")
    scaled = write_lora(tmp_path / "scaled", tiny_model(), rank=4, use_rslora=True, alpha_pattern={"q_proj": 2})
    client.publish_directory(scaled, "llama-scaled")
    with pytest.raises(CannotExport, match="would drop its use_rslora, alpha_pattern"):
        export(client, "llama-scaled", tmp_path / "dora", form="ollama")
    assert sorted(os.listdir(tmp_path)) == ["ollama", "scaled"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_there_already_is_left_alone(client: Client, adapters, tmp_path: Path, form: str) -> None:
    client.publish_directory(adapters["amber"], "there")
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="target"):
        export(client, "there", target, form=form)
    assert files_of(tmp_path) == {"target/mine": b"mine"}
    (target / "mine").unlink()
    if form == "oci-archive":
        with pytest.raises(FileExistsError):
            export(client, "there", target, form=form)
    else:
        export(client, "there", target, form=form)
        assert files_of(target)


def test_a_reference_by_digest_gets_a_name_that_tools_take(client: Client, adapters, tmp_path: Path) -> None:
    adapter = client.publish_directory(adapters["delta"], "bydigest", tags=[]).adapter
    export(client, f"bydigest@{adapter.digest}", tmp_path / "out", form="oci")
    [first, *_] = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
    assert first["annotations"] == {"org.opencontainers.image.ref.name": f"bydigest:{adapter.digest[7:19]}"}


def test_a_document_that_the_server_refuses_is_told_and_left(
    server: LocalServer, client: Client, adapters, tmp_path: Path
) -> None:
    adapter = client.publish_directory(adapters["amber"], "refused").adapter
    export(client, "refused", tmp_path / "out", form="oci")
    writer, index = tmp_path / "out" / "blobs" / "sha256", tmp_path / "out" / "index.json"

    def add(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (writer / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    layer = add(b'{"mediaType":"a certificate\'s"}') | {"annotations": {"org.opencontainers.image.title": "x.json"}}
    manifest = {"artifactType": kind, "config": add(b"{}"), "layers": [layer], "subject": {"digest": adapter.digest}}
    listed = json.loads(index.read_bytes())
    listed["manifests"].append(add(json.dumps(manifest).encode()) | {"mediaType": MANIFEST_TYPE, "artifactType": kind})
    index.write_text(json.dumps(listed))
    out, err = hotshoe(server.grpc, "import", tmp_path / "out", "refused:again")
    assert out.startswith("already there refused:again") and "was left behind" in err and "document: " in err


def test_a_chain_of_parents_comes_back_with_digests_lineage_signatures_and_reports(
    server: LocalServer, client: Client, adapters, tmp_path: Path
) -> None:
    for name in ("amber", "birch"):
        client.publish_directory(adapters[name], f"parents/{name}")
    client.merge_adapters(["parents/amber", "parents/birch"], "parents/both")
    merged = client.merge_adapters([("parents/both", 0.5), ("parents/amber", 2)], "parents/twice").adapter
    client.sign("parents/twice", KEY)
    client.report("parents/twice", {"metrics": {"accuracy": 0.75}})
    names = ("amber", "birch", "both", "twice")
    for name in names:
        export(client, f"parents/{name}", tmp_path / name, form="oci-archive" if name == "both" else "oci")
    expected = tokens(client, "parents/twice")
    with other_server(tmp_path, adapters[""]) as fresh, Client(fresh.grpc) as other:
        out, err = hotshoe(fresh.grpc, "import", tmp_path / "twice", "came/twice", "--json")
        imported = json.loads(out)
        assert imported["original_digest"] == merged.digest == imported["adapter"]["digest"] and err == ""
        assert imported["documents"] == 2 and imported["created"]
        [(parent, _), *_] = [(one.digest, one.weight) for one in merged.parents]
        assert list(other.lineage("came/twice").missing_digests)[0] == parent  # until they come, too
        for name in names[:-1]:
            assert not import_adapter(other, tmp_path / name, f"came/{name}").is_another
        came, went = other.lineage("came/twice"), client.lineage("parents/twice")
        assert [one.digest for one in came.ancestors] == [one.digest for one in went.ancestors]
        assert not came.missing_digests and came.adapter.recipe == went.adapter.recipe != ""
        assert tokens(other, "came/twice") == expected
        assert other.verify("came/twice", POLICY).key_ids == (KEY.public.key_id,)
        drawn, _ = hotshoe(fresh.grpc, "lineage", "came/twice")
        assert "[accuracy 0.75]" in drawn.splitlines()[0] and "0.5 × came/both" in drawn
        # And on from there: what was imported is exported as it came.
        export(other, "came/twice", tmp_path / "on", form="oci")
        on = import_adapter(client, tmp_path / "on", "parents/twice")
        assert not on.created and on.adapter.digest == merged.digest and on.documents == 2


def test_what_only_says_that_it_is_ours_is_not_taken_as_it_stands(client: Client, adapters, tmp_path: Path) -> None:
    client.publish_directory(adapters["amber"], "forged", tags=["v1"])
    export(client, "forged:v1", tmp_path / "out", form="oci")
    index = tmp_path / "out" / "index.json"
    listed = json.loads(index.read_bytes())
    [one] = [one for one in listed["manifests"] if "ref.name" in str(one)]
    blobs = tmp_path / "out" / "blobs" / "sha256"
    manifest = json.loads((blobs / one["digest"][7:]).read_bytes())
    manifest["annotations"]["dev.hotshoe.adapter.rank"] = "3"
    data = json.dumps(manifest).encode()
    one |= {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    (blobs / one["digest"][7:]).write_bytes(data)
    index.write_text(json.dumps(listed | {"manifests": [one]}))
    imported = import_adapter(client, tmp_path / "out", "forged", tag="again")
    assert imported.is_another and imported.adapter.rank == 4 and imported.documents == 0


def test_an_adapter_of_another_base_is_refused_unless_it_is_meant(
    client: Client, adapters, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client.publish_directory(adapters["amber"], "based")
    export(client, "based", tmp_path / "based", form="oci")
    write_tiny_model(tmp_path / "base", seed=77)
    with other_server(tmp_path, tmp_path / "base") as fresh, Client(fresh.grpc) as other:
        with pytest.raises(FailedPrecondition, match="base"):
            import_adapter(other, tmp_path / "based", "based")
        imported = import_adapter(other, tmp_path / "based", "based", other_base=True)
        assert imported.created and imported.is_another


def test_a_source_that_is_nothing_sends_nothing(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"nothing")
    hotshoe(server.grpc, "import", tmp_path / "empty", "nothing", code=5)
    hotshoe(server.grpc, "import", tmp_path / "file", "nothing", code=5)
    hotshoe(server.grpc, "import", tmp_path / "nowhere", "nothing", code=1)
    hotshoe(server.grpc, "export", "nothing", tmp_path / "out", code=4)
    hotshoe(server.grpc, "export", "nothing", tmp_path / "out", "--format", "zip", code=2)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


@pytest.mark.parametrize(("lie", "why"), [("files", "other files"), ("no config", "without a config")])
def test_a_server_that_lies_is_found_out_and_leaves_nothing(
    scripted: ScriptedServer, tmp_path: Path, lie: str, why: str
) -> None:
    data = b"weights"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    named = {"org.cncf.model.filepath": "adapter_model.safetensors"}
    layers = [{"digest": digest, "size": len(data), "annotations": named}] * (lie == "no config")
    manifest = json.dumps({"layers": layers}).encode()
    blob = registry_pb2.Blob(file_name="adapter_model.safetensors", digest=digest, size_bytes=len(data))
    about = registry_pb2.Adapter(name="a", digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}", blobs=[blob])

    def sent(requests: list[Any]) -> list[Any]:
        return [registry_pb2.DownloadBlobResponse(data=data if requests[0].digest == digest else manifest)]

    scripted.answer("RegistryService/GetAdapter", registry_pb2.GetAdapterResponse(adapter=about))
    scripted.answer("RegistryService/DownloadBlob", sent)
    with Client(scripted.address) as client, pytest.raises(DataLoss, match=why):
        export(client, "a", tmp_path / "out", form="oci")
    assert os.listdir(tmp_path) == []
