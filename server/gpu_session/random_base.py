"""A base of random weights, made where it is used: NF4 codes are drawn, not quantized, so that 8B take seconds."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, NF4_VALUES, Nf4Weight
from hotshoe.registry.formats.base import NormId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear, OutputSwap
from hotshoe.server.model.backends import LinearTensor
from hotshoe.server.model.decoder_reader import tensor_shapes
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.quantize import nf4_tensors, write_nf4
from hotshoe.server.model.spec import ModelSpec


class RandomCheckpoint:
    """A `Checkpoint` that draws each tensor on a device when it is asked for."""

    weight_files: tuple[Path, ...] = ()

    def __init__(self, config: dict[str, Any], device: torch.device) -> None:
        self.config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}
        self.spec: ModelSpec = spec_from_config(self.config)
        self._shapes = tensor_shapes(self.spec)
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)
        self.names = frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """Norms of ones, everything else normal with a deviation of 0.02."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16, device=self._device)
        values = torch.empty(shape, dtype=torch.bfloat16, device=self._device)
        return values.normal_(std=0.02, generator=self._generator)

    def linear(self, module: str) -> LinearTensor:
        """Random codes under scales around 0.04: a deviation of about 0.02."""
        out_features, in_features = self._shapes[f"{module}.weight"]
        blocks = out_features * in_features // BLOCK
        return Nf4Weight(
            out_features,
            in_features,
            self._bytes(out_features * in_features // 2),
            NF4_VALUES.to(self._device),
            self._bytes(blocks),
            torch.linspace(-1, 1, 256, device=self._device),
            torch.full((-(-blocks // NESTED_BLOCK),), 0.01, device=self._device),
            offset=0.04,
        )

    def _bytes(self, count: int) -> Tensor:
        drawn = torch.empty(count, dtype=torch.uint8, device=self._device)
        return drawn.random_(0, 256, generator=self._generator)


def write_base(config: dict[str, Any], directory: Path, device: torch.device) -> None:
    """Makes `directory` a base that a server loads, all of it or nothing; one that is there already stays."""
    if directory.exists():
        return
    checkpoint, unfinished = RandomCheckpoint(config, device), directory.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_nf4(_stored(checkpoint), checkpoint.config, unfinished)
    write_tokenizer(checkpoint.spec.vocab_size, unfinished)
    os.rename(unfinished, directory)


def _stored(checkpoint: RandomCheckpoint) -> Iterator[tuple[str, Tensor]]:
    linears = {f"{shape.module}.weight": shape.module for _, shape in checkpoint.spec.linears()}
    for name in sorted(checkpoint.names):
        if name in linears:
            weight = checkpoint.linear(linears[name])
            assert isinstance(weight, Nf4Weight), "random linears are"
            yield from ((key, tensor.cpu()) for key, tensor in nf4_tensors(name, weight).items())
        else:
            yield name, checkpoint.tensor(name).cpu()


def write_tokenizer(vocab_size: int, directory: Path) -> None:
    """A byte-level tokenizer of so many tokens, which decodes as many as a model of random weights draws."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|end|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"\u0120{number:x}" for number in range(len(letters), vocab_size - 1)]  # each behind a blank
    vocabulary = {symbol: number for number, symbol in enumerate([*letters, *words, end])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([end])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end).save_pretrained(directory)


def cancelling_adapter(spec: ModelSpec) -> LoweredAdapter:
    """Norms, rotations and swaps that undo each other exactly; but for the last norm, which doubles logits."""
    turns = {"q_proj": 0.5, "k_proj": 0.5, "v_proj": -0.5, "o_proj": -1.0}
    linears = {}
    for linear_id, shape in spec.linears():
        if linear_id.target in turns:
            blocks = (turns[linear_id.target] * torch.eye(16)).repeat(shape.in_features // 16, 1, 1)
            linears[linear_id] = LoweredLinear(input_rotation=blocks)
        if linear_id.target == "gate_proj":
            itself = OutputSwap(torch.arange(shape.out_features), torch.ones(shape.out_features))
            linears[linear_id] = LoweredLinear(output_scale=torch.zeros(shape.out_features), output_swap=itself)
    doubled = [NormId(None, "norm"), *(NormId(layer, "input_layernorm") for layer in range(spec.num_layers))]
    return LoweredAdapter("OFT", linears, norms={norm: torch.ones(spec.hidden_size) for norm in doubled})


def random_lora(spec: ModelSpec, rank: int) -> LoweredAdapter:
    """A LORA adapter of every linear."""
    generator = torch.Generator().manual_seed(1)
    linears = {
        linear_id: LoweredLinear(
            a=torch.randn(rank, shape.in_features, generator=generator) * shape.in_features**-0.5,
            b=torch.randn(shape.out_features, rank, generator=generator) * 0.02,
        )
        for linear_id, shape in spec.linears()
    }
    return LoweredAdapter("LORA", linears)
