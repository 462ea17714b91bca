"""What a verb says is what happened."""

from scripted_server import ScriptedServer
from typer.testing import CliRunner

from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import residency_pb2


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
