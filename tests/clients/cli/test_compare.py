"""`hotshoe bench compare` as a shell would use it; measuring itself needs the rivals, which are built by hand."""

import pytest
from typer.testing import CliRunner

from hotshoe.clients.cli.__main__ import command_line
from hotshoe.clients.cli.failures import UNREACHABLE, USAGE


def invoke(*arguments: str):
    return CliRunner().invoke(command_line(), arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--rivals", "ollama"), "rivals: 'ollama' is none of hotshoe, llama.cpp"),
        (("--concurrency", "1,many"), "--concurrency: '1,many' is not a list of whole numbers"),
        (("--rounds", "0"), "rounds: must be at least 1"),
        (("--fewer-adapters", "9"), "fewer_adapters: must be at least 1 and fewer than all 8"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_built(arguments: tuple[str, ...], problem: str, tmp_path) -> None:
    cache, output = tmp_path / "cache", tmp_path / "output"
    result = invoke("bench", "compare", "--cache", str(cache), "--output", str(output), *arguments)
    assert result.exit_code == USAGE and problem in result.stderr
    assert not cache.exists() and not output.exists()


def test_bench_alone_is_still_a_verb() -> None:
    assert "compare" in invoke("bench", "--help").stdout
    assert invoke("bench", "--server", "127.0.0.1:1").exit_code == UNREACHABLE
    assert invoke("bench", "--concurrency", "x").exit_code == USAGE
