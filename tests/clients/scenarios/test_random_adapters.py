"""Random adapters: valid PEFT directories, all different, the same for the same seed."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from hotshoe.clients.adapter_files import WEIGHTS
from hotshoe.clients.scenarios.random_adapters import ATTENTION, EVERY_LINEAR, DecoderShape, write_random_lora

SHAPE = DecoderShape(layers=2, hidden=16, intermediate=24, kv=8)


@pytest.mark.parametrize("targets", (ATTENTION, EVERY_LINEAR))
def test_tensors_have_the_shapes_of_their_linears(tmp_path: Path, targets: tuple[str, ...]) -> None:
    tensors = load_file(write_random_lora(tmp_path / "a", rank=3, seed=1, targets=targets, shape=SHAPE) / WEIGHTS)
    assert len(tensors) == 2 * 2 * len(targets)
    prefix = "base_model.model.model.layers.1"
    assert tensors[f"{prefix}.self_attn.v_proj.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{prefix}.self_attn.v_proj.lora_B.weight"].shape == (8, 3)
    if "down_proj" in targets:
        assert tensors[f"{prefix}.mlp.down_proj.lora_A.weight"].shape == (3, 24)
    spread = [float(abs(tensor).max()) for tensor in tensors.values()]
    assert 0 < min(spread) and max(spread) < 0.1


def test_numbers_may_be_of_four_bytes(tmp_path: Path) -> None:
    halves = load_file(write_random_lora(tmp_path / "a", rank=2, seed=1, shape=SHAPE) / WEIGHTS)
    floats = load_file(write_random_lora(tmp_path / "b", rank=2, seed=1, shape=SHAPE, dtype="F32") / WEIGHTS)
    assert all(abs(floats[name] - halves[name]).max() < 1e-4 for name in halves)
    assert {str(tensor.dtype) for tensor in floats.values()} == {"float32"}


def test_a_seed_gives_its_own_bytes_every_time(tmp_path: Path) -> None:
    written = [
        (write_random_lora(tmp_path / str(i), rank=2, seed=seed, shape=SHAPE) / WEIGHTS).read_bytes()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert written[0] == written[1] != written[2]
