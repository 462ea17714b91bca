"""The cache's slots: written, cleared, and never more than were asked for."""

import pytest
import torch

from hotshoe.server.model.kv_cache import KvCache


def cache() -> KvCache:
    return KvCache(32, num_layers=2, kv_heads=3, head_dim=4)


def test_a_prefix_is_written_into_its_slots_only() -> None:
    kv, slots = cache(), torch.tensor([20, 5, 9])
    keys, values = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)
    kv.write(slots, keys, values)
    for layer in range(2):
        assert torch.equal(kv.keys[layer][slots], keys[layer])
        assert torch.equal(kv.values[layer][slots], values[layer])
    assert sum(int(layer.abs().sum(dim=(1, 2, 3)).ne(0).sum()) for layer in kv.layers) == 2 * 3


def test_zeroed_slots_are_zero_and_the_others_stay() -> None:
    kv = cache()
    kv.write(torch.arange(32), torch.ones(2, 32, 3, 4), torch.ones(2, 32, 3, 4))
    kv.zero(torch.tensor([3, 4]))
    assert float(kv.keys[1][3:5].abs().sum()) == 0
    assert float(kv.values[0].sum()) == 30 * 12


def test_slots_are_all_read_before_one_is_written() -> None:
    kv = cache()
    keys, values = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)
    kv.write(torch.tensor([4, 5, 6]), keys, values)
    kv.copy(torch.tensor([4, 5, 6]), torch.tensor([5, 6, 20]))
    for layer in range(2):
        assert torch.equal(kv.keys[layer][[4, 5, 6, 20]], keys[layer][[0, 0, 1, 2]])
        assert torch.equal(kv.values[layer][[4, 5, 6, 20]], values[layer][[0, 0, 1, 2]])


def test_keys_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[2, 3, 3, 4\]"):
        cache().write(torch.arange(3), torch.zeros(2, 3, 4, 3), torch.zeros(2, 3, 4, 3))


def test_a_cache_has_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="num_slots"):
        KvCache(0, num_layers=1, kv_heads=1, head_dim=4)
