"""Builds the decoder from a checkpoint: every tensor used exactly once, each of the shape that the spec says."""

import torch
from torch import Tensor

from hotshoe.registry.formats.base import LinearId, LinearShape
from hotshoe.server.adapters.sites import site_targets
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.backends import Backend, LinearTensor
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.decoder import Decoder, DecoderLayer
from hotshoe.server.model.linear import SiteLinear
from hotshoe.server.model.spec import BLOCK_NORMS, EMBEDDING, HEAD, ModelSpec

NORM = "model.norm.weight"


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model, by its Hugging Face name."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden_size)}
    if not spec.tied_head:
        shapes[HEAD] = (spec.vocab_size, spec.hidden_size)
    for _, norm in spec.norms():
        shapes[f"{norm.module}.weight"] = (norm.size,)
    for _, linear in spec.linears():
        shapes[f"{linear.module}.weight"] = (linear.out_features, linear.in_features)
        if linear.has_bias:
            shapes[f"{linear.module}.bias"] = (linear.out_features,)
    return shapes


def check_tensors(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Holds a checkpoint's names against the spec.

    Raises:
        UnsupportedModel: tensors are missing, or there are some that the decoder would leave unused.
    """
    expected = tensor_shapes(spec).keys()
    present = {name for name in checkpoint.names if not name.endswith(".rotary_emb.inv_freq")}
    if missing := sorted(expected - present):
        raise UnsupportedModel(f"tensors missing: {_some(missing)}")
    surplus = present - expected
    if spec.tied_head and HEAD in surplus:
        surplus.discard(HEAD)
        if not torch.equal(checkpoint.tensor(HEAD), checkpoint.tensor(EMBEDDING)):
            raise UnsupportedModel(f"tie_word_embeddings: true, but {HEAD} differs from {EMBEDDING}")
    if surplus:
        raise UnsupportedModel(f"tensors that {spec.architecture} does not use: {_some(sorted(surplus))}")


def read_decoder(checkpoint: Checkpoint, spec: ModelSpec, backend: Backend) -> Decoder:
    """A decoder with a checkpoint's weights as they are stored there, arranged for a backend."""
    check_tensors(spec, checkpoint)
    reader = _Reader(checkpoint, spec, backend)
    embedding = reader.tensor(EMBEDDING)
    head = embedding if spec.tied_head else reader.tensor(HEAD)
    return decoder_class(backend)(
        spec,
        backend,
        embedding=embedding.to(backend.device),
        layers=[reader.layer(index) for index in range(spec.num_layers)],
        norm=reader.norm(NORM),
        head=backend.pack_head(head),
    )


def decoder_class(backend: Backend) -> type[Decoder]:
    """What runs a backend; Triton is imported only where it is used."""
    if backend.ops is None:
        return Decoder
    from hotshoe.server.model.triton_decoder import TritonDecoder

    return TritonDecoder


class _Reader:
    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, backend: Backend) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._backend = backend
        self._shapes = tensor_shapes(spec)
        self._linears = dict(spec.linears())
        self._targets = site_targets({linear.target for linear in self._linears})

    def tensor(self, name: str) -> Tensor:
        tensor = self._checkpoint.tensor(name)
        _check_shape(name, tuple(tensor.shape), self._shapes[name])
        return tensor

    def norm(self, name: str) -> Tensor:
        """What a norm multiplies by; a sum in float32, which bfloat16 has no room for."""
        weight = self.tensor(name)
        if self._spec.norm_offset:
            return (weight.float() + self._spec.norm_offset).to(self._backend.device)
        return weight.to(self._backend.device, self._backend.dtype)

    def layer(self, index: int) -> DecoderLayer:
        prefix = f"model.layers.{index}"
        return DecoderLayer(
            input_norm=self.norm(f"{prefix}.input_layernorm.weight"),
            mlp_norm=self.norm(f"{prefix}.{self._spec.mlp_norm}.weight"),
            block_norms=self._block_norms(prefix) if self._spec.block_norms else None,
            qk_norm=self._qk_norm(prefix) if self._spec.qk_norm else None,
            sites={site: self._site(index, targets) for site, targets in self._targets.items()},
        )

    def _block_norms(self, prefix: str) -> tuple[Tensor, Tensor]:
        attention, mlp = (f"{prefix}.{name}.weight" for name in BLOCK_NORMS)
        return self.norm(attention), self.norm(mlp)

    def _qk_norm(self, prefix: str) -> Tensor:
        query = self.norm(f"{prefix}.self_attn.q_norm.weight").expand(self._spec.num_heads, -1)
        key = self.norm(f"{prefix}.self_attn.k_norm.weight").expand(self._spec.num_kv_heads, -1)
        return torch.cat((query, key))

    def _site(self, layer: int, targets: tuple[str, ...]) -> SiteLinear:
        shapes = [self._linears[LinearId(layer, target)] for target in targets]
        parts = [self._linear(shape) for shape in shapes]
        return SiteLinear(self._backend.pack(parts), [shape.out_features for shape in shapes], self._bias(shapes))

    def _linear(self, shape: LinearShape) -> LinearTensor:
        part = self._checkpoint.linear(shape.module)
        stored = tuple(part.shape)
        _check_shape(f"{shape.module}.weight", stored, (shape.out_features, shape.in_features))
        return part

    def _bias(self, shapes: list[LinearShape]) -> Tensor | None:
        if not any(shape.has_bias for shape in shapes):
            return None
        parts = [
            self.tensor(f"{shape.module}.bias").float() if shape.has_bias else torch.zeros(shape.out_features)
            for shape in shapes
        ]
        return torch.cat(parts).to(self._backend.device, self._backend.dtype)


def _check_shape(name: str, stored: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if stored != expected:
        raise UnsupportedModel(f"{name}: expected shape {list(expected)}, not {list(stored)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
