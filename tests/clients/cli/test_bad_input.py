"""What cannot be meant is told in one line that names it, before a server is asked or after."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_server import ScriptedServer
from typer.testing import CliRunner

from hotshoe.clients.cli import inputs, lease
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import generation_pb2
from hotshoe.registry.attachment import MAX_DOCUMENT_BYTES
from hotshoe.server.services.keeping import MAX_LEASE_SECONDS

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with what is no adapter, no layout and no text in it."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("large").write_bytes(b" " * (inputs.MAX_BYTES + 1))
    Path("binary").write_bytes(b"{\xff")
    Path("adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    return tmp_path


def hotshoe(*arguments: str, server: str = NOWHERE) -> tuple[int, str]:
    result = CliRunner().invoke(command_line(), [*arguments, *(["--server", server] if server else [])])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("import", "pipe", "a:v1"), 5, "pipe: neither a directory nor a file"),
        (("import", "socket", "a:v1"), 5, "socket: neither a directory nor a file"),
        (("report", "a", "large"), 2, "large: expected at most 1048576 bytes"),
        (("report", "a", "/dev/zero"), 2, "/dev/zero: expected at most 1048576 bytes"),
        (("run", "base", "x", "--json-schema", "large"), 2, "large: expected at most 1048576 bytes"),
        (
            ("run", "base", "x", "--json-schema", "binary"),
            2,
            "binary: expected text in UTF-8 (invalid start byte at byte 1)",
        ),
        (("log", "a:"), 2, "'a:' is not NAME or NAME:TAG"),
        (("doctor", ""), 2, "DIR|REF: expected a directory or a reference, not ''"),
        (
            ("doctor", "a:v1", "--approximate-rank", "3"),
            2,
            "--approximate-rank: expected none with a REF: a published adapter has its own",
        ),
        (
            ("doctor", "./adapter", "--mitigate", "0.5", "--as", "b"),
            2,
            "--mitigate: expected a published adapter, not the directory ./adapter; publish it first",
        ),
        (("verify", "a", "--policy", "none.toml"), 2, "policy none.toml: No such file or directory"),
    ],
)
def test_it_is_told_before_a_server_is_asked(here: Path, arguments: tuple[str, ...], code: int, line: str) -> None:
    assert hotshoe(*arguments) == (code, f"hotshoe: {line}\n")


def test_a_key_has_a_name(here: Path) -> None:
    assert hotshoe("key", "new", "", server="") == (2, "hotshoe: FILE: expected the name of a file, not '.'\n")
    assert not list(here.glob("*.pub"))


def test_a_lease_is_as_long_as_a_server_gives_one(here: Path) -> None:
    code, told = hotshoe("lease", "a", "--for", "721")
    assert code == 2 and "Invalid value for '--for'" in told and "720" in told
    assert lease.MAX_HOURS * 3600 == MAX_LEASE_SECONDS and inputs.MAX_BYTES == MAX_DOCUMENT_BYTES


def test_a_benchmark_that_no_context_holds_is_not_begun(scripted: ScriptedServer) -> None:
    scripted.answer("GenerationService/GetModelInfo", generation_pb2.GetModelInfoResponse(max_sequence_length=100))
    told = "hotshoe: prompt_tokens, new_tokens: expected at most 100 together, not 99999999999 and 64\n"
    assert hotshoe("bench", "--prompt-tokens", "99999999999", server=scripted.address) == (2, told)


@contextmanager
def answering(first: bytes) -> Iterator[str]:
    """The address of something that says this to whoever connects, and waits for him to hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(first)
                    while connection.recv(4096):
                        pass

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_what_speaks_no_grpc_is_told_from_a_server_that_is_not_there() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" + b" " * 4096) as address:
        code, told = hotshoe("ls", server=address)
    says = "the server cannot be reached (what answers there speaks no gRPC: --server wants what hotshoe serve has as"
    assert code == 3 and told.startswith(f"hotshoe: {says} --listen): ") and told.count("\n") == 1


def test_a_port_without_tls_is_told_in_one_line(scripted: ScriptedServer) -> None:
    command = [sys.executable, "-m", "hotshoe.clients.cli", "ls", "--server", f"tls://{scripted.address}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    says = "hotshoe: the server cannot be reached (what answers there speaks no TLS: leave out tls://): "
    assert ran.returncode == 3 and ran.stderr.startswith(says) and ran.stderr.count("\n") == 1
