"""Help is there at once, and whole."""

import re
import subprocess
import sys

from typer.testing import CliRunner

from hotshoe.clients.cli.__main__ import VERBS, command_line

PASSED_ON = {"serve", "registry"}  # to programs of their own
SLOW = {"grpc", "google.protobuf", "asyncio", "rich", "numpy", "torch", "cryptography", "httpx"}
PROGRAM = """
import sys
from typer.testing import CliRunner
from hotshoe.clients.cli.__main__ import command_line

for arguments in sys.argv[1:]:
    result = CliRunner().invoke(command_line(), [*arguments.split(), "--help"])
    assert result.exit_code == 0 and "Usage: " in result.stdout, (arguments, result)
print(*sys.modules)
"""


def test_the_help_of_each_verb_imports_nothing_slow() -> None:
    names = {"", "bench compare", "bench scenario", "bench swap", "key new", "key show", "token new", "token show"} | {
        verb.__name__ for verb in VERBS
    }
    program = [sys.executable, "-P", "-c", PROGRAM, *sorted(names - PASSED_ON)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "hotshoe.clients.cli.publish" in run.stdout.split()
    assert not SLOW & set(run.stdout.split())


def test_the_first_sentence_of_each_verb_fits_its_line() -> None:
    told = CliRunner().invoke(command_line(), ["--help"], env={"COLUMNS": "80"}).stdout
    verbs = [line for line in told.splitlines() if re.match(r"  [a-z]+ {2,}[A-Z]", line)]
    assert [line.split()[0] for line in verbs] == [verb.__name__ for verb in VERBS]
    assert [line for line in verbs if line.endswith("...")] == []


def test_usage_brackets_what_may_be_left_out_once() -> None:
    for verb in {verb.__name__ for verb in VERBS} - PASSED_ON:
        usage = CliRunner().invoke(command_line(), [verb, "--help"]).stdout.splitlines()[0]
        assert "[[" not in usage and "...}" not in usage and "…}" not in usage, usage
