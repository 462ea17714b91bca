"""Merges of biases, norms, token rows and full-rank updates are θ + Σ w (θᵢ − θ) of every weight, as dense matrices."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from canonical import canonical_logits
from peft import (
    BeftConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    RoadConfig,
    TrainableTokensConfig,
)
from peft_adapters import adapter_files, save_peft
from tiny_models import ModelWeights, tiny_llama, tiny_qwen2
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merged_adapter import MergedAdapter, merged_adapter

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(7))
FIRST, SECOND = TOKENS[0, :2].tolist(), TOKENS[1, 3:5].tolist()  # tokens of which rows are trained

Base = Callable[[], PreTrainedModel]


def untied() -> PreTrainedModel:
    return tiny_llama()


def tied() -> PreTrainedModel:
    return tiny_llama(tied=True)


def biased() -> PreTrainedModel:
    return tiny_llama(bias=True)


def lora(rank: int = 3, **fields: object) -> LoraConfig:
    options = {"target_modules": ["q_proj", "up_proj"], "lora_alpha": 8, **fields}
    return LoraConfig(task_type="CAUSAL_LM", r=rank, **options)  # type: ignore[arg-type]


def of(config: type[PeftConfig], **fields: object) -> PeftConfig:
    return config(task_type="CAUSAL_LM", **fields)


def beft(*targets: str) -> PeftConfig:
    return of(BeftConfig, target_modules=list(targets))


def norms(*targets: str, **fields: object) -> PeftConfig:
    return of(LNTuningConfig, target_modules=list(targets), **fields)


def tokens(*token_ids: int) -> PeftConfig:
    return of(TrainableTokensConfig, token_indices=list(token_ids))


def oft(*targets: str) -> PeftConfig:
    return of(OFTConfig, target_modules=list(targets), oft_block_size=8, r=0)


def written(configs: Sequence[PeftConfig], base: Base, directory: Path) -> list[Path]:
    paths = [directory / f"parent-{seed}" for seed in range(len(configs))]
    for seed, (path, config) in enumerate(zip(paths, configs, strict=True)):
        save_peft(path, base(), config, seed=seed + 1)
    return paths


def lowered(path: Path, base: Base) -> LoweredAdapter:
    return lower_adapter(adapter_files(path), ModelWeights(base()))


def made(paths: Sequence[Path], weights: Sequence[float], base: Base, method: str, **parameters: str) -> MergedAdapter:
    parsed = MergeParameters.parse(method, parameters)
    parsed.check_parents(list(weights))
    parents = [lowered(path, base) for path in paths]
    return merged_adapter(parents, weights, parsed, ModelWeights(base()), base_name="tiny")


@torch.no_grad()
def dense(paths: Sequence[Path], weights: Sequence[float], base: Base) -> PreTrainedModel:
    """θ + Σ w (θᵢ − θ), with θᵢ as PEFT merges each parent into the weights. A tied head is apart after that."""
    model = base()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = {name: tensor.double() for name, tensor in plain.items()}
    for path, weight in zip(paths, weights, strict=True):
        state = PeftModel.from_pretrained(base(), path).merge_and_unload().state_dict()
        assert state.keys() == plain.keys()
        for name, tensor in state.items():
            total[name] += weight * (tensor.double() - plain[name].double())
    model.load_state_dict({name: tensor.float() for name, tensor in total.items()})
    return model


@torch.no_grad()
def check(merged: MergedAdapter, model: PreTrainedModel, base: Base, directory: Path) -> LoweredAdapter:
    """The merged files, read by us and by PEFT, give that model's logits, and not the base's. Returns what we read."""
    directory.mkdir()
    for name, data in merged.files.items():
        (directory / name).write_bytes(data)
    expected: Tensor = model(TOKENS).logits
    found = lowered(directory, base)
    assert (canonical_logits(base(), found, TOKENS) - expected).abs().max() < 2e-5
    assert (PeftModel.from_pretrained(base(), directory).eval()(TOKENS).logits - expected).abs().max() < 2e-5
    assert (base()(TOKENS).logits - expected).abs().max() > 0.02
    return found


@pytest.mark.parametrize(
    "base, configs, kind",
    [
        (biased, (lora(lora_bias=True), lora(2, lora_bias=True, target_modules=["q_proj", "o_proj"])), "LORA"),
        (biased, (lora(bias="all"), lora(2, bias="lora_only")), "LORA"),
        (tiny_qwen2, (lora(bias="lora_only"), beft("q_proj", "k_proj")), "LORA"),
        (biased, (beft("q_proj", "down_proj"), beft("q_proj", "v_proj")), "BEFT"),
        (biased, (lora(use_dora=True), beft("q_proj", "v_proj")), "LORA"),
        (biased, (lora(use_dora=True), lora(2, lora_bias=True), norms("model.norm")), "LORA"),
        (untied, (norms("input_layernorm"), norms("input_layernorm", "model.norm")), "LN_TUNING"),
        (untied, (norms("input_layernorm"), lora()), "LORA"),
        (biased, (norms("model.norm"), beft("q_proj")), "BEFT"),
        (untied, (tokens(*FIRST), tokens(*SECOND)), "TRAINABLE_TOKENS"),
        (tied, (tokens(*FIRST), tokens(*SECOND)), "TRAINABLE_TOKENS"),
        (tied, (lora(trainable_token_indices=FIRST), tokens(*SECOND)), "LORA"),
        (untied, (lora(trainable_token_indices={"embed_tokens": FIRST, "lm_head": SECOND}), tokens(*SECOND)), "LORA"),
        (untied, (lora(modules_to_save=["lm_head"]), tokens(*FIRST)), "LORA"),
        (tied, (lora(trainable_token_indices=FIRST, modules_to_save=["model.norm"]), tokens(*SECOND)), "LORA"),
        (tied, (norms("model.norm"), tokens(*FIRST)), "LN_TUNING"),
        (untied, (lora(target_modules=["embed_tokens", "q_proj"]), lora(2, target_modules=["embed_tokens"])), "LORA"),
        (untied, (lora(target_modules=["lm_head", "v_proj"]), lora(2), norms("model.norm")), "LORA"),
        (tiny_qwen2, (lora(target_modules=["lm_head", "embed_tokens"]), beft("q_proj")), "LORA"),
        (untied, (lora(target_modules=["embed_tokens"]), tokens(*FIRST), lora(2, modules_to_save=["lm_head"])), "LORA"),
    ],
)
@pytest.mark.parametrize("normalize", ["false", "true"])
def test_linear_is_the_weighted_sum_of_what_each_parent_changes(
    base: Base, configs: Sequence[PeftConfig], kind: str, normalize: str, tmp_path: Path
) -> None:
    weights = [0.8, 0.5, 0.6][: len(configs)]
    paths = written(configs, base, tmp_path)
    merged = made(paths, weights, base, "linear", normalize=normalize)
    shares = [weight / sum(weights) if normalize == "true" else weight for weight in weights]
    assert check(merged, dense(paths, shares, base), base, tmp_path / "merged").kind == kind
    assert merged.energy_kept == 1.0 and merged.recipe == {
        "op": "merge",
        "method": "linear",
        "normalize": normalize == "true",
        "rank": 0,
        "rows": "distinct",
        "energy_kept": 1.0,
    }
    assert made(paths, weights, base, "linear", normalize=normalize).files == merged.files


def test_updates_are_cut_and_the_rest_is_kept(tmp_path: Path) -> None:
    paths = written((lora(lora_bias=True), lora(4, lora_bias=True), norms("model.norm")), biased, tmp_path)
    merged = made(paths, [1, 1, 1], biased, "svd", rank="2")
    assert 0.3 < merged.energy_kept < 0.95
    whole = dense(paths, [1, 1, 1], biased)
    with torch.no_grad():
        for name, part in whole.named_modules():
            if name.endswith(("q_proj", "up_proj")):
                base_weight = biased().get_submodule(name).weight
                values = torch.linalg.svd((part.weight - base_weight).double())
                part.weight.copy_(base_weight + values.U[:, :2] * values.S[:2] @ values.Vh[:2])
    assert check(merged, whole, biased, tmp_path / "merged").rank == 2


def test_tokens_with_two_rows_are_a_conflict_unless_they_are_to_be_added(tmp_path: Path) -> None:
    paths = written((tokens(*FIRST), tokens(FIRST[1], *SECOND)), tied, tmp_path)
    with pytest.raises(InvalidAdapter, match=rf"different rows of the embedding .*: {FIRST[1]}; .*rows=linear"):
        made(paths, [0.5, 0.5], tied, "linear")
    merged = made(paths, [0.5, 0.7], tied, "linear", rows="linear")
    assert merged.recipe["rows"] == "linear"
    check(merged, dense(paths, [0.5, 0.7], tied), tied, tmp_path / "merged")
    same = made([paths[0], paths[0]], [0.5, 0.5], tied, "linear")  # equal rows are none
    check(same, dense([paths[0]], [1.0], tied), tied, tmp_path / "same")


# Updates of embedding and head.


@torch.no_grad()
def with_tokens(paths: Sequence[Path], weights: Sequence[float], rank: int = 0) -> tuple[PreTrainedModel, float, float]:
    """A tied model, its head apart, of which only tokens change; and what cutting keeps of how much."""
    model, kept, size = tied(), 0.0, 0.0
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    parents = [lowered(path, tied) for path in paths]
    for part, updates in (
        (model.model.embed_tokens, [parent.embedding_update for parent in parents]),
        (model.lm_head, [parent.head_update for parent in parents]),
    ):
        terms = [c * u.rows.double() @ u.directions.double() for u, c in zip(updates, weights, strict=True) if u]
        values = torch.linalg.svd(sum(terms[1:], start=terms[0]), full_matrices=False)
        most = rank or len(values.S)
        part.weight += (values.U[:, :most] * values.S[:most] @ values.Vh[:most]).float()
        kept, size = kept + float(values.S[:most].square().sum()), size + float(values.S.square().sum())
    return model, kept, size


BOTH = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(("method", "rank"), [("linear", 0), ("cat", 0), ("svd", 2), ("linear", 2)])
def test_updates_of_tied_tokens_are_added_to_each_by_itself(
    method: str, rank: int, is_tied: bool, tmp_path: Path
) -> None:
    configs = (lora(target_modules=BOTH, ensure_weight_tying=is_tied), lora(4, target_modules=["embed_tokens"]))
    paths, weights = written(configs, tied, tmp_path), [0.8, -0.5]
    merged = made(paths, weights, tied, method, **({"rank": str(rank)} if rank else {}))
    model, kept, size = with_tokens(paths, weights, rank)
    found = check(merged, model, tied, tmp_path / "merged")
    assert merged.energy_kept == pytest.approx(kept / size, abs=1e-6) and (rank == 0) == (merged.energy_kept == 1.0)
    assert found.rank == (rank or 7) and not found.linears


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], BOTH])
def test_rows_of_tied_tokens_are_changed_below_their_update(targets: list[str], tmp_path: Path) -> None:
    paths = written((lora(target_modules=targets), tokens(*FIRST)), tied, tmp_path)
    merged = made(paths, [0.8, 0.5], tied, "linear")
    one, rows = (lowered(path, tied) for path in paths)
    model = tied()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        for part, update in ((model.model.embed_tokens, one.embedding_update), (model.lm_head, one.head_update)):
            if update:
                part.weight += 0.8 * update.rows @ update.directions
            part.weight[FIRST] += 0.5 * (rows.embedding_rows.rows - rows.embedding_rows.base)  # type: ignore[union-attr]
    check(merged, model, tied, tmp_path / "merged")


def test_rows_of_a_tied_head_alone_are_refused_beside_an_update(tmp_path: Path) -> None:
    configs = (lora(target_modules=["embed_tokens"]), lora(trainable_token_indices={"lm_head": FIRST}))
    with pytest.raises(InvalidAdapter, match="change rows of a tied embedding or head alone"):
        made(written(configs, tied, tmp_path), [0.8, 0.5], tied, "linear")


def test_updates_of_tokens_beside_rotations_are_cut_with_them(tmp_path: Path) -> None:
    paths, weights = written((oft("q_proj"), lora(target_modules=BOTH)), untied, tmp_path), [0.8, 0.5]
    merged = made(paths, weights, untied, "svd", rank="64")
    whole = dense(paths, weights, untied)
    check(merged, whole, untied, tmp_path / "merged")
    kept = total = 0.0
    for name, part in whole.named_modules():
        if name.endswith(("_proj", *BOTH)):
            update = part.weight.detach() - untied().get_submodule(name).weight.detach()
            squares = torch.linalg.svdvals(update.double()).square()
            kept, total = kept + float(squares[:2].sum()), total + float(squares.sum())
    assert made(paths, weights, untied, "svd", rank="2").energy_kept == pytest.approx(kept / total, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lora(use_dora=True), "change output scales, and all tokens' rows"),
        (lora(lora_bias=True), r"add a bias to layers\.0\.q_proj, which has none, beside tokens' updates"),
    ],
)
def test_what_peft_has_not_beside_updates_of_tokens_is_refused(other: PeftConfig, problem: str, tmp_path: Path) -> None:
    paths = written((lora(target_modules=BOTH), other), untied, tmp_path)
    with pytest.raises(InvalidAdapter, match=problem):
        made(paths, [1.0, 1.0], untied, "linear")


# Updates of full rank.


@pytest.mark.parametrize(
    "configs",
    [
        (oft("q_proj", "up_proj"), oft("q_proj", "v_proj")),
        (oft("q_proj"), lora(lora_bias=True)),
        (of(IA3Config, target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]), lora()),
        (of(RoadConfig, target_modules=["q_proj"]), beft("k_proj")),
    ],
)
def test_rotations_and_scales_of_inputs_are_cut_to_a_rank_on_request(
    configs: Sequence[PeftConfig], tmp_path: Path
) -> None:
    paths, weights = written(configs, biased, tmp_path), [0.8, 0.5]
    with pytest.raises(InvalidAdapter, match="expected svd for updates of full rank, found 'linear'; a request can"):
        made(paths, weights, biased, "linear")
    every = made(paths, weights, biased, "svd", rank="64")
    assert every.energy_kept == pytest.approx(1.0)
    whole = dense(paths, weights, biased)
    assert check(every, whole, biased, tmp_path / "every").kind == "LORA"
    cut = made(paths, weights, biased, "svd", rank="5")
    kept = total = 0.0
    for name, part in whole.named_modules():
        if name.endswith("_proj"):
            update = part.weight.detach() - biased().get_submodule(name).weight.detach()
            squares = torch.linalg.svdvals(update.double()).square()
            kept, total = kept + float(squares[:5].sum()), total + float(squares.sum())
    assert cut.energy_kept == pytest.approx(kept / total, abs=1e-5) and cut.energy_kept < 0.99
    assert cut.recipe["energy_kept"] == round(cut.energy_kept, 6)
    assert made(paths, weights, biased, "svd", rank="5").files == cut.files


# What no PEFT kind holds.


def test_a_bias_where_the_base_has_none_joins_updates_but_not_output_scales(tmp_path: Path) -> None:
    out = torch.ones(32)
    bias = LoweredAdapter("BEFT", {LinearId(0, "v_proj"): LoweredLinear(bias_delta=out)})
    weights, parameters = ModelWeights(untied()), MergeParameters.parse("linear", {})
    plain, scaled = (lowered(path, untied) for path in written((lora(), lora(use_dora=True)), untied, tmp_path))
    merged = merged_adapter([bias, plain], [0.5, 1.0], parameters, weights, base_name="tiny")
    for name, data in merged.files.items():
        (tmp_path / name).write_bytes(data)
    found = lowered(tmp_path, untied)
    assert torch.equal(found.linears[LinearId(0, "v_proj")].bias_delta, 0.5 * out)  # type: ignore[arg-type]
    with pytest.raises(InvalidAdapter, match=r"add a bias to layers\.0\.v_proj, which has none, beside output scales"):
        merged_adapter([bias, scaled], [1.0, 1.0], parameters, weights, base_name="tiny")


def test_rows_of_the_head_alone_are_refused(tmp_path: Path) -> None:
    [path] = written((lora(trainable_token_indices={"lm_head": FIRST}),), untied, tmp_path)
    found = lowered(path, untied)
    alone = LoweredAdapter("LORA", head_rows=found.head_rows)
    parameters = MergeParameters.parse("linear", {})
    with pytest.raises(InvalidAdapter, match="rows of the output head and no linear"):
        merged_adapter([alone, alone], [0.5, 0.5], parameters, ModelWeights(untied()), base_name="tiny")
