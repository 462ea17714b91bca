"""Two adapters beside each other: figures of their updates as written out densely."""

import canonical_adapters as canonical
import pytest
import torch

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear, OutputSwap, ScaledCopies
from hotshoe.registry.recipes.comparison import compare
from hotshoe.registry.recipes.dense_update import dense_update


class RandomBase:
    """A base of the canonical adapters' shape."""

    def __init__(self) -> None:
        self.shape: BaseShape = canonical.small_shape()

    def bias(self, linear: LinearId) -> None:
        return None

    def weight(self, linear: LinearId) -> torch.Tensor:
        shape = self.shape.linears[linear]
        generator = torch.Generator().manual_seed(hash(str(linear)) % 1000)
        return torch.randn(shape.out_features, shape.in_features, generator=generator)


def turned(seed: int) -> LoweredAdapter:
    """A rotation of input blocks and of outputs at one linear."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 8, 8, generator=generator)).Q.contiguous()
    swap = OutputSwap(torch.arange(48).roll(1), torch.randn(48, generator=generator))
    return LoweredAdapter("ROAD", {LinearId(1, "q_proj"): LoweredLinear(input_rotation=rotation, output_swap=swap)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (canonical.lora(4, seed=1), canonical.lora(7, seed=2)),
        (canonical.lora(4, seed=1, layers=[0]), canonical.lora(4, seed=3, layers=[0, 1])),
        (canonical.lora(4, seed=1), canonical.ia3(seed=2)),
        (canonical.ia3(seed=1), canonical.ia3(seed=2)),
        (turned(1), canonical.lora(4, seed=1)),
        (turned(1), turned(2)),
    ],
    ids=["lora", "other layers", "lora and ia3", "ia3", "rotation and lora", "rotations"],
)
def test_figures_are_those_of_dense_updates(first: LoweredAdapter, second: LoweredAdapter) -> None:
    base = RandomBase()
    found = compare(first, second, base)
    for linear, one in found.linears.items():
        weight = base.weight(linear)
        updates = [dense_update(adapter.linears.get(linear, LoweredLinear()), weight) for adapter in (first, second)]
        d1, d2 = (torch.zeros_like(weight) if update is None else update for update in updates)
        assert one.first == pytest.approx(float(d1.square().sum()), rel=1e-4)
        assert one.distance == pytest.approx(float((d1 - d2).norm() / max(d1.norm(), d2.norm())), rel=1e-3)
        if d1.norm() and d2.norm():
            assert one.cosine == pytest.approx(float((d1 * d2).sum() / d1.norm() / d2.norm()), abs=1e-4)
        else:
            assert one.cosine is None and one.distance == pytest.approx(1.0)
    changed = {key for adapter in (first, second) for key, part in adapter.linears.items() if part.tensors()}
    assert set(found.linears) == changed


def test_a_rotated_weight_is_what_rotated_inputs_and_outputs_give() -> None:
    part = turned(4).linears[LinearId(1, "q_proj")]
    assert part.input_rotation is not None and part.output_swap is not None
    weight, x = torch.randn(48, 48), torch.randn(5, 48)
    blocks = torch.einsum("nrk,rkc->nrc", x.unflatten(1, (6, 8)), part.input_rotation).flatten(1)
    h = blocks @ weight.T
    expected = h + part.output_swap.gains * h[:, part.output_swap.partners]
    update = dense_update(part, weight)
    assert update is not None
    assert torch.allclose(x @ (weight + update).T, expected, atol=1e-4)


def test_scaled_copies_of_a_weight_are_its_product_with_a_low_rank_matrix() -> None:
    weight, x = torch.randn(48, 32), torch.randn(5, 32)
    copies = ScaledCopies(torch.randn(3, 48), torch.randn(3, 32))
    part = LoweredLinear(output_scale=torch.randn(48), input_scale=torch.randn(32), copies=copies)
    scaled = sum(
        outputs * (x * inputs @ weight.T) for outputs, inputs in zip(copies.outputs, copies.inputs, strict=True)
    )
    expected = part.output_scale * (x * part.input_scale @ weight.T) + scaled  # the copies take x as it is
    update = dense_update(part, weight)
    assert update is not None
    assert torch.allclose(x @ (weight + update).T, expected, atol=1e-4)


def test_an_adapter_is_no_distance_from_itself_and_twice_from_its_opposite() -> None:
    one = canonical.lora(4, seed=1)
    opposite = LoweredAdapter(
        "LORA",
        {name: LoweredLinear(a=part.a, b=-part.b) for name, part in one.linears.items()},  # type: ignore[operator]
    )
    same, other = compare(one, one, RandomBase()).whole, compare(one, opposite, RandomBase()).whole
    assert same.cosine == pytest.approx(1.0) and same.distance == pytest.approx(0.0, abs=1e-6)
    assert other.cosine == pytest.approx(-1.0) and other.distance == pytest.approx(2.0)


def test_what_is_not_compared_is_named() -> None:
    found = compare(canonical.prefix(), canonical.lora(2, bias=True), RandomBase())
    assert found.others == ("bias_delta", "kv_prefix")
    assert compare(canonical.prefix(), canonical.prefix(), RandomBase()).whole.distance == 0.0
