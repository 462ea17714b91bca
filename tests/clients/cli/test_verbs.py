"""The verbs against a real server, as a shell would use them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hotshoe.clients.cli.__main__ import command_line
from hotshoe.clients.cli.failures import INTERRUPTED
from hotshoe.clients.evaluations import EVALUATION_TYPE
from hotshoe.clients.local_server import LocalServer


class Shell:
    """Runs `hotshoe` against one server."""

    def __init__(self, server: str) -> None:
        self.server = server

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        environment = {"HOTSHOE_SERVER": self.server}
        result = CliRunner().invoke(command_line(), arguments, input=stdin, env=environment)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self(*arguments, "--json", **options))


@pytest.fixture
def hotshoe(server: LocalServer) -> Shell:
    return Shell(server.grpc)


def test_publish_show_ls_and_pull_agree(hotshoe: Shell, adapters: dict[str, Path], tmp_path: Path) -> None:
    publish = ("publish", str(adapters["amber"]), "verbs:a", "verbs:b", "--annotation", "team=x")
    published = hotshoe.json(*publish)
    digest = published["adapter"]["digest"]
    assert published["created"] is True
    shown = hotshoe.json("show", "verbs:a")
    assert (shown["digest"], shown["kind"], shown["rank"], sorted(shown["tags"])) == (digest, "LORA", 4, ["a", "b"])
    assert shown["annotations"]["team"] == "x"
    assert [one["digest"] for one in hotshoe.json("ls", "verbs", "--kind", "LORA")] == [digest]
    assert digest in hotshoe("show", "verbs:b") and digest in hotshoe("ls", "verbs", "--full")
    told = [line.split()[0] for line in hotshoe("show", "verbs:b").splitlines()]
    assert told.count("rank") == 1 and "team" in told and "dev.hotshoe.adapter.rank" not in told
    assert digest[:19] in hotshoe("ls", "verbs") and digest not in hotshoe("ls", "verbs")
    assert hotshoe(*publish).startswith("already there verbs:a,b  LORA")
    assert hotshoe.json("pull", "verbs:a", str(tmp_path))["digest"] == digest
    weights = "adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (adapters["amber"] / weights).read_bytes()


def test_pull_spares_what_is_not_its_own(hotshoe: Shell, adapters: dict[str, Path], tmp_path: Path) -> None:
    hotshoe("publish", str(adapters["amber"]), "spared:a")
    hotshoe("publish", str(adapters["birch"]), "spared:b")
    mine, weights = tmp_path / "mine", tmp_path / "mine" / "adapter_model.safetensors"
    for _ in range(2):
        hotshoe("pull", "spared:a", str(mine))
    kept = weights.read_bytes()
    hotshoe("pull", "spared:b", str(mine), code=1)
    assert weights.read_bytes() == kept
    hotshoe("pull", "spared:b", str(mine), "--overwrite")
    assert weights.read_bytes() == (adapters["birch"] / weights.name).read_bytes()
    hotshoe("pull", "spared:a", str(weights), code=2)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("ours")
    hotshoe("pull", "spared:a", str(notes), code=1)
    assert [path.name for path in notes.iterdir()] == ["todo.txt"]


def test_a_report_is_kept_and_told_with_its_figures(hotshoe: Shell, adapters: dict[str, Path], tmp_path: Path) -> None:
    digest = hotshoe.json("publish", str(adapters["amber"]), "reported")["adapter"]["digest"]
    report = tmp_path / "harness.json"
    report.write_text(json.dumps({"results": {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01}}}))
    assert hotshoe("report", "reported", str(report)) == f"attached to {digest}\narc acc 0.5\n"
    report.write_text(json.dumps({"results": {"arc": {"acc,none": 0.625}}}))
    kept = hotshoe.json("report", "reported", str(report))
    assert kept["subject"] == digest and kept["referrer"]["artifact_type"] == EVALUATION_TYPE
    [told, *_] = [line for line in hotshoe("show", "reported").splitlines() if line.startswith("harness")]
    assert told.split(maxsplit=1)[1] == f"arc acc 0.625 {kept['referrer']['document']['digest']}"
    assert "[arc acc 0.625]" in hotshoe("lineage", "reported").splitlines()[0]
    assert hotshoe.json("show", "reported")["digest"] == digest
    report.write_text("[1]")
    hotshoe("report", "reported", str(report), code=2)
    hotshoe("report", "reported", str(tmp_path / "nowhere.json"), code=1)
    report.write_text("{}")
    assert hotshoe("report", "reported", str(report)).endswith("no figures\n")
    hotshoe("report", "nothing", str(report), code=4)


def test_doctor_examines_adapters_and_directories(hotshoe: Shell, adapters: dict[str, Path], tmp_path: Path) -> None:
    published = hotshoe("publish", str(adapters["amber"]), "patient").splitlines()
    found = hotshoe.json("doctor", "patient", "--exact")
    assert (found["exact"], len(found["linears"])) == (True, 4) and found["linears"][0]["scale"] == 2.0
    assert all(line.startswith("doctor: ") for line in published[2:])  # none if the server took its time
    # The server's own report may be there, or still to come.
    kept = [line for line in hotshoe("show", "patient").splitlines() if line.startswith("doctor ")]
    assert any(f"{found['grade'].upper()}, {found['headline']}" in report for report in kept)
    assert len(hotshoe.json("show", "patient")["referrers"]) >= 1
    chart = tmp_path / "heat.png"
    table = hotshoe("doctor", str(adapters["birch"]), "--all", "--png", str(chart)).splitlines()
    assert table[0].startswith("LAYER  TARGET") and [line.split()[:2] for line in table[1:5]] == [
        ["0", "down_proj"],
        ["0", "q_proj"],
        ["1", "down_proj"],
        ["1", "q_proj"],
    ]
    assert chart.read_bytes().startswith(b"\x89PNG") and table[5].split(":")[0] in ("OK", "WARN", "BAD")
    assert "RESEMBLANCE" not in table[0], "which only --exact knows"
    short = hotshoe("doctor", str(adapters["birch"])).splitlines()
    told = [line for line in short if line[0].isdigit() and "nothing bad" not in line]
    [left] = [line for line in short if "nothing bad is known: --all" in line] or ["0"]
    assert len(told) + int(left.split()[0]) == 4
    assert "there is nothing to examine" in hotshoe("doctor", str(adapters["delta"]))
    hotshoe("doctor", str(adapters["delta"]), "--png", str(chart), code=2)
    hotshoe("doctor", "nobody", code=4)
    corrected = hotshoe("doctor", "patient", "--mitigate", "0.5", "--as", "patient:calmer").splitlines()
    assert corrected[-1] == f"patient@{hotshoe.json('show', 'patient:calmer')['digest']}"
    hotshoe("doctor", "patient", "--mitigate", "0.5", code=2)


def test_validate_only_publishes_nothing(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    assert hotshoe("publish", str(adapters["amber"]), "only-checked", "--validate-only").startswith("valid ")
    hotshoe("show", "only-checked", code=4)


def test_tag_moves_by_compare_and_set_and_untag_removes(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    old = hotshoe.json("publish", str(adapters["amber"]), "tagged:1")["adapter"]["digest"]
    new = hotshoe.json("publish", str(adapters["birch"]), "tagged:2")["adapter"]["digest"]
    assert hotshoe.json("tag", "tagged:1", "tagged:live", "--new")["previous_digest"] is None
    hotshoe("tag", "tagged:2", "tagged:live", "--new", code=6)
    hotshoe("tag", "tagged:2", "tagged:live", "--expect", new, code=6)
    assert hotshoe.json("tag", "tagged:2", "tagged:live", "--expect", old)["adapter"]["digest"] == new
    assert hotshoe.json("tag", "tagged:1", "tagged:live")["previous_digest"] == new
    assert hotshoe("untag", "tagged:live") == "removed tagged:live\n"
    hotshoe("untag", "tagged:live", code=4)


def test_rollback_and_log_tell_where_a_tag_was(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    old = hotshoe.json("publish", str(adapters["amber"]), "rolled:v1", "rolled:live")["adapter"]["digest"]
    new = hotshoe.json("publish", str(adapters["birch"]), "rolled:live")["adapter"]["digest"]
    hotshoe("publish", str(adapters["birch"]), "rolled:v1", code=6)
    assert hotshoe("rollback", "rolled:live") == f"rolled:live  back from {new[:19]}\nrolled@{old}\n"
    assert hotshoe.json("rollback", "rolled:live")["adapter"]["digest"] == new
    hotshoe("rollback", "rolled:v1", code=4)
    hotshoe("rollback", "rolled", code=4)
    moves = hotshoe.json("log", "rolled:live")
    assert [move["new_digest"] for move in moves] == [new, old, new, old]
    table = hotshoe("log", "rolled", "--limit", "5", "--full").splitlines()
    assert len(table) == 6 and table[0].split() == ["TIME", "TAG", "FROM", "TO"]
    assert table[4].split()[1:] == ["published", "-", new]


def test_view_links_a_directory_and_unview_ends_it(hotshoe: Shell, adapters: dict[str, Path], tmp_path: Path) -> None:
    hotshoe("publish", str(adapters["amber"]), "viewed")
    links, weights = tmp_path / "links", "adapter_model.safetensors"
    for _ in range(2):
        assert hotshoe("view", "viewed", str(links)) == f"{links}\n"
    assert (links / weights).read_bytes() == (adapters["amber"] / weights).read_bytes()
    # As vLLM's resolver looks at it: within its own directory; and LoRAX and SGLang: one file of weights.
    assert links.resolve() == tmp_path.resolve() / "links" and [path.name for path in links.glob("*.safetensors")] == [
        weights
    ]
    view = (links / weights).readlink().parent
    assert hotshoe("view", "viewed") == f"{view}\n" == f"{hotshoe.json('view', 'viewed')['path']}\n"
    hotshoe("view", "viewed", str(tmp_path), code=1)
    assert hotshoe("unview", "viewed") == "removed the view of viewed\n" and links.is_dir() and not view.exists()
    hotshoe("view", "viewed", str(links))
    assert (links / weights).exists()
    (tmp_path / "other").symlink_to(tmp_path)
    (links / "lora.gguf").write_bytes(b"mine")  # as llama.cpp's converter leaves it
    for wrong in (tmp_path / "other", links, tmp_path / "nothing"):
        hotshoe("unview", "viewed", str(wrong), code=2)
    assert (links / weights).exists() and (tmp_path / "other").exists() and not (view / "lora.gguf").exists()
    (links / "lora.gguf").unlink()
    assert hotshoe("unview", "viewed", str(links)) == "removed the view of viewed\n" and not links.exists()
    assert hotshoe.json("unview", "viewed")["deleted"] is False
    hotshoe("view", "viewed")
    links.symlink_to(view)  # as views were linked before
    hotshoe("view", "viewed", str(links))
    assert hotshoe("unview", "viewed", str(links)) == "removed the view of viewed\n" and not links.is_symlink()
    hotshoe("view", "nobody", code=4)


def test_gc_tells_what_goes_and_keeps_what_is_new(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    for name in ("amber", "birch"):
        hotshoe("publish", str(adapters[name]), "collected")
    told = hotshoe("gc", "--dry-run").splitlines()
    assert told[-2:] == ["would remove 0 adapters, 0 blobs, 0 B", "would empty the trash of 0 blobs, 0 B"]
    done = hotshoe.json("gc", "--grace", "1.5")
    assert done["adapters"] == [] and done["removed_blobs"] == 0
    assert hotshoe("gc").startswith("removed 0 adapters")
    hotshoe("gc", "--grace", "0.5", code=2)


def test_run_streams_text_and_tells_where_it_came_from(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    digest = hotshoe.json("publish", str(adapters["amber"]), "run")["adapter"]["digest"]
    answer = hotshoe.json("run", "run=0.5", "hi", "--max-new-tokens", "6", "--ignore-eos")
    assert [(one["digest"], one["weight"]) for one in answer["adapters"]] == [(digest, 0.5)]
    [completion] = answer["completions"]
    assert (len(completion["tokens"]), completion["finish_reason"]) == (6, "length")
    assert hotshoe.json("run", "base", "hi", "--max-new-tokens", "2")["adapters"] == []
    bias_free = hotshoe("run", "base", "hi", "--raw", "--max-new-tokens", "6", "--ignore-eos")
    assert bias_free == hotshoe("run", "base", "-", "--raw", "--max-new-tokens", "6", "--ignore-eos", stdin="hi")
    assert bias_free != hotshoe("run", "base", "hi", "--max-new-tokens", "6", "--ignore-eos")
    hotshoe("publish", str(adapters["birch"]), "run2")
    stack = hotshoe.json("run", "base", "hi", "--adapter", "run=2", "--adapter", "run2=-1", "--max-new-tokens", "1")
    assert [one["weight"] for one in stack["adapters"]] == [2.0, -1.0]
    hotshoe("run", "missing", "hi", code=4)
    hotshoe("run", "base", "hi", "--top-p", "7", code=5)


def test_sampling_flags_reach_the_server(hotshoe: Shell) -> None:
    flags = "--temperature 1 --top-p 0.9 --top-k 50 --min-p 0.01 --repetition-penalty 1.1 --presence-penalty 0.1"
    more = "--frequency-penalty 0.1 --seed 11 --stop zzz --time-limit 300 --max-new-tokens 8 --ignore-eos"
    asked = ("run", "base", "hi", *flags.split(), *more.split())
    first, second = hotshoe.json(*asked), hotshoe.json(*asked)
    assert first["completions"] == second["completions"] and first["completions"][0]["seed"] == 11
    greedy = hotshoe.json("run", "base", "hi", "--max-new-tokens", "8", "--ignore-eos")
    assert greedy["completions"][0]["tokens"] != first["completions"][0]["tokens"]


def test_run_answers_in_the_format_that_is_asked_for(hotshoe: Shell, tmp_path: Path) -> None:
    schema = json.dumps({"type": "array", "items": {"enum": [1, "é"]}, "minItems": 1, "maxItems": 2})
    (tmp_path / "schema.json").write_text(schema, encoding="utf-8")
    for given in (
        schema,
        '{"type": "array", "items": {"enum": [1, "é"]}, "maxItems": 2}',
        str(tmp_path / "schema.json"),
    ):
        told = hotshoe("run", "base", "hi", "--json-schema", given, "--temperature", "1", "--seed", "2")
        assert set(json.loads(told)) <= {1, "é"}
    assert hotshoe("run", "base", "hi", "--choice", "red", "--choice", "green") in ("red\n", "green\n")
    assert re.fullmatch(r"[0-9]{3}\n", hotshoe("run", "base", "hi", "--regex", "[0-9]{3}"))
    hotshoe("run", "base", "hi", "--regex", "(", code=5)
    hotshoe("run", "base", "hi", "--regex", "a", "--choice", "b", code=2)
    hotshoe("run", "base", "hi", "--json-schema", str(tmp_path / "nowhere.json"), code=1)


def test_chat_tells_which_command_it_does_not_have(server: LocalServer) -> None:
    arguments = ["chat", "--server", server.grpc]
    asked, mistyped = (CliRunner().invoke(command_line(), arguments, input=line) for line in ("/help\n", "/nope\n"))
    assert asked.stderr.startswith("/adapter") and mistyped.stderr == f"no command /nope\n{asked.stderr}"


def test_chat_keeps_the_conversation_and_can_forget_it(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    digest = hotshoe.json("publish", str(adapters["amber"]), "chatty")["adapter"]["digest"]
    lines = "hi\nand?\n/adapter chatty\nhello\n/adapter nowhere\noops\n/adapter base\n/reset\nhi\n/quit\nnever asked\n"
    output = hotshoe("chat", "base", "--max-new-tokens", "4", "--json", stdin=lines)
    answers = [json.loads(line) for line in output.splitlines()]
    prompts = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert len(answers) == 4
    assert prompts[0] < prompts[1] < prompts[2] and prompts[3] == prompts[0]
    used = [[one["digest"] for one in answer["adapters"]] for answer in answers]
    assert used == [[], [], [digest], []]


def typed(server: LocalServer, reference: str, lines: str) -> subprocess.CompletedProcess[str]:
    """`hotshoe chat` with somebody at a terminal, who types these lines."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, lines.encode())
        verb = ["chat", reference, "--max-new-tokens", "4", "--server", server.grpc]
        command = [sys.executable, "-m", "hotshoe.clients.cli", *verb]
        return subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=250)
    finally:
        os.close(ours)
        os.close(theirs)


def test_chat_tells_of_a_missing_adapter_before_it_asks(server: LocalServer) -> None:
    told = typed(server, "nowhere", "hello\n")
    assert (told.returncode, told.stdout) == (4, "")
    assert told.stderr.startswith("hotshoe: ") and "nowhere" in told.stderr


def test_chat_goes_on_with_what_it_had_when_another_adapter_is_missing(
    server: LocalServer, hotshoe: Shell, adapters: dict[str, Path]
) -> None:
    hotshoe("publish", str(adapters["amber"]), "talks")
    told = typed(server, "talks", "/adapter nowhere\nhello\n/adapter base\n/quit\n")
    assert told.returncode == 0, told.stderr
    assert told.stdout.partition("\n")[0].endswith(f"with talks at {server.grpc}. /help lists the commands.")
    [line] = [line for line in told.stderr.splitlines() if "hotshoe: " in line]
    assert "nowhere" in line


def test_load_ps_top_and_unload_show_the_same_adapter(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    digest = hotshoe.json("publish", str(adapters["birch"]), "kept")["adapter"]["digest"]
    loaded = hotshoe.json("load", "kept", "--pin", "--tier", "device")
    assert (loaded["digest"], loaded["tier"], loaded["pinned"]) == (digest, "device", True)
    assert digest in {one["digest"] for one in hotshoe.json("ps")} and digest in hotshoe("ps", "--full")
    frame = hotshoe.json("top", "--once")
    assert digest in {one["digest"] for one in frame["adapters"]}
    assert digest[:19] in hotshoe("top", "--once")
    assert hotshoe("unload", "kept") == "unloaded kept\n"
    assert hotshoe("unload", "kept") == "kept is not loaded\n"
    assert hotshoe.json("unload", "kept") == {"reference": "kept", "found": False, "in_use": False}


def test_a_task_is_named_behind_the_adapter(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    hotshoe("publish", str(adapters["skilled"]), "skilled")
    assert re.search("^tasks +0 to 2$", hotshoe("show", "skilled"), re.MULTILINE)
    answers = [hotshoe.json("run", f"skilled#{task}", "Who?", "--seed", "1") for task in range(3)]
    assert [answer["adapters"][0]["task"] for answer in answers] == [0, 1, 2]
    [digest] = {answer["adapters"][0]["digest"] for answer in answers}
    hotshoe("run", "skilled", "Who?", code=5)
    hotshoe("run", "skilled#3", "Who?", code=5)
    hotshoe("unload", "skilled")
    assert hotshoe("load", "skilled#1", "--pin").startswith("skilled#1  device, pinned")
    [line] = [line for line in hotshoe("ps").splitlines() if line.startswith("skilled")]
    assert line.startswith("skilled#1 ") and digest[:19] in line
    hotshoe("unload", "skilled#1")
    assert "skilled" not in hotshoe("ps")


def test_version_tells_both_sides(hotshoe: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotshoe.clients.cli.version.PATIENCE_SECONDS", 200.0)
    version = hotshoe.json("version")
    assert re.fullmatch(r"\d+\.\d+.*", version["client"]) and version["server"]["base_digest"].startswith("sha256:")
    assert "512 tokens a request, 16,384 in the key-value cache" in hotshoe("version").splitlines()


def test_bench_measures_every_level(hotshoe: Shell, adapters: dict[str, Path]) -> None:
    hotshoe("publish", str(adapters["cedar"]), "benched")
    plan = "--concurrency 1,3 --adapters benched,base --prompt-tokens 8 --new-tokens 5 --rounds 2 --warmup 1".split()
    report = hotshoe.json("bench", *plan)
    assert [(one["concurrency"], one["requests"], one["generated_tokens"]) for one in report["levels"]] == [
        (1, 2, 10),
        (3, 6, 30),
    ]
    assert report["schema"] == "hotshoe.bench/1" and report["plan"]["adapters"] == ["benched", "base"]
    assert all(level["errors"] == {} and level["median"]["tokens_per_second"] > 0 for level in report["levels"])
    table = hotshoe("bench", *plan).splitlines()
    assert table[2].startswith("STREAMS") and [line.split()[0] for line in table[3:]] == ["1", "3"]
    hotshoe("bench", "--adapters", "nowhere", "--concurrency", "1", code=4)


def test_the_demo_shows_what_it_promises(server: LocalServer, hotshoe: Shell, adapters: dict[str, Path]) -> None:
    report = hotshoe.json(
        "demo", "--server", server.grpc, "--http", server.http, "--adapters", str(adapters["amber"].parent)
    )
    assert report["failures"] == []
    assert [one["name"] for one in report["adapters"]] == ["amber", "birch", "cedar", "delta"]
    assert len(report["streams"]) == 10 and report["tokens"] > 0
    assert report["proof"]["steps_with_several"] > 0
    text = hotshoe("demo", "--server", server.grpc, "--http", server.http, "--adapters", str(adapters["amber"].parent))
    assert "Everything was as it should be." in text


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_server(
    adapters: dict[str, Path], by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where one that is killed leaves its directory
    program = "from hotshoe.clients.cli.__main__ import main; main()"
    demo = ["demo", "--base", str(adapters[""]), "--adapters", str(adapters["amber"].parent)]
    command = [sys.executable, "-P", "-c", program, *demo]

    def as_in_the_background() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does to a job that ends in &

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=as_in_the_background) as process:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if "is ready: gRPC on " in line)
        process.send_signal(by)
        assert process.wait(120) == (INTERRUPTED if by is signal.SIGTERM else -by)
    match = re.search(r"gRPC on (\S+),", ready)
    assert match is not None
    deadline = time.monotonic() + 120
    while CliRunner().invoke(command_line(), ["ls", "--server", match[1]]).exit_code != 3:
        assert time.monotonic() < deadline


def test_serve_becomes_the_server(adapters: dict[str, Path], tmp_path: Path) -> None:
    program = "from hotshoe.clients.cli.__main__ import main; main()"
    hotshoe = [sys.executable, "-P", "-c", program]
    help_text = subprocess.run([*hotshoe, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--base" in help_text and "--registry" in help_text
    free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--registry", str(tmp_path / "registry")]
    serve = [*hotshoe, "serve", "--base", str(adapters[""]), "--threads", "1", *free]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert (
                ready["event"] == "ready"
                and Shell(ready["grpc"])("ls") == "NAME  TAGS  KIND  RANK  SIZE  BASE  DIGEST\n"
            )
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0
