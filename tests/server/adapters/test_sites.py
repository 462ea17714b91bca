"""Which linears share a site: one each, or all as one, as the base has them."""

from dataclasses import replace

import pytest
import torch
from tiny_models import base_shape, tiny_llama, tiny_phi3

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.server.adapters.packed_adapter import pack_adapter
from hotshoe.server.adapters.sites import site_shapes, site_targets


def without(shape: BaseShape, *targets: str) -> BaseShape:
    return replace(shape, linears={at: of for at, of in shape.linears.items() if at.target not in targets})


def test_the_targets_of_a_site_are_those_that_the_base_has() -> None:
    apart, fused = site_shapes(base_shape(tiny_llama())), site_shapes(base_shape(tiny_phi3()))
    assert apart[1, "qkv"].targets == ("q_proj", "k_proj", "v_proj") and apart[1, "qkv"].widths == (64, 32, 32)
    assert fused[1, "qkv"].targets == ("qkv_proj",) and fused[1, "qkv"].widths == (128,)
    assert fused[0, "gate_up"].targets == ("gate_up_proj",) and fused[0, "gate_up"].widths == (192,)
    assert fused.keys() == apart.keys() and fused[0, "down"] == apart[0, "down"]


def test_a_base_that_lacks_a_target_or_has_a_site_twice_is_refused_by_the_site() -> None:
    for shape, missing in ((base_shape(tiny_llama()), "k_proj"), (base_shape(tiny_phi3()), "qkv_proj")):
        with pytest.raises(ValueError, match=r"layers\.0\.qkv: expected q_proj, k_proj, v_proj or qkv_proj"):
            site_shapes(without(shape, missing))
    with pytest.raises(ValueError, match="qkv: expected"):
        site_targets({"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"})


def test_a_linear_that_the_base_has_fused_is_none_of_its_own() -> None:
    part = LoweredLinear(a=torch.zeros(2, 64), b=torch.zeros(32, 2))
    for target in ("q_proj", "k_proj"):
        adapter = LoweredAdapter("LORA", {LinearId(0, target): part})
        with pytest.raises(ValueError, match=f"layers.0.{target}: the base has no such linear"):
            pack_adapter(adapter, site_shapes(base_shape(tiny_phi3())), torch.float32)
