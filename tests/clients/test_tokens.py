from pathlib import Path

import pytest

from hotshoe.clients import Client
from hotshoe.clients.tokens import token_source


def read(token=None, **environment: str) -> str | None:
    source = token_source(token, environment)
    return source and source()


def test_a_token_is_given_or_comes_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("of-a-file\n")
    both = {"HOTSHOE_TOKEN": "one", "HOTSHOE_TOKEN_FILE": str(file)}
    assert read() is None and read(HOTSHOE_TOKEN="") is None
    assert read("given", **both) == "given" and read(lambda: "made", **both) == "made"
    assert read(**both) == "one" and read(HOTSHOE_TOKEN_FILE=str(file)) == "of-a-file"


def test_a_file_that_is_renewed_is_read_again(tmp_path: Path) -> None:
    file, renewed = tmp_path / "token", tmp_path / "renewed"
    file.write_text("first")
    source = token_source(None, {"HOTSHOE_TOKEN_FILE": str(file)})
    assert source and source() == "first"
    renewed.write_text("second")
    renewed.rename(file)
    assert source() == "second"
    file.unlink()
    with pytest.raises(FileNotFoundError):
        source()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "Bearer x", "é"])
def test_what_is_no_token_is_named(token: str) -> None:
    with pytest.raises(ValueError, match="token: expected a token"):
        token_source(token)


@pytest.mark.parametrize("server", ["10.0.0.1:50051", "example.com:50051", "127.0.0.1.example.com:1", "dns:///x:1"])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(server: str) -> None:
    with pytest.raises(ValueError, match=f"token: would go to {server} in the clear; say tls://{server}"):
        Client(server, token="secret")
    Client(server).close()
    Client(f"tls://{server}", token="secret").close()


@pytest.mark.parametrize("server", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/socket"])
def test_this_machine_may_be_told_in_the_clear(server: str) -> None:
    with Client(server, token="secret") as client:
        assert client.server == server


def test_a_token_file_that_is_not_there_is_told_and_read_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    # A file that is made where another was may have its inode, and in the same moment its time.
    monkeypatch.setattr("hotshoe.clients.tokens.file_stamp", lambda path: (7, 3, 1) if path.exists() else ())
    source = token_source(None, {"HOTSHOE_TOKEN_FILE": str(file)})
    assert source is not None
    for text in ("one", "two"):
        with pytest.raises(FileNotFoundError):
            source()
        file.write_text(text)
        assert source() == text
        file.unlink()
