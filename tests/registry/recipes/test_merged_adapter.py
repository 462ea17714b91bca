"""Merges of every sort of adapter are what a stack of the parents computes, for PEFT and for us."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import canonical_adapters as handmade
import pytest
import torch
from canonical import canonical_logits
from peft import LoraConfig, PeftModel, get_peft_model
from peft_adapters import adapter_files, write_ia3, write_lora, write_prefix, write_prompt
from tiny_models import TARGETS, ModelWeights, tiny_llama, tiny_qwen2
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import KvPrefix, LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes import scaled_merging
from hotshoe.registry.recipes.ia3_files import ia3_files
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merged_adapter import MergedAdapter, merged_adapter
from hotshoe.registry.recipes.scale_merging import Scales

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(7))
BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "llama with biases": lambda: tiny_llama(bias=True),
    "qwen2": tiny_qwen2,
}


def made(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    method: str,
    base: PreTrainedModel,
    **parameters: str,
) -> MergedAdapter:
    parsed = MergeParameters.parse(method, parameters)
    parsed.check_parents(list(weights))
    return merged_adapter(adapters, weights, parsed, ModelWeights(base), base_name="tiny")


def read(merged: MergedAdapter, base: PreTrainedModel, directory: Path) -> LoweredAdapter:
    """By our own reader."""
    return lower_adapter(adapter_files(written(merged.files, directory)), ModelWeights(base))


def written(files: object, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    for name, data in dict(files).items():  # type: ignore[call-overload]
        (directory / name).write_bytes(data)
    return directory


@torch.no_grad()
def peft_logits(base: PreTrainedModel, directory: Path) -> Tensor:
    model = PeftModel.from_pretrained(base, directory).eval()
    return model(input_ids=TOKENS).logits[:, -TOKENS.shape[1] :]


def check_both(merged: MergedAdapter, expected: LoweredAdapter, base: Callable[[], PreTrainedModel], at: Path) -> None:
    """The files give the logits of the expected canonical form, read by us and by PEFT, and not the base's."""
    logits = canonical_logits(base(), expected, TOKENS)
    ours = canonical_logits(base(), read(merged, base(), at), TOKENS)
    assert (ours - logits).abs().max() < 1e-5
    assert (peft_logits(base(), at) - logits).abs().max() < 1e-5
    assert (base()(TOKENS).logits - logits).abs().max() > 0.02


# Scales.


def scales(directory: Path, base: PreTrainedModel, seed: int, **options: object) -> LoweredAdapter:
    written = write_ia3(directory / f"scales-{seed}", base, seed=seed, **options)  # type: ignore[arg-type]
    return lower_adapter(adapter_files(written), ModelWeights(base))


def stacked(adapters: Sequence[LoweredAdapter], weights: Sequence[float]) -> LoweredAdapter:
    """What a stack of adapters of linears computes."""

    def around(value: float, name: str, linear: LinearId) -> Tensor | None:
        terms = [
            weight * (getattr(adapter.linears[linear], name).double() - value)
            for adapter, weight in zip(adapters, weights, strict=True)
            if linear in adapter.linears and getattr(adapter.linears[linear], name) is not None
        ]
        return (value + sum(terms)).float() if terms else None  # type: ignore[union-attr, return-value]

    def low_rank(linear: LinearId) -> dict[str, Tensor]:
        found = [
            (adapter.linears[linear].a, weight * adapter.linears[linear].b)  # type: ignore[operator]
            for adapter, weight in zip(adapters, weights, strict=True)
            if linear in adapter.linears and adapter.linears[linear].rank
        ]
        return {"a": torch.cat([a for a, _ in found]), "b": torch.cat([b for _, b in found], 1)} if found else {}

    return LoweredAdapter(
        "LORA",
        {
            linear: LoweredLinear(
                **low_rank(linear),
                input_scale=around(1.0, "input_scale", linear),
                output_scale=around(1.0, "output_scale", linear),
                bias_delta=around(0.0, "bias_delta", linear),
            )
            for adapter in adapters
            for linear in adapter.linears
        },
    )


@pytest.mark.parametrize("base", BASES)
def test_scales_by_linear_are_those_of_the_stack(base: str, tmp_path: Path) -> None:
    first = scales(tmp_path, BASES[base](), 1)
    second = scales(tmp_path, BASES[base](), 2, targets=("q_proj", "v_proj", "down_proj"))
    merged = made([first, second], [0.7, -0.4], "linear", BASES[base]())
    check_both(merged, stacked([first, second], [0.7, -0.4]), BASES[base], tmp_path / "merged")
    assert merged.recipe == {
        "op": "merge",
        "method": "linear",
        "normalize": False,
        "space": "delta",
        "energy_kept": 1.0,
    }
    assert made([first, second], [0.7, -0.4], "linear", BASES[base]()).files == merged.files
    mean = made([first, second], [3.0, 1.0], "linear", BASES[base](), normalize="true")
    check_both(mean, stacked([first, second], [0.75, 0.25]), BASES[base], tmp_path / "mean")


@pytest.mark.parametrize("base", BASES)
def test_geometric_scales_are_products_of_powers(base: str, tmp_path: Path) -> None:
    """Scales of one adapter to the power of two, and of another to a half; a bias is scaled as its output."""
    adapters = [scales(tmp_path, BASES[base](), seed, scale=0.1) for seed in (1, 2)]
    weights = ModelWeights(BASES[base]())
    merged = made(adapters, [2.0, 0.5], "linear", BASES[base](), space="geometric")
    expected = {}
    for linear, part in adapters[0].linears.items():
        other = adapters[1].linears[linear]
        if part.input_scale is not None and other.input_scale is not None:
            expected[linear] = LoweredLinear(input_scale=part.input_scale**2 * other.input_scale.sqrt())
        if part.output_scale is not None and other.output_scale is not None:
            scale, bias = part.output_scale**2 * other.output_scale.sqrt(), weights.bias(linear)
            expected[linear] = LoweredLinear(
                output_scale=scale, bias_delta=None if bias is None else (scale - 1) * bias
            )
    check_both(merged, LoweredAdapter("IA3", expected), BASES[base], tmp_path / "merged")
    assert merged.recipe["space"] == "geometric"


def test_scales_of_some_layers_and_of_either_side_by_layer_name_their_modules(tmp_path: Path) -> None:
    """No list of kinds says what these are: down_proj's inputs in one layer, its outputs in the other."""
    shape, normal = ModelWeights(tiny_llama()).shape, torch.Generator().manual_seed(3)
    inner, outer, query = LinearId(0, "down_proj"), LinearId(1, "down_proj"), LinearId(1, "q_proj")
    inputs = {inner: 1 + 0.3 * torch.randn(shape.linears[inner].in_features, generator=normal)}
    outputs = {
        linear: 1 + 0.3 * torch.randn(shape.linears[linear].out_features, generator=normal) for linear in (outer, query)
    }
    files = ia3_files(Scales(inputs, outputs), shape, base_name="tiny")
    expected = LoweredAdapter(
        "IA3",
        {linear: LoweredLinear(input_scale=scale) for linear, scale in inputs.items()}
        | {linear: LoweredLinear(output_scale=scale) for linear, scale in outputs.items()},
    )
    check_both(MergedAdapter(files, {}, 1.0), expected, tiny_llama, tmp_path / "named")


def test_scales_that_no_ia3_adapter_has_are_refused(tmp_path: Path) -> None:
    base = tiny_llama()
    inputs, outputs = scales(tmp_path, base, 1), scales(tmp_path, base, 2, feedforward=("v_proj",))
    with pytest.raises(InvalidAdapter, match=r"sources: .*inputs of layers\.0\.v_proj"):
        made([outputs, inputs], [1, 1], "linear", base)
    below = replace(inputs, linears={k: replace(v, input_scale=None) for k, v in inputs.linears.items()})
    negative = {
        linear: LoweredLinear(output_scale=-part.output_scale)
        for linear, part in below.linears.items()
        if part.output_scale is not None
    }
    with pytest.raises(InvalidAdapter, match=r"parameters\.space: .*k_proj"):
        made([inputs, LoweredAdapter("IA3", negative)], [1, 1], "linear", base, space="geometric")


# Low-rank updates beside output scales.


def dora(
    directory: Path, base: Callable[[], PreTrainedModel], seed: int, targets: Sequence[str] = TARGETS
) -> LoweredAdapter:
    """Its scales are about 1, as after training."""
    config = LoraConfig(task_type="CAUSAL_LM", r=3 + seed, lora_alpha=8, target_modules=list(targets), use_dora=True)
    model, normal = get_peft_model(base(), config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=normal)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + noise)
            elif "lora_" in name:
                parameter.copy_(noise)
    model.save_pretrained(directory / f"dora-{seed}")
    return lower_adapter(adapter_files(directory / f"dora-{seed}"), ModelWeights(base()))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method, weights", [("linear", [0.7, 0.6, -0.5]), ("cat", [-1.0, 0.2, 1.0])])
def test_updates_and_output_scales_are_those_of_the_stack(
    method: str, weights: list[float], base: str, tmp_path: Path
) -> None:
    """Of two DoRAs and a LoRA, each of linears that another leaves alone."""
    plain = write_lora(tmp_path / "plain", BASES[base](), rank=2, seed=5, targets=("q_proj", "up_proj"))
    parents = [
        dora(tmp_path, BASES[base], 1, TARGETS[:4]),
        dora(tmp_path, BASES[base], 2, TARGETS[2:6]),
        lower_adapter(adapter_files(plain), ModelWeights(BASES[base]())),
    ]
    merged = made(parents, weights, method, BASES[base]())
    check_both(merged, stacked(parents, weights), BASES[base], tmp_path / "merged")
    assert read(merged, BASES[base](), tmp_path / "merged").rank == 9 and merged.energy_kept == 1.0
    assert made(parents, weights, method, BASES[base]()).files == merged.files


def test_output_scales_are_kept_when_updates_are_cut(tmp_path: Path) -> None:
    parents = [dora(tmp_path, tiny_llama, seed) for seed in (1, 2)]
    merged = made(parents, [0.5, 0.5], "svd", tiny_llama(), rank="3")
    found, whole = read(merged, tiny_llama(), tmp_path / "merged"), stacked(parents, [0.5, 0.5])
    assert 0.3 < merged.energy_kept < 0.95 and merged.recipe["rank"] == 3
    for linear, part in found.linears.items():
        expected = whole.linears[linear]
        assert part.rank == 3
        assert torch.allclose(part.output_scale, expected.output_scale, rtol=1e-5)  # type: ignore[arg-type]
        values = torch.linalg.svd((expected.b @ expected.a).double())  # type: ignore[operator]
        best = values.U[:, :3] * values.S[:3] @ values.Vh[:3]
        assert torch.allclose((part.b @ part.a).double(), best, atol=1e-5)  # type: ignore[operator]


def test_output_scales_join_updates_of_other_linears(tmp_path: Path) -> None:
    """IA3 of outputs alone, on a base without biases, is a DoRA without an update."""
    outputs = scales(tmp_path, tiny_llama(), 1, targets=("k_proj", "v_proj"), feedforward=())
    plain = write_lora(tmp_path / "plain", tiny_llama(), rank=2, targets=("v_proj", "up_proj"))
    parents = [outputs, lower_adapter(adapter_files(plain), ModelWeights(tiny_llama()))]
    check_both(made(parents, [1, 1], "linear", tiny_llama()), stacked(parents, [1, 1]), tiny_llama, tmp_path / "merged")


def test_scales_below_0_and_norms_by_a_few_rows_at_a_time_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaled_merging, "_ROWS", 7)
    parents = [dora(tmp_path, tiny_llama, seed) for seed in (1, 2)]
    turned = {
        linear: replace(part, output_scale=part.output_scale - 1.5)  # type: ignore[operator]
        for linear, part in parents[0].linears.items()
    }
    parents[0] = replace(parents[0], linears=turned)
    expected = stacked(parents, [0.9, 0.3])
    assert any((part.output_scale < 0).any() for part in expected.linears.values())  # type: ignore[operator]
    check_both(made(parents, [0.9, 0.3], "linear", tiny_llama()), expected, tiny_llama, tmp_path / "merged")


def test_a_scale_of_0_is_exact_without_an_update_and_refused_beside_one(tmp_path: Path) -> None:
    linear, base = LinearId(0, "v_proj"), tiny_llama()
    shape = ModelWeights(base).shape.linears[linear]
    gone = torch.ones(shape.out_features)
    gone[3] = 0.0
    normal = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, shape.in_features, generator=normal), torch.randn(shape.out_features, 2, generator=normal)
    b[3] = 0.0
    for value, row in ((0.0, 0.0), (1e-30, 1e-3), (0.0, 1.0)):
        gone[3], b[3] = value, row
        parents = [LoweredAdapter("LORA", {linear: LoweredLinear(a=a, b=b, output_scale=gone)})] * 2
        halves = [0.5, 0.5]
        if row == 0.0:
            check_both(made(parents, halves, "linear", base), stacked(parents, halves), tiny_llama, tmp_path / "merged")
            continue
        with pytest.raises(InvalidAdapter, match=r"output 3 of layers\.0\.v_proj would be .*use_dora"):
            made(parents, halves, "linear", base)


# What stands before the prompt.


@pytest.mark.parametrize("write", [write_prefix, write_prompt])
def test_prefixes_and_prompts_stand_one_after_the_other(write: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_llama()
    first, second = (
        lower_adapter(adapter_files(write(tmp_path / f"{n}", base, tokens=n, seed=n)), ModelWeights(base))
        for n in (3, 5)
    )
    merged = made([first, second], [1, 1], "cat", base)
    assert merged.recipe == {"op": "merge", "method": "cat", "energy_kept": 1.0}
    if first.kv_prefix and second.kv_prefix:
        states = [
            torch.cat((getattr(first.kv_prefix, name), getattr(second.kv_prefix, name)), dim=1)
            for name in ("keys", "values")
        ]
        expected = replace(first, kv_prefix=KvPrefix(*states))
    else:
        assert first.prompt_embeddings is not None and second.prompt_embeddings is not None
        expected = replace(first, prompt_embeddings=torch.cat((first.prompt_embeddings, second.prompt_embeddings)))
    check_both(merged, expected, tiny_llama, tmp_path / "merged")
    found = read(merged, base, tmp_path / "merged")
    assert found.kind == first.kind and found.virtual_tokens == 8
    assert list(map(torch.equal, found.tensors(), expected.tensors())) in ([True], [True, True])


@pytest.mark.parametrize("write", [write_prefix, write_prompt])
def test_more_virtual_tokens_than_the_base_has_positions_are_refused(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama()
    one = lower_adapter(adapter_files(write(tmp_path / "one", base, tokens=130)), ModelWeights(base))
    with pytest.raises(IncompatibleAdapter, match="num_virtual_tokens: expected fewer than the 256 positions"):
        read(made([one, one], [1, 1], "cat", base), base, tmp_path / "merged")


# What is refused.


def mixed(name: str) -> LoweredAdapter:
    return {
        "lora": handmade.lora(4),
        "bottleneck": handmade.bottleneck(),
        "lora with biases": handmade.lora(4, bias=True),
        "scales": handmade.ia3(),
        "prefix": handmade.prefix(),
        "prompt": handmade.prompt(),
        "invoked": replace(handmade.lora(4), invocation=(1, 2)),
    }[name]


class Small:
    """A base without biases."""

    shape = handmade.small_shape()

    def bias(self, linear: LinearId) -> None:
        return None


@pytest.mark.parametrize(
    "names, method, parameters, field, said",
    [
        (("lora", "bottleneck"), "linear", {}, "sources", "found LORA of low-rank updates, BOTTLENECK of bottlenecks"),
        (("lora", "scales"), "linear", {}, "method", "expected svd for updates of full rank"),
        (("lora", "lora with biases"), "ties", {}, "method", "for weights, biases, norms and embedding rows"),
        (("lora", "lora"), "linear", {"rows": "linear"}, "parameters.rows", "expected distinct for low-rank updates"),
        (("lora with biases",) * 2, "linear", {"rows": "any"}, "parameters.rows", "expected distinct or linear"),
        (("lora", "invoked"), "linear", {}, "invocation", "cannot be merged"),
        (("scales", "scales"), "ties", {}, "method", "expected linear for scales"),
        (("scales", "scales"), "linear", {"rank": "3"}, "parameters.rank", "for scales"),
        (("prompt", "prefix"), "cat", {}, "sources", "PROMPT_TUNING of soft prompts, PREFIX_TUNING of prefixes"),
        (("prefix", "scales"), "linear", {}, "sources", "a request can stack these"),
        (("prompt", "prompt"), "linear", {}, "method", "expected cat for soft prompts"),
        (("scales", "scales"), "cat", {}, "method", "expected linear for scales"),
        (("lora", "lora"), "linear", {"space": "geometric"}, "parameters.space", "for low-rank updates"),
        (("lora", "lora"), "linear", {"space": "weights"}, "parameters.space", "expected delta or geometric"),
    ],
)
def test_what_cannot_be_merged_is_named(
    names: tuple[str, str], method: str, parameters: dict[str, str], field: str, said: str
) -> None:
    with pytest.raises(InvalidAdapter) as refusal:
        merged_adapter(
            [mixed(name) for name in names],
            [1.0, 1.0],
            MergeParameters.parse(method, parameters),
            Small(),  # type: ignore[arg-type]
            base_name="small",
        )
    assert refusal.value.field == field and said in refusal.value.problem


def test_weights_of_prompts_are_refused() -> None:
    with pytest.raises(InvalidAdapter, match=r"sources\.weight: expected 1 for prefixes"):
        merged_adapter(
            [mixed("prefix"), mixed("prefix")],
            [1.0, 0.5],
            MergeParameters.parse("cat", {}),
            Small(),  # type: ignore[arg-type]
            base_name="small",
        )


def test_low_rank_updates_say_the_same_of_themselves_as_ever(tmp_path: Path) -> None:
    """Digests of merges that were made before scales could be do not change."""
    base = tiny_llama()
    files = [write_lora(tmp_path / f"{seed}", base, rank=3, seed=seed, targets=TARGETS) for seed in (1, 2)]
    merged = made([lower_adapter(adapter_files(one), ModelWeights(base)) for one in files], [1, 0.5], "linear", base)
    assert merged.recipe == {"op": "merge", "method": "linear", "normalize": False, "rank": 0, "energy_kept": 1.0}
