"""The protocol, with a runner in a process of its own."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hotshoe.clients.compare import runner_process
from hotshoe.clients.compare.runner_process import RunnerFailed, RunnerProcess
from hotshoe.clients.compare.runners.protocol import Load, Request, Setup, Workload, made_once

SETUP = Setup("home", "converted", "base", "gguf", {"a": "/a"}, ("a",), 2, 128, 1, "")
WORKLOAD = Workload((Request((5, 6)), Request((9, 6), "a")), 3)


def runner(tmp_path: Path) -> RunnerProcess:
    return RunnerProcess(None, "scripted_runner", tmp_path / "log", path=Path(__file__).parent)


def test_a_runner_prepares_starts_and_runs(tmp_path: Path) -> None:
    with runner(tmp_path) as one:
        one.prepare(SETUP)
        assert one.start(SETUP) == {"version": "1", "resident": "a"}
        for _ in range(2):
            outcome = one.run(WORKLOAD)
            assert [answer.tokens for answer in outcome.answers] == [[5, 6, 7], [9, 10, 11]]
            assert all(answer.times == sorted(answer.times) and answer.times[0] > 0 for answer in outcome.answers)
    log = (tmp_path / "log").read_text()
    assert "a library greets" in log and log.endswith("closed\n")


def test_loads_come_when_they_are_due_and_are_timed(tmp_path: Path) -> None:
    with runner(tmp_path) as one:
        one.start(SETUP)
        loads = (Load("late", 0.02), Load("early", 0.01))
        outcome = one.run(replace(WORKLOAD, new_tokens=40, loads=loads))
    assert [load.adapter for load in outcome.loads] == ["early", "late"]
    assert all(load.finished - load.started >= 0.003 for load in outcome.loads)
    assert outcome.loads[0].started >= 0.01 and outcome.loads[1].started >= 0.02


def test_what_the_engine_raises_is_the_reason(tmp_path: Path) -> None:
    with runner(tmp_path) as one, pytest.raises(RunnerFailed, match="prepare: FileNotFoundError: no compiler"):
        one.prepare(replace(SETUP, variant="unprepared"))


def test_a_crash_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    with runner(tmp_path) as one:
        one.start(replace(SETUP, variant="crashes"))
        with pytest.raises(RunnerFailed, match="ended with 7\n(.*\n)*.*the reason why"):
            one.run(WORKLOAD)
        with pytest.raises(RunnerFailed, match="ended with 7"):
            one.run(WORKLOAD)


def test_missing_tokens_are_a_failure(tmp_path: Path) -> None:
    with runner(tmp_path) as one:
        one.start(replace(SETUP, variant="short"))
        with pytest.raises(RunnerFailed, match=r"2 answers of 3 tokens: \[2, 2\]"):
            one.run(WORKLOAD)


def test_silence_is_a_failure_and_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_process, "RUN_SECONDS", 0.2)
    with runner(tmp_path) as one:
        one.start(SETUP)
        with pytest.raises(RunnerFailed, match="run: no answer in 0.2 s"):
            one.run(replace(WORKLOAD, new_tokens=5000))
        assert one._process.wait(60) == -9


def test_leaving_the_block_ends_the_process(tmp_path: Path) -> None:
    with runner(tmp_path) as one:
        one.start(SETUP)
        os.kill(one._process.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(one._process.pid, 0)


def test_a_half_made_file_is_never_taken(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"

    def fail_half_way(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(path, fail_half_way)
    assert not path.exists()
    assert made_once(path, lambda unfinished: unfinished.write_text("whole")).read_text() == "whole"
    assert made_once(path, fail_half_way).read_text() == "whole"
