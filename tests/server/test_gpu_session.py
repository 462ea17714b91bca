"""The command for a session on a GPU, dry: every part, what it writes, and that one that hangs loses only itself."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("peft")

from hotshoe.server.gpu_session import __main__ as session  # noqa: E402
from hotshoe.server.gpu_session import ours, report  # noqa: E402
from hotshoe.server.gpu_session.random_base import RandomCheckpoint, write_base  # noqa: E402
from hotshoe.server.gpu_session.report import read_rows  # noqa: E402
from hotshoe.server.gpu_session.sizes import DRY, REAL  # noqa: E402
from hotshoe.server.model.families import spec_from_config  # noqa: E402
from hotshoe.server.model.loader import load_base  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_measures_everything_and_says_so_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = session.main(["--dry-run", "--out", str(tmp_path)])
    assert status == 0, {path.name: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    rows = read_rows(tmp_path)
    steps = {(row["system"], row["what"], row["adapters"]) for row in rows if row["what"] in ("decode", "prompt")}
    for system in ("ours", "ours, linear=bitsandbytes", "PEFT + bitsandbytes"):
        assert {(system, "decode", 0), (system, "decode", 2), (system, "prompt", 0)} <= steps
    served = {(row["rows"], row["adapters"]): row for row in rows if row["what"] == "streams"}
    assert set(served) == {(2, 0), (2, 2)}
    assert all(row["errors"] == 0 and row["tokens_per_second"] > 0 and row["ttft_p50_ms"] for row in served.values())
    assert [row["place"] for row in rows if row["what"] == "swap"] == ["device", "host", "disk"]
    apart = [row for row in rows if row["what"] == "apart"]
    assert len(apart) == 2 and all(row["error"] < 1e-5 and row["ms"] > 0 for row in apart)
    assert sum(row.get("PASSED", 0) for row in rows) > 3
    assert any(row["system"] == "kernels" and row["op"] == "nf4_linear" for row in rows)
    assert capsys.readouterr().out.rstrip().endswith((tmp_path / "results.md").read_text().rstrip())
    assert (tmp_path / "results.csv").read_text().count("\n") == len(rows) + 1


def test_a_part_that_takes_too_long_is_ended_and_the_others_keep_what_they_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, hangs = session._start, [sys.executable, "-c", "import time; time.sleep(1000)"]
    monkeypatch.setattr(session, "_start", lambda command, log, *, dry_run: start(hangs, log, dry_run=dry_run))
    row = {"system": "x", "what": "decode", "rows": 1, "adapters": 0, "ms": 1.0, "worst_ms": 2.0}
    (tmp_path / "peft.jsonl").write_text(json.dumps(row) + "\n")
    assert not session.run_process("ours", session.Session(tmp_path, tmp_path / "scratch", dry_run=True), 0)
    assert "| decode, 1 rows | 0 | 1.00 (2.00) |" in session.write_results(tmp_path, "nothing")


def test_the_table_is_made_of_whatever_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(report, "version", missing)
    row = {"system": "ours", "what": "decode", "rows": 8, "adapters": 0, "ms": 2.0, "worst_ms": 2.5}
    (tmp_path / "ours.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])  # ended in the middle
    text = report.write_results(tmp_path, "a GPU")
    assert "| decode, 8 rows | 0 | 2.00 (2.50) | 4,000 |" in text and "torch is missing" in text


def test_what_a_server_gave_is_told_as_far_as_it_came(tmp_path: Path) -> None:
    times = {"ttft_p50_ms": 12.34, "ttft_p99_ms": 20.0, "inter_token_p50_ms": 8.0, "inter_token_p99_ms": None}
    streams = {"rows": 32, "adapters": 8, "tokens_per_second": 2345.6, "errors": 1, "kv_tokens": 934_000}
    told: list[tuple[dict[str, Any], str]] = [  # a row, and what is in the table from then on
        (
            {"what": "ready", "backend": "triton", "seconds": 30.0, "write_seconds": 9.0, "publish_seconds": 0.5},
            "by triton: ready in 30.0 s",
        ),
        ({"what": "streams", **streams, **times}, "| 32 | 8 | 2,346 | 12.3; 20.0 | 8.0;  | 1 |"),
        ({"what": "swap", "place": "device", "ms": 10.0, "worst_ms": 11.0}, "on the device 10.00 (11.00) ms"),
        ({"what": "swap", "place": "disk", "ms": 60.0, "worst_ms": 90.0}, "10.00 (11.00) ms, on disk +50.0 ms"),
    ]
    for count in range(1, len(told) + 1):
        lines = [json.dumps({"system": "hotshoe serve", **row}) for row, _ in told[:count]]
        (tmp_path / "serve.jsonl").write_text("\n".join(lines))
        text = report.write_results(tmp_path, "a GPU")
        assert [part in text for _, part in told] == [index < count for index in range(len(told))]
    assert "its cache holds 934,000 tokens" in text


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("seconds", "before", "timed"), [(0.01, 20, 20), (0.5, 4, 4), (30.0, 1, 3)])
def test_slow_steps_are_run_fewer_times(
    seconds: float, before: int, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(ours, "time", SimpleNamespace(perf_counter=clock.read))
    found = ours.timed(lambda: clock.spend(seconds), 20, torch.device("cpu"), limit_seconds=4.0)
    assert found["steps"] == timed and found["ms"] == pytest.approx(1e3 * seconds)
    assert clock.now == pytest.approx((before + timed) * seconds)


def test_what_a_part_leaves_of_its_time_goes_to_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, limits = Clock(), []
    taken = {"ours": 40.0, "serve": 500.0, "peft": 0.0}

    def run(part: str, run_session: session.Session, limit_seconds: float) -> bool:
        limits.append(limit_seconds)
        clock.spend(min(taken[part], limit_seconds))
        return taken[part] <= limit_seconds

    monkeypatch.setattr(session, "run_process", run)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=clock.read))
    where = session.Session(tmp_path, tmp_path / "scratch", dry_run=True)
    assert session.run_parts(list(taken), where) == 1
    assert limits == [170.0, 300.0, 170.0]


def test_a_whole_session_takes_less_than_eight_minutes() -> None:
    assert set(REAL.part_seconds) == set(DRY.part_seconds) == set(session.PARTS)
    assert sum(REAL.part_seconds.values()) <= 470


def test_a_random_base_is_written_once_and_loads(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (tmp_path / "base.unfinished").mkdir()  # of a session that was ended
    write_base(DRY.config, base, torch.device("cpu"))
    written = {path.name: path.stat().st_mtime_ns for path in base.iterdir()}
    write_base(DRY.config, base, torch.device("cpu"))
    assert {path.name: path.stat().st_mtime_ns for path in base.iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    loaded = load_base(str(base), cache=tmp_path / "cache", backend="reference")
    assert loaded.spec == spec_from_config(RandomCheckpoint(DRY.config, torch.device("cpu")).config)
    assert (loaded.tokenizer.vocab_size, loaded.quantization) == (DRY.config["vocab_size"], "nf4")
    ids = loaded.tokenizer.encode("a boat")
    assert loaded.tokenizer.decode(ids) == "a boat" and loaded.tokenizer.decode([280, *ids]) == " 118a boat"


def test_a_part_that_there_is_not_is_refused_before_any_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        session.main(["--dry-run", "--parts", "ours,kernel", "--out", str(tmp_path / "out")])
    assert "not kernel" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_a_gpu_only_a_dry_run_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        session.main(["--out", str(tmp_path)])
