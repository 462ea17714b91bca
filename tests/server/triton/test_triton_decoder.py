"""The decoder in Triton kernels: the reference's logits, for every family, kind of adapter and choice of operations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from triton_base import (
    FAMILIES,
    TOLERANCE,
    Part,
    TritonBase,
    prompts_then_decodes,
    recorded,
    relative_error,
    run_step,
    triton_base,
)

from hotshoe.server.model import triton_layers

STACKS = ((0, 1.0),), ((1, 1.0), (2, -0.5)), (), ((3, 1.0),)


def logits(base: TritonBase, name: str, stacks=STACKS) -> Tensor:
    decoder = base.decoder if name == "triton" else base.reference
    slots, kv = base.slots(name), base.cache(decoder)
    return torch.cat([run_step(decoder, slots, kv, step) for step in prompts_then_decodes(stacks)])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_references(family: str, tmp_path: Path, device: torch.device) -> None:
    base = triton_base(tmp_path, family, device, num_layers=2 if family.startswith(("qwen", "gemma")) else 1)
    expected = logits(base, "reference")
    assert relative_error(logits(base, "triton"), expected) < TOLERANCE[device.type]
    assert relative_error(logits(base, "triton", [()] * 4), expected) > 0.1


@pytest.mark.parametrize(
    ("family", "ops"),
    [
        ("qwen3", "linear=cublas"),
        ("qwen3", "norm=torch,rope=torch,activation=torch"),
        ("qwen3", "attention=sdpa"),
        ("qwen3", "linear=bitsandbytes,norm=torch"),
        ("gemma2", "norm=torch,rope=torch,activation=torch,attention=sdpa"),
    ],
)
def test_any_operation_may_be_a_librarys(family: str, ops: str, tmp_path: Path, device: torch.device) -> None:
    base = triton_base(tmp_path, family, device, ops=ops, num_layers=2 if family == "gemma2" else 1)
    stacks = [((4, 1.0),), *STACKS[1:]]
    tolerance = max(TOLERANCE[device.type], 2e-2 if "bitsandbytes" in ops else 0.0)
    assert relative_error(logits(base, "triton", stacks), logits(base, "reference", stacks)) < tolerance


def test_many_rows_multiply_by_a_decoded_weight(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = triton_base(tmp_path, "llama", device)
    expected = logits(base, "reference")
    monkeypatch.setattr(triton_layers, "DENSE_ROWS", 8)
    monkeypatch.setattr(triton_layers, "nf4_linear", _only_below(8))
    assert relative_error(logits(base, "triton"), expected) < TOLERANCE[device.type]


def test_far_sequences_turn_otherwise_beside_others_at_once_and_recorded(tmp_path: Path, device: torch.device) -> None:
    base = triton_base(tmp_path, "phi3", device)
    steps = prompts_then_decodes(STACKS)
    steps = [[replace(part, far=part.pages == [1, 5]) for part in step] for step in steps]
    steps.append([Part([33], 4, [2], STACKS[1]), Part([44], 11, [1, 5], STACKS[0], far=True)])

    def run(name: str, steps: list, *, record: bool = False) -> Tensor:
        decoder = base.decoder if name == "triton" else base.reference
        slots, kv = base.slots(name), base.cache(decoder)
        if record:
            recorded(base, kv, slots)
        return torch.cat([run_step(decoder, slots, kv, step) for step in steps])

    expected = run("reference", steps)
    assert relative_error(run("triton", steps), expected) < TOLERANCE[device.type]
    assert relative_error(run("triton", steps, record=True), expected) < TOLERANCE[device.type]
    near = run("reference", [[replace(part, far=False) for part in step] for step in steps])
    assert relative_error(near[-1], expected[-1]) > 1e-2 and torch.equal(near[-2], expected[-2])


def _only_below(limit: int):
    real = triton_layers.nf4_linear

    def nf4_linear(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        assert x.shape[0] < limit
        return real(x, *args, **kwargs)

    return nf4_linear


def test_scales_that_differ_between_a_sites_targets(tmp_path: Path, device: torch.device) -> None:
    base = triton_base(tmp_path, "qwen2", device)
    stacks = [((4, 1.0),), ((4, 0.5), (3, 1.0), (0, 1.0)), (), ((3, 1.0),)]
    assert relative_error(logits(base, "triton", stacks), logits(base, "reference", stacks)) < TOLERANCE[device.type]
