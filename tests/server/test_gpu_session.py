"""The command for a session on a GPU, dry: every part, what it writes, and that one that hangs loses only itself."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("peft")

from hotshoe.server.gpu_session import __main__ as session  # noqa: E402
from hotshoe.server.gpu_session import report  # noqa: E402
from hotshoe.server.gpu_session.report import read_rows  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_measures_everything_and_says_so_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = session.main(["--dry-run", "--out", str(tmp_path)])
    assert status == 0, {path.name: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    rows = read_rows(tmp_path)
    steps = {(row["system"], row["what"], row["adapters"]) for row in rows if row["what"] in ("decode", "prompt")}
    for system in ("ours", "ours, linear=bitsandbytes", "PEFT + bitsandbytes"):
        assert {(system, "decode", 0), (system, "decode", 2), (system, "prompt", 0)} <= steps
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
    assert not session.run_process("ours", tmp_path, 0, dry_run=True)
    assert "| decode, 1 rows | 0 | 1.00 (2.00) |" in session.write_results(tmp_path, "nothing")


def test_the_table_is_made_of_whatever_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(report, "version", missing)
    row = {"system": "ours", "what": "decode", "rows": 8, "adapters": 0, "ms": 2.0, "worst_ms": 2.5}
    (tmp_path / "ours.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])  # ended in the middle
    text = report.write_results(tmp_path, "a GPU")
    assert "| decode, 8 rows | 0 | 2.00 (2.50) | 4,000 |" in text and "torch is missing" in text


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
