"""The keys and values of every cached position, in slots that the engine hands out."""

import torch
from torch import Tensor


class KvCache:
    """One arena per layer, token-major: [num_slots, 2, kv_heads, head_dim], keys then values.

    The first page is never written and stays zero; padding points at its slot 0.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        num_layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots: must be at least 1, not {num_slots}")
        shape = (num_slots, 2, kv_heads, head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def num_slots(self) -> int:
        return self.layers[0].shape[0]

    @property
    def keys(self) -> list[Tensor]:
        """Per layer, a view [num_slots, kv_heads, head_dim]."""
        return [layer[:, 0] for layer in self.layers]

    @property
    def values(self) -> list[Tensor]:
        """Per layer, a view [num_slots, kv_heads, head_dim]."""
        return [layer[:, 1] for layer in self.layers]

    @property
    def size_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Puts given keys and values into slots, e.g. a learned prefix.

        Args:
            slots: [n] int64.
            keys, values: [num_layers, n, kv_heads, head_dim], of any float dtype and device.
        """
        expected = (len(self.layers), slots.shape[0], *self.layers[0].shape[2:])
        if keys.shape != expected or values.shape != expected:
            raise ValueError(f"keys, values: expected {list(expected)}, not {list(keys.shape)}, {list(values.shape)}")
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            layer.index_copy_(0, slots.to(layer.device), torch.stack((key, value), dim=1).to(layer))

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copies slots `sources` [n] to slots `targets` [n], both int64, in every layer; all are read first."""
        for layer in self.layers:
            layer.index_copy_(0, targets.to(layer.device), layer.index_select(0, sources.to(layer.device)))

    def zero(self, slots: Tensor) -> None:
        """Clears slots [n] int64 in every layer."""
        for layer in self.layers:
            layer.index_fill_(0, slots.to(layer.device), 0)
