"""What a verb says is what happened."""

import json

from scripted_server import ScriptedServer
from typer.testing import CliRunner

from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2


def hotshoe(server: ScriptedServer, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command_line(), [*arguments, "--server", server.address])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout if code == 0 else result.stderr


def test_unload_says_whether_the_adapter_has_gone(scripted: ScriptedServer) -> None:
    def told(**outcome: bool) -> str:
        scripted.answer("ResidencyService/UnloadAdapter", residency_pb2.UnloadAdapterResponse(**outcome))
        return hotshoe(scripted, "unload", "poet")

    assert told(found=True) == "unloaded poet\n"
    assert told(found=True, in_use=True) == "poet is in use; unloaded once it is not\n"
    assert told() == "poet is not loaded\n"


def test_push_counts_what_the_remote_lacked(scripted: ScriptedServer) -> None:
    def step(digest: str, completed: int, total: int) -> registry_pb2.PushAdapterResponse:
        progress = registry_pb2.TransferProgress(digest=digest, completed_bytes=completed, total_bytes=total)
        return registry_pb2.PushAdapterResponse(progress=progress)

    done = registry_pb2.PushAdapterResponse(adapter=registry_pb2.Adapter(name="poet", digest="sha256:1"))
    there, lacking = step("a", 7, 7), step("b", 0, 2000)
    scripted.answer("RegistryService/PushAdapter", [there, lacking, step("b", 900, 2000), step("b", 2000, 2000), done])
    line = "pushed poet to oci://x  2.0 kB new there\noci://x//poet@sha256:1\n"
    assert hotshoe(scripted, "push", "poet", "oci://x") == line
    assert json.loads(hotshoe(scripted, "push", "poet", "oci://x", "--json"))["new_bytes"] == 2000
    scripted.answer("RegistryService/PushAdapter", [there, done])
    assert hotshoe(scripted, "push", "poet", "oci://x").startswith("poet is already at oci://x\n")


def test_tag_says_whether_it_moved(scripted: ScriptedServer) -> None:
    def told(now: str) -> str:
        found = [registry_pb2.Adapter(name="poet", digest=digest) for digest in ("sha256:2", now)]
        answers = iter([registry_pb2.GetAdapterResponse(adapter=one) for one in found])
        scripted.answer("RegistryService/GetAdapter", lambda _: next(answers))
        scripted.answer("RegistryService/UpdateTag", registry_pb2.UpdateTagResponse(adapter=found[0]))
        return hotshoe(scripted, "tag", "poet", "poet:v2")

    assert told(now="sha256:1") == "poet:v2  moved from sha256:1\npoet@sha256:2\n"
    assert told(now="sha256:2") == "poet:v2  there already\npoet@sha256:2\n"


def test_load_tells_the_name_that_was_asked_for(scripted: ScriptedServer) -> None:
    resident = residency_pb2.ResidentAdapter(name="other", digest="sha256:1", tier=residency_pb2.TIER_DEVICE)
    ready = residency_pb2.LoadAdapterResponse(stage=residency_pb2.LoadAdapterResponse.STAGE_READY, adapter=resident)
    scripted.answer("ResidencyService/LoadAdapter", [ready])
    assert hotshoe(scripted, "load", "poet:v1") == "poet:v1  device  0 B\npoet@sha256:1\n"


def test_ls_knows_the_kinds_in_small_letters_too(scripted: ScriptedServer) -> None:
    scripted.answer("RegistryService/ListAdapters", registry_pb2.ListAdaptersResponse())
    info = generation_pb2.GetModelInfoResponse(adapter_kinds=["IA3", "LORA"])
    scripted.answer("GenerationService/GetModelInfo", info)
    assert hotshoe(scripted, "ls", "--kind", "lora").startswith("NAME ")
    assert [request.kind for request in scripted.calls("RegistryService/ListAdapters")] == ["LORA"]
    assert hotshoe(scripted, "ls", "--kind", "loro", code=2) == "hotshoe: --kind: 'loro' is none of IA3, LORA\n"


def test_log_says_where_there_is_nothing_to_tell(scripted: ScriptedServer) -> None:
    scripted.answer("RegistryService/ListTagMoves", registry_pb2.ListTagMovesResponse())
    assert hotshoe(scripted, "log", "nobody:v1") == "nothing is known of nobody:v1\n"
    assert hotshoe(scripted, "log", "nobody:v1", "--json") == "[]\n"


def test_lease_tells_its_end_to_the_second(scripted: ScriptedServer) -> None:
    lease = registry_pb2.Lease(digest="sha256:1", holder="us", expire_time={"seconds": 1_800_000_000, "nanos": 123})
    scripted.answer("RegistryService/LeaseAdapter", registry_pb2.LeaseAdapterResponse(lease=lease))
    assert hotshoe(scripted, "lease", "poet") == "sha256:1\nis kept for us until 2027-01-15T08:00:00 UTC\n"
