"""The kernel harness: what it makes of honest kernels, of ours, and of those that cheat."""

import json
import random
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from hotshoe.kernels import kernel_format  # noqa: E402
from hotshoe.kernels.harness import Limits, Reward, judge  # noqa: E402

HONEST = """
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(gate_up, out, features, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    gate = tl.load(gate_up + row * 2 * features + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * features + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * features + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up):
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, features), dtype=gate_up.dtype, device=gate_up.device)
    kernel[(rows, triton.cdiv(features, 64))](gate_up, out, features, BLOCK=64)
    return out
"""
LAUNCH = "    kernel[(rows, triton.cdiv(features, 64))](gate_up, out, features, BLOCK=64)\n"


def judged(tmp_path: Path, source: str, limits: Limits = Limits(seconds=140)) -> Reward:  # noqa: B008
    file = tmp_path / "candidate.py"
    file.write_text(source)
    return judge("silu_mul", file, device="cpu", num_seeds=1, dtypes=("float32",), limits=limits)


@pytest.fixture(autouse=True)
def same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds that the harness draws are this test's own, as those of all tests are."""
    monkeypatch.setattr(secrets, "randbelow", random.randrange)


def changed(old: str, new: str) -> str:
    assert old in HONEST
    return HONEST.replace(old, new)


def test_an_honest_kernel_earns_all_that_a_machine_without_a_gpu_can_tell(tmp_path: Path) -> None:
    assert judged(tmp_path, HONEST) == Reward(
        format=True, compile=True, correct=True, no_op=True, speed=None, total=1.0, log=()
    )


@pytest.mark.slow
@pytest.mark.parametrize("op", ["nf4_linear", "add_low_rank", "paged_attention"])
def test_our_kernels_pass_and_compile_for_a_gpu(op: str) -> None:
    reward = judge(op, device="cpu", num_seeds=1, dtypes=("float16",))
    assert (reward.compile, reward.correct, reward.no_op) == (True, True, True), reward.log


def test_a_wrong_result_is_not_correct(tmp_path: Path) -> None:
    reward = judged(tmp_path, changed("gate * tl.sigmoid(gate) * up", "gate * tl.sigmoid(gate) * up * 1.001"))
    assert (reward.compile, reward.correct, reward.no_op, reward.total) == (True, False, False, 0.25)
    assert "off by 0.001" in reward.log[0]


def test_memory_that_is_never_written_shows(tmp_path: Path) -> None:
    reward = judged(tmp_path, changed("(rows, triton.cdiv(features, 64))]", "(rows, triton.cdiv(features, 64) - 1)]"))
    assert not reward.correct
    assert "off by nan" in reward.log[0]


def test_a_changed_input_shows(tmp_path: Path) -> None:
    spoiled = changed(
        "    tl.store(out", "    tl.store(gate_up + row * 2 * features + column, up, mask=inside)\n    tl.store(out"
    )
    reward = judged(tmp_path, spoiled)
    assert not reward.correct
    assert "changes its input gate_up" in reward.log[0]


def test_a_kernel_that_is_launched_for_show_does_not_count(tmp_path: Path) -> None:
    # no rule on syntax sees through this one: the arithmetic could be that of sizes
    honest_launch = "    out = torch.empty((rows, features), dtype=gate_up.dtype, device=gate_up.device)\n"
    source = changed(honest_launch, honest_launch + "    spare = torch.empty_like(out)\n")
    source = source.replace(LAUNCH + "    return out", LAUNCH.replace("out,", "spare,") + WORK)
    reward = judged(tmp_path, source)
    assert (reward.format, reward.correct, reward.no_op) == (True, True, False), reward.log
    assert reward.log == ("the wrapper computes by torch: add, div, mul, neg, pow",)
    assert reward.total == 0.25


WORK = """    gate, up = gate_up[:, :features], gate_up[:, features:]
    return gate * up / (1 + 2.718281828459045 ** -gate)"""


def test_a_kernel_that_does_not_compile_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    reward = judged(tmp_path, changed("tl.sigmoid(gate)", "tl.no_such_function(gate)"))
    assert (reward.format, reward.compile, reward.total) == (True, False, 0.125)
    assert "no_such_function" in reward.log[0]


def test_what_only_the_interpreter_takes_does_not_compile(tmp_path: Path) -> None:
    source = changed("    inside = column < features\n", "    inside = column < features\n    print(f'{features}')\n")
    reward = judged(tmp_path, source)
    assert (reward.format, reward.compile, reward.correct) == (True, False, False)


def test_an_endless_loop_ends_at_the_limit(tmp_path: Path) -> None:
    source = changed(LAUNCH, "    while True:\n        rows += 1\n" + LAUNCH)
    reward = judged(tmp_path, source, Limits(seconds=4))
    assert (reward.format, reward.compile) == (True, False)
    assert reward.log == ("took longer than 4 s",)


def test_memory_is_limited(tmp_path: Path) -> None:
    source = changed("    out = torch", "    spare = torch.empty((1 << 40,), dtype=torch.uint8)\n    out = torch")
    reward = judged(tmp_path, source)
    assert not reward.compile
    assert "memory" in reward.log[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("    out = torch.nn.functional.silu(gate_up)", "torch.nn.functional.silu: the kernel must do the work"),
        ("    out = gate_up.sigmoid()", ".sigmoid: the kernel must do the work"),
        ("    out = gate_up @ gate_up", "a matrix product outside the kernel"),
        ("    import os", "imports os"),
        ("    from torch.nn import functional", "imports from torch.nn"),
        ("    from torch import matmul", "imports from torch: matmul"),
        ("    from hotshoe.kernels import reference", "imports from hotshoe.kernels"),
        ("    torch.cuda.synchronize = print", "assigns to torch.cuda.synchronize"),
        ("    getattr(gate_up, 'sigmo' + 'id')()", "getattr: not needed"),
        ("    gate_up.__class__", "__class__: not needed"),
        ("    triton.testing.do_bench = 1", "triton.testing"),
        ("    try:\n        pass\n    except Exception:\n        pass", "try: a kernel that fails must fail"),
    ],
)
def test_a_wrapper_that_breaks_the_rules_never_runs(line: str, problem: str) -> None:
    found = kernel_format.problems(changed(LAUNCH, line + "\n" + LAUNCH), "silu_mul")
    assert any(problem in each for each in found), found


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def silu_mul(:", "line 1: does not parse"),
        (HONEST.replace("def silu_mul", "def other"), "defines no function silu_mul"),
        (HONEST.replace("@triton.jit\n", ""), "defines no @triton.jit kernel"),
        (HONEST.replace(LAUNCH, ""), "launches none of its kernels"),
    ],
)
def test_a_file_without_its_parts_is_refused(source: str, problem: str) -> None:
    assert any(problem in each for each in kernel_format.problems(source, "silu_mul"))


def test_an_honest_file_keeps_the_rules() -> None:
    assert kernel_format.problems(HONEST, "silu_mul") == []


def test_the_command_prints_the_reward_as_json(tmp_path: Path) -> None:
    file = tmp_path / "candidate.py"
    file.write_text(HONEST.replace(LAUNCH, "    out = gate_up @ gate_up\n" + LAUNCH))
    command = [sys.executable, "-m", "hotshoe.kernels.harness", "silu_mul", "--file", str(file), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    reward = json.loads(done.stdout)
    assert list(reward) == ["format", "compile", "correct", "no_op", "speed", "total", "log"]
    assert (reward["format"], reward["speed"], reward["total"]) == (False, None, 0.0)


def test_what_the_harness_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="op: 'conv' is not one of"):
        judge("conv")
    with pytest.raises(ValueError, match="bfloat16"):
        judge("silu_mul", device="cpu", dtypes=("bfloat16",))
