"""A verb that fails says so in one line, and ends with the code that its help promises."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from scripted_server import Failure, ScriptedServer, error_info, retry_info
from typer.testing import CliRunner

from hotshoe.clients import errors
from hotshoe.clients.cli import failures
from hotshoe.clients.cli.__main__ import VERBS, command_line
from hotshoe.protos.v1 import registry_pb2

GET = "RegistryService/GetAdapter"


def hotshoe(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.INVALID_ARGUMENT, 5),
        (grpc.StatusCode.FAILED_PRECONDITION, 5),
        (grpc.StatusCode.ABORTED, 6),
        (grpc.StatusCode.ALREADY_EXISTS, 6),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 7),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 8),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.DATA_LOSS, 1),
        (grpc.StatusCode.UNIMPLEMENTED, 1),
    ],
)
def test_each_status_has_its_exit_code_and_one_line(scripted: ScriptedServer, status, code: int) -> None:
    scripted.answer(GET, Failure(status, "first line\nsecond line"))
    assert hotshoe("show", "a", "--server", scripted.address) == (code, "", "hotshoe: first line second line\n")
    assert code in failures.EXIT_CODES


def test_an_unreachable_server_ends_with_3() -> None:
    code, _, stderr = hotshoe("ls", "--server", "127.0.0.1:1")
    assert code == 3
    told = "hotshoe: the server cannot be reached (hotshoe serve starts one, --server names another): "
    assert stderr.startswith(told)
    assert "Connection refused" in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "../nowhere"])
def test_what_can_only_be_a_path_is_not_asked_of_the_server(path: str) -> None:
    line = f"hotshoe: {Path(path)}: no such directory\n"
    assert hotshoe("doctor", path, "--server", "127.0.0.1:1") == (5, "", line)


def test_a_view_is_not_made_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = f"hotshoe: {tmp_path}/file: is there already; expected a new name\n"
    assert hotshoe("view", "a", str(tmp_path / "file"), "--server", "127.0.0.1:1") == (1, "", line)


def test_a_view_is_not_made_over_another_link(scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.answer("RegistryService/CreateView", registry_pb2.CreateViewResponse(path=str(tmp_path)))
    (tmp_path / "link").symlink_to("elsewhere")
    line = f"hotshoe: {tmp_path}/link: a link to elsewhere; expected a new name\n"
    assert hotshoe("view", "a", str(tmp_path / "link"), "--server", scripted.address) == (1, "", line)


def test_a_view_is_made_again_over_its_own_links_alone(scripted: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "adapter_config.json").touch()
    scripted.answer("RegistryService/CreateView", registry_pb2.CreateViewResponse(path=str(tmp_path / "view")))
    words = ("view", "a", str(tmp_path / "links"), "--server", scripted.address)
    assert [hotshoe(*words) for _ in range(2)] == [(0, f"{tmp_path}/links\n", "")] * 2
    (tmp_path / "links" / "adapter_config.json").unlink()
    (tmp_path / "links" / "adapter_config.json").symlink_to(tmp_path / "another")
    line = f"hotshoe: {tmp_path}/links: has links to something else; expected a new name\n"
    assert hotshoe(*words) == (1, "", line)


def test_a_deadline_is_told_in_words(scripted: ScriptedServer) -> None:
    scripted.answer(GET, Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Stream removed (Deadline Exceeded)"))
    line = "hotshoe: no answer came within the time that the call was given\n"
    assert hotshoe("show", "a", "--server", scripted.address) == (8, "", line)


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    assert hotshoe("key", "show", f"{tmp_path}/none.pem") == (
        1,
        "",
        f"hotshoe: {tmp_path}/none.pem: No such file or directory\n",
    )


def test_the_server_may_be_named_by_the_environment(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSHOE_SERVER", scripted.address)
    scripted.answer(GET, Failure(grpc.StatusCode.NOT_FOUND, "asked the right one"))
    assert hotshoe("show", "a")[2] == "hotshoe: asked the right one\n"


def test_violations_and_delays_are_part_of_the_line() -> None:
    violation = errors.FieldViolation("sampling.top_p", "3 is outside (0, 1]")
    error = errors.InvalidArgument("bad request", field_violations=[violation])
    assert failures.describe(error) == "bad request (sampling.top_p: 3 is outside (0, 1])"
    told = errors.InvalidArgument("sampling.top_p: 3 is outside (0, 1]", field_violations=[violation])
    assert failures.describe(told) == "sampling.top_p: 3 is outside (0, 1]"
    bare = errors.InvalidArgument("3 is outside (0, 1]", field_violations=[violation])
    assert failures.describe(bare) == "sampling.top_p: 3 is outside (0, 1]"
    assert failures.describe(errors.ResourceExhausted("full", retry_after=2.5)) == "full; try again in 2.5 s"


def test_every_error_class_has_a_documented_code() -> None:
    classes = {*errors.ERRORS.values(), errors.InvalidAdapterDirectory}
    codes = {failures.exit_code(error_class("x")) for error_class in classes}
    assert codes == {1, 3, 4, 5, 6, 7, 8}
    help_text = " ".join(hotshoe("--help")[1].split())
    for code, meaning in failures.EXIT_CODES.items():
        assert f"{code} {meaning}" in help_text


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("show",),
        ("show", "a", "--bogus"),
        ("show", "a", "--server", "localhost"),
        ("show", "a", "--server", "http://127.0.0.1:50051"),
        ("run", "base", "hi", "--temperature", "hot"),
        ("run", "base=x", "hi"),
        ("run", "base", ""),
        ("run", "base", "hi", "--raw", "--system", "x"),
        ("tag", "a", "b"),
        ("tag", "a", "b:c", "--new", "--expect", "sha256:0"),
        ("untag", "a"),
        ("publish", ".", "a:1", "b:2"),
        ("publish", ".", "a", "--annotation", "k"),
        ("load", "a", "--tier", "moon"),
        ("bench", "--concurrency", "x"),
        ("bench", "--pattern", "waves"),
        ("bench", "--rounds", "0"),
    ],
)
def test_wrong_usage_ends_with_2_before_any_call(arguments: tuple[str, ...]) -> None:
    code, stdout, stderr = hotshoe(*arguments)
    assert code == 2 and stdout == "" and stderr


def test_a_directory_that_is_no_adapter_ends_with_5(tmp_path) -> None:
    code, _, stderr = hotshoe("publish", str(tmp_path), "a")
    assert code == 5 and "adapter_config.json: missing" in stderr


def test_every_verb_that_asks_a_server_has_server_and_json() -> None:
    for verb in VERBS:
        if verb.__name__ in (
            "serve",
            "registry",
            "key",
            "token",
        ):  # keys and tokens are made here, no server knows them
            continue
        help_text = hotshoe(verb.__name__, "--help")[1]
        assert "--json" in help_text and "--server" in help_text, verb.__name__


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotshoe.clients.Client.get_adapter", lambda *_: 1 / 0)
    result = CliRunner().invoke(command_line(), ["show", "a"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_reader_that_goes_away_is_no_failure(scripted: ScriptedServer) -> None:
    program = "from hotshoe.clients.cli.__main__ import main; main()"
    command = [sys.executable, "-P", "-c", program, "version", "--server", "127.0.0.1:1"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_serve_hands_everything_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, arguments: executed.append([path, *arguments[1:]]))
    hotshoe("serve", "--help", "--base", "x", "--json", "-y")
    hotshoe("registry", "serve", "--help")
    assert executed == [
        [sys.executable, "-P", "-m", "hotshoe.server", "--help", "--base", "x", "--json", "-y"],
        [sys.executable, "-P", "-m", "hotshoe.registry", "serve", "--help"],
    ]


def test_retry_delays_reach_the_line_through_the_wire(scripted: ScriptedServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="f", description="d")
    details = (error_info("QUEUE_FULL"), retry_info(40), error_details_pb2.BadRequest(field_violations=[violation]))
    scripted.answer(GET, Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details))
    code, _, stderr = hotshoe("show", "a", "--server", scripted.address)
    assert (code, stderr) == (7, "hotshoe: full (f: d); try again in 40 s\n")
