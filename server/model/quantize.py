"""A checkpoint's decoder linears as NF4: the same codes on every machine, in bitsandbytes' own file format."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, Nf4Weight
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.decoder_reader import check_tensors, tensor_shapes
from hotshoe.server.model.spec import ModelSpec

_SHARD_BYTES = 1 << 30
QUANTIZATION_CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


def quantize_nf4(weight: Tensor) -> Nf4Weight:
    """NF4 with nested scales of a weight [out_features, in_features], which is taken as bfloat16.

    The mean of the scales is summed in float64, so that neither threads nor vector width can move it.
    """
    # It would warn that it found no faster kernel for a step, which it is never asked to compute.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    codes, state = quantize_4bit(weight.to("cpu", torch.bfloat16).contiguous(), blocksize=BLOCK, quant_type="nf4")
    scales = state.absmax.float()
    offset = scales.double().mean().float()
    absmax, outer = quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
    return Nf4Weight(
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        codes=codes.reshape(-1),
        quant_map=state.code.float(),
        absmax=absmax,
        absmax_code=outer.code.float(),
        nested_absmax=outer.absmax.float(),
        offset=offset.item(),
    )


def nf4_tensors(name: str, weight: Nf4Weight) -> dict[str, Tensor]:
    """A nested NF4 weight's tensors as bitsandbytes stores them under a weight's name."""
    if weight.absmax_code is None or weight.nested_absmax is None:
        raise ValueError("weight: expected nested scales")
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": list(weight.shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": weight.offset,
    }
    return {
        name: weight.codes.view(-1, 1),
        f"{name}.absmax": weight.absmax,
        f"{name}.quant_map": weight.quant_map.clone(),
        f"{name}.nested_absmax": weight.nested_absmax,
        f"{name}.nested_quant_map": weight.absmax_code.clone(),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def write_quantized(checkpoint: Checkpoint, spec: ModelSpec, directory: Path) -> None:
    """Writes the NF4 form of a checkpoint as a Hugging Face directory: config.json and safetensors, no tokenizer."""
    check_tensors(spec, checkpoint)
    linears = {f"{shape.module}.weight" for _, shape in spec.linears()}
    stored = (_stored(checkpoint, name, shape, name in linears) for name, shape in tensor_shapes(spec).items())
    write_nf4(chain.from_iterable(stored), checkpoint.config, directory)


def write_nf4(tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], directory: Path) -> None:
    """Writes tensors, quantized weights as `nf4_tensors` gives them, and their config as a Hugging Face directory."""
    shards = _ShardWriter(directory)
    for name, tensor in tensors:
        shards.add(name, tensor)
    shards.close()
    config = {**config, "dtype": "bfloat16", "quantization_config": QUANTIZATION_CONFIG}
    config.pop("torch_dtype", None)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stored(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], linear: bool) -> Iterator[tuple[str, Tensor]]:
    tensor = checkpoint.tensor(name)
    if tuple(tensor.shape) != shape:
        raise UnsupportedModel(f"{name}: expected shape {list(shape)}, not {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise UnsupportedModel(f"{name}: has values that are not finite")
    if linear:
        yield from nf4_tensors(name, quantize_nf4(tensor)).items()
    else:
        yield name, tensor.to(torch.bfloat16).contiguous()


class _ShardWriter:
    """Writes tensors into safetensors files of about a gibibyte, so that a big model never lies in memory whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._weight_map: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self._pending[name] = tensor
        self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes >= _SHARD_BYTES:
            self._flush(f"model-{len(set(self._weight_map.values())) + 1:05d}.safetensors")

    def close(self) -> None:
        if not self._weight_map:
            self._flush("model.safetensors")
            return
        if self._pending:
            self._flush(f"model-{len(set(self._weight_map.values())) + 1:05d}.safetensors")
        index: dict[str, Any] = {"metadata": {}, "weight_map": self._weight_map}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    def _flush(self, file_name: str) -> None:
        save_file(self._pending, self._directory / file_name, metadata={"format": "pt"})
        self._weight_map.update(dict.fromkeys(self._pending, file_name))
        self._pending, self._pending_bytes = {}, 0
