"""A model's tensors by name, read one at a time: a Hugging Face directory of safetensors, plain or bitsandbytes NF4."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, Nf4Weight
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.backends import LinearTensor
from hotshoe.server.model.config_fields import section, shown

_STATE_KEY = "quant_state.bitsandbytes__nf4"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE_KEY)


class Checkpoint(Protocol):
    """What the loader reads a model from."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config, in Hugging Face's spelling."""

    @property
    def names(self) -> frozenset[str]:
        """Hugging Face names of the tensors; a quantized weight is one."""

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that the tensors come from."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's, without reading it; a quantized weight's is that of the weight."""

    def tensor(self, name: str) -> Tensor:
        """A tensor of any float dtype, on the CPU."""

    def linear(self, module: str) -> LinearTensor:
        """The weight of a linear, as it is stored."""


class DirectoryCheckpoint:
    """A directory with config.json and model.safetensors, or an index and its shards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_json(directory / "config.json")
        self._check_quantization()
        self._files = self._index()
        self._open: dict[Path, Any] = {}
        parts = {f"{name}.{part}" for name in self._files for part in _PARTS}
        self.names = frozenset(name for name in self._files if name not in parts)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return tuple(sorted(set(self._files.values())))

    @property
    def quantized(self) -> bool:
        """Whether its linears are NF4 already."""
        return self.config.get("quantization_config") is not None

    def tensor(self, name: str) -> Tensor:
        tensor = self._read(name)
        if not tensor.is_floating_point():
            raise UnsupportedModel(f"{name}: expected a float tensor, not {tensor.dtype}")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        if self._is_nf4(name):
            out_features, in_features = self._quant_state(name)["shape"]
            return out_features, in_features
        return tuple(self._slice(name).get_shape())

    def linear(self, module: str) -> LinearTensor:
        name = f"{module}.weight"
        if not self._is_nf4(name):
            return self.tensor(name)
        state = self._quant_state(name)
        nested = f"{name}.nested_absmax" in self._files
        try:
            return Nf4Weight(
                out_features=state["shape"][0],
                in_features=state["shape"][1],
                codes=self._read(name).view(torch.uint8).reshape(-1),
                quant_map=self._read(f"{name}.quant_map").float(),
                absmax=self._read(f"{name}.absmax"),
                absmax_code=self._read(f"{name}.nested_quant_map").float() if nested else None,
                nested_absmax=self._read(f"{name}.nested_absmax").float() if nested else None,
                offset=float(state.get("nested_offset", 0.0)),
            )
        except ValueError as error:
            raise UnsupportedModel(f"{name}: {error}") from error

    def _is_nf4(self, name: str) -> bool:
        return f"{name}.{_STATE_KEY}" in self._files

    def _quant_state(self, name: str) -> dict[str, Any]:
        """What bitsandbytes notes beside a weight's codes."""
        try:
            state = json.loads(bytes(self._read(f"{name}.{_STATE_KEY}").tolist()))
            blocks = state["blocksize"], state.get("nested_blocksize", NESTED_BLOCK)
            known = len(state["shape"]) == 2 and all(type(size) is int and size > 0 for size in state["shape"])
            float(state.get("nested_offset", 0.0))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UnsupportedModel(f"{name}.{_STATE_KEY}: cannot be read as bitsandbytes wrote it: {error}") from error
        if not known:
            raise UnsupportedModel(f"{name}.{_STATE_KEY}: shape: expected two sizes, not {shown(state['shape'])}")
        if blocks != (BLOCK, NESTED_BLOCK):
            raise UnsupportedModel(f"{name}: only blocks of {BLOCK} with nested blocks of {NESTED_BLOCK} are served")
        return dict(state)

    def _read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file(name).get_tensor(name)
        except SafetensorError as error:
            raise UnsupportedModel(f"{self._files[name].name}: {error}") from error
        return tensor

    def _slice(self, name: str) -> Any:
        """A tensor that is only looked at so far."""
        try:
            return self._file(name).get_slice(name)
        except SafetensorError as error:
            raise UnsupportedModel(f"{self._files[name].name}: {error}") from error

    def _file(self, name: str) -> Any:
        path = self._files.get(name)
        if path is None:
            raise UnsupportedModel(f"{name}: missing from {self.directory.name}")
        if path not in self._open:
            self._open[path] = _open_safetensors(path)
        return self._open[path]

    def _index(self) -> dict[str, Path]:
        """Which file holds each tensor."""
        index = self.directory / "model.safetensors.index.json"
        single = self.directory / "model.safetensors"
        if single.exists() or not index.exists():
            if not single.exists():
                raise UnsupportedModel(f"{self.directory}: has neither {single.name} nor {index.name}")
            return dict.fromkeys(_open_safetensors(single).keys(), single)
        files = {}
        for name, file_name in section(read_json(index), "weight_map").items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise UnsupportedModel(f"{index.name}: {file_name} is not a file beside it")
            files[name] = self.directory / file_name
        for path in sorted(set(files.values())):
            if not path.exists():
                raise UnsupportedModel(f"{index.name}: {path.name} is missing")
        return files

    def _check_quantization(self) -> None:
        if self.config.get("quantization_config") is None:
            return
        quantization = section(self.config, "quantization_config")
        method = quantization.get("quant_method", "bitsandbytes")
        if method != "bitsandbytes" or not quantization.get("load_in_4bit"):
            raise UnsupportedModel(f"quantization_config: {method} is not served here; known is bitsandbytes NF4")
        if quantization.get("bnb_4bit_quant_type") != "nf4":
            raise UnsupportedModel(
                f"bnb_4bit_quant_type: {quantization.get('bnb_4bit_quant_type')} is not served here; known is nf4"
            )


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"{path}: cannot be read as safetensors: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnsupportedModel: the file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{path.parent}: has no {path.name}") from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path}: expected a JSON object")
    return value
