"""Writes PEFT LoRA directories full of small random numbers: many different adapters, without any training."""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hotshoe.clients.adapter_files import CONFIG, WEIGHTS

ATTENTION = ("q_proj", "v_proj")
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NUMPY_TYPES = {"F16": "<f2", "F32": "<f4"}
_BLOCKS = {name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in EVERY_LINEAR}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes of a Llama-like decoder that its adapters must fit."""

    layers: int
    hidden: int
    intermediate: int
    kv: int  # heads times head size, of keys

    def of(self, target: str) -> tuple[int, int]:
        """(in_features, out_features) of a linear."""
        return {
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }.get(target, (self.hidden, self.hidden))


SMOLLM2_135M = DecoderShape(layers=30, hidden=576, intermediate=1536, kv=192)


def write_random_lora(
    directory: Path,
    *,
    rank: int,
    seed: int,
    targets: Sequence[str] = EVERY_LINEAR,
    shape: DecoderShape = SMOLLM2_135M,
    dtype: Literal["F16", "F32"] = "F16",
) -> Path:
    """Makes `directory` a LORA adapter of numbers with a deviation of 0.01. Equal seeds give equal bytes."""
    import numpy as np  # what else is in this package needs none

    sizes = dict(_tensors(shape, targets, rank))
    draw = np.random.default_rng(seed).standard_normal
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / WEIGHTS).open("wb") as stream:
        stream.write(_header(sizes, dtype))
        for rows, columns in sizes.values():
            stream.write((0.01 * draw(rows * columns)).astype(_NUMPY_TYPES[dtype]).tobytes())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    (directory / CONFIG).write_text(json.dumps({**config, "target_modules": list(targets)}))
    return directory


def module_of(layer: int, target: str) -> str:
    """A linear's name in its model."""
    return f"model.layers.{layer}.{_BLOCKS[target]}.{target}"


def _tensors(shape: DecoderShape, targets: Sequence[str], rank: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(shape.layers):
        for target in targets:
            inputs, outputs = shape.of(target)
            module = f"base_model.model.{module_of(layer, target)}"
            yield f"{module}.lora_A.weight", (rank, inputs)
            yield f"{module}.lora_B.weight", (outputs, rank)


def _header(sizes: dict[str, tuple[int, int]], dtype: str) -> bytes:
    """safetensors: its length, then JSON of where each tensor lies, padded to eight bytes."""
    entries: dict[str, object] = {}
    start = 0
    for name, (rows, columns) in sizes.items():
        end = start + int(dtype[1:]) // 8 * rows * columns
        entries[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
