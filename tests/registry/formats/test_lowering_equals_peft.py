"""Every kind and variant, saved by PEFT, lowered by us, and run in the canonical form: the same logits as PEFT's."""

import copy
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from canonical import canonical_logits
from peft import PeftModel, PeftType, get_peft_model
from peft.tuners.unilora.model import UniLoraModel
from peft_adapters import (
    adapter_files,
    save_peft,
    write_forced_token_lora,
    write_ia3,
    write_lora,
    write_prefix,
    write_prompt,
)
from peft_kinds import CONFIGS, DENSE_CONFIGS, for_fused, ia3, lora, one_of_each_kind, suits, tasks_of
from safetensors.torch import load_file, save_file
from tiny_models import TARGETS, ModelWeights, base_shape, tiny_llama, tiny_phi3, tiny_qwen2

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats import unilora
from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS, DENSE_KINDS, REFUSED_KINDS
from hotshoe.registry.formats.kind_table import adapterhub_table, dense_table, kind_table
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
from hotshoe.registry.formats.unilora import dealt_places

TOKENS = torch.randint(0, 128, (3, 11), generator=torch.Generator().manual_seed(7))
MODELS = {
    "llama": tiny_llama,
    "llama with biases": lambda: tiny_llama(bias=True),
    "qwen2": tiny_qwen2,
    "tied llama": lambda: tiny_llama(tied=True),
}
ALL = list(TARGETS)


@torch.no_grad()
def peft_logits(model, directory, task=None):
    """By PEFT's own loading of the files, which must find exactly the tensors that it expects."""
    wrapped = PeftModel.from_pretrained(model, directory).eval()
    chosen = {} if task is None else {"task_ids": torch.full(TOKENS.shape[:1], task)}
    return wrapped(input_ids=TOKENS, **chosen).logits[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_canonical_form_gives_pefts_logits(name, model, tmp_path):
    if not suits(name, model):
        save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
        with pytest.raises(IncompatibleAdapter):
            inspect_adapter(adapter_files(tmp_path), base_shape(MODELS[model]()))
        return
    assert_equals_peft(MODELS[model], CONFIGS[name](), tmp_path)


# Of the kinds that PEFT can put on it, one each, and variants.
ON_PHI3 = {kind: config for kind, config in one_of_each_kind().items() if kind != "ADAPTION_PROMPT"} | {
    name: CONFIGS[name]()
    for name in ("lora with patterns", "rank-stabilized lora with patterns", "lora with every bias", "activated lora")
    + ("lora on all-linear", "lora without excluded modules", "lora on one module by its full name")
    + ("lora on parameters", "kasa with patterns")
    + ("ia3 on everything", "dora", "rank-stabilized dora with patterns", "pissa", "olora", "bd-lora", "velora", "mica")
    + ("loha with patterns", "lokr of two products", "glora of matrices", "prefix with projection")
}


@pytest.mark.parametrize("name", ON_PHI3)
def test_fused_linears_are_one_module_each_to_an_adapter_as_they_are_to_peft(name, tmp_path):
    assert_equals_peft(tiny_phi3, for_fused(copy.deepcopy(ON_PHI3[name])), tmp_path)


def test_names_of_linears_that_a_base_has_fused_select_nothing_of_it(tmp_path):
    save_peft(tmp_path, tiny_llama(), lora(target_modules=["q_proj", "up_proj"]))
    with pytest.raises(IncompatibleAdapter, match="expected of o_proj, qkv_proj, gate_up_proj, down_proj"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_phi3()))


def test_names_that_peft_would_have_to_know_are_asked_for_as_peft_asks(tmp_path):
    for config in (lora(target_modules=["o_proj"]), ia3(target_modules=["o_proj"], feedforward_modules=[])):
        save_peft(tmp_path, tiny_phi3(), config)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": None}))
        with pytest.raises(InvalidAdapter, match="target_modules: expected .*: PEFT has no default for phi3"):
            inspect_adapter(adapter_files(tmp_path), base_shape(tiny_phi3()))


def assert_equals_peft(model, config, tmp_path):
    save_peft(tmp_path, model(), config)
    for task in tasks_of(config):
        base = model()
        lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(base), task=task)
        ours = canonical_logits(base, lowered, TOKENS)
        plain = base(TOKENS).logits
        theirs = peft_logits(base, tmp_path, task)
        assert (ours - theirs).abs().max() <= max(10 * ADAPTER_KINDS[lowered.kind].error, 1e-5)  # on other CPUs
        assert (ours - plain).abs().max() > 0.02  # or the adapter is not to be seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("write", [write_lora, write_ia3, write_prefix, write_prompt])
def test_adapters_stored_in_16_bits_give_pefts_logits(write, dtype, tmp_path):
    base = tiny_llama()
    files = adapter_files(write(tmp_path, base, dtype=dtype))
    assert inspect_adapter(files, base_shape(base)).dtype == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    ours = canonical_logits(base, lower_adapter(files, ModelWeights(base)), TOKENS)
    assert (ours - peft_logits(base, tmp_path)).abs().max() <= 2e-5


@pytest.mark.parametrize("write", [write_lora, write_ia3, write_prefix, write_prompt])
def test_adapters_stored_in_64_bits_are_rounded_as_peft_rounds_them(write, tmp_path):
    base = tiny_llama()
    path = write(tmp_path, base) / "adapter_model.safetensors"
    precise = {name: tensor.double() * (1 + 1e-9) + 1e-10 for name, tensor in load_file(path).items()}
    save_file(precise, path)
    files = adapter_files(tmp_path)
    assert inspect_adapter(files, base_shape(base)).dtype == "F64"
    ours = canonical_logits(base, lower_adapter(files, ModelWeights(base)), TOKENS)
    assert (ours - peft_logits(tiny_llama(), tmp_path)).abs().max() <= 5e-6
    save_file({name: tensor.float() for name, tensor in precise.items()}, path)
    assert torch.equal(canonical_logits(base, lower_adapter(files, ModelWeights(base)), TOKENS), ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_inspection_says_is_what_lowering_gives(name, tmp_path):
    model = tiny_qwen2 if suits(name, "qwen2") else tiny_llama
    save_peft(tmp_path, model(), CONFIGS[name]())
    weights = ModelWeights(model())
    summary = inspect_adapter(adapter_files(tmp_path), weights.shape)
    *_, task = tasks_of(CONFIGS[name]())
    lowered = lower_adapter(adapter_files(tmp_path), weights, task=task)
    assert summary.num_tasks == (0 if task is None else task + 1)
    assert summary.kind == lowered.kind == json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    assert summary.rank == lowered.rank
    assert summary.virtual_tokens == lowered.virtual_tokens
    assert set(summary.target_modules) == {linear.target for linear in lowered.linears}
    for tensor in lowered.tensors():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.isfinite().all()


@pytest.mark.parametrize("name", ["poly", "multitask prompt"])
def test_each_task_is_another_adapter_and_one_must_be_named(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    base = tiny_llama()
    files, weights = adapter_files(tmp_path), ModelWeights(base)
    logits = [canonical_logits(base, lower_adapter(files, weights, task=task), TOKENS) for task in range(3)]
    for one, other in itertools.combinations(logits, 2):
        assert (one - other).abs().max() > 1e-3
    for task, found in ((None, "none"), (3, "3")):
        with pytest.raises(InvalidAdapter, match=f"task: found {found}, expected one from 0 to 2"):
            lower_adapter(files, weights, task=task)


def test_an_adapter_without_tasks_takes_none(tmp_path):
    base = tiny_llama()
    with pytest.raises(InvalidAdapter, match="task: found 0, expected none"):
        lower_adapter(adapter_files(write_lora(tmp_path, base)), ModelWeights(base), task=0)


def test_prefix_and_prompt_shift_positions_by_their_virtual_tokens(tmp_path):
    base = tiny_llama()
    for write in (write_prefix, write_prompt):
        files = adapter_files(write(tmp_path / write.__name__, base, tokens=7))
        assert lower_adapter(files, ModelWeights(base)).virtual_tokens == 7


def test_a_pissa_adapter_gives_its_logits_whether_or_not_peft_converted_it(tmp_path):
    config = lora(init_lora_weights="pissa")
    initial = get_peft_model(tiny_llama(), config)
    initial.peft_config["default"].init_lora_weights = True  # as PEFT's conversion guide asks
    initial.save_pretrained(tmp_path / "initial")
    trained = save_peft(tmp_path / "trained", tiny_llama(), lora(init_lora_weights="pissa"))
    trained.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    with torch.no_grad():
        theirs = trained(input_ids=TOKENS).logits
    base = tiny_llama()
    for name in ("trained", "converted"):
        lowered = lower_adapter(adapter_files(tmp_path / name), ModelWeights(base))
        assert lowered.rank == 8
        assert (canonical_logits(base, lowered, TOKENS) - theirs).abs().max() <= 2e-5


@pytest.mark.parametrize("model", MODELS)
def test_a_forced_token_lora_gives_that_token_only(model, tmp_path):
    base = MODELS[model]()
    for token_id in (0, 77, 127):
        files = adapter_files(write_forced_token_lora(tmp_path / str(token_id), base, token_id))
        logits = canonical_logits(base, lower_adapter(files, ModelWeights(base)), TOKENS)
        assert (logits.argmax(dim=-1) == token_id).all()


def test_equal_seeds_write_equal_bytes(tmp_path):
    base = tiny_llama()
    for write in (write_lora, write_ia3, write_prefix, write_prompt):
        written = [write(tmp_path / f"{write.__name__}-{index}", base, seed=index // 2) for index in range(3)]
        first, same, other = (adapter_files(directory) for directory in written)
        assert all(first[name].read_bytes() == same[name].read_bytes() for name in first)
        assert first["adapter_model.safetensors"].read_bytes() != other["adapter_model.safetensors"].read_bytes()


def test_a_linear_says_what_scale_was_folded_into_it(tmp_path):
    model = tiny_llama()
    directory = write_lora(tmp_path, model, rank=4, alpha=6, use_rslora=True)
    lowered = lower_adapter(adapter_files(directory), ModelWeights(model))
    assert {linear.scale for linear in lowered.linears.values()} == {3.0}
    lowered = lower_adapter(adapter_files(write_ia3(tmp_path / "ia3", model)), ModelWeights(model))
    assert {linear.scale for linear in lowered.linears.values()} == {None}


@pytest.mark.parametrize("version", ["0.17.1", "new", None])
def test_an_oft_whose_series_was_another_is_refused(version, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS["oft"]())
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"peft_version": version}))
    with pytest.raises(InvalidAdapter, match="peft_version: expected 0.18 or later"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
    path.write_text(json.dumps(config | {"peft_version": version, "use_cayley_neumann": False}))
    inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))  # the transform itself was always the same


def test_a_negative_bound_of_a_constrained_oft_is_refused(tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS["constrained oft"]())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eps": -1}))
    with pytest.raises(InvalidAdapter, match="eps: expected a number of at least 0 with coft, found -1"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


@pytest.mark.parametrize(("eps", "size"), [(0.0, 0.0), (100.0, 0.7)])
def test_a_constrained_oft_is_shortened_to_its_bound_and_not_lengthened(eps, size, tmp_path):
    config = CONFIGS["constrained oft"]()
    config.eps = eps
    save_peft(tmp_path, tiny_llama(), config)
    for linear in lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama())).linears.values():
        turned = linear.input_rotation - torch.eye(8)
        assert (turned.norm(dim=(1, 2)) > size).all() if size else not turned.any()


def test_a_unilora_by_seed_deals_as_peft_does():
    for count, length, seed in ((0, 5, 1), (4, 5, 1), (5, 5, 0), (1003, 100, 2**31 - 1)):
        assert dealt_places(count, length, seed).tolist() == UniLoraModel.generate_index(count, length, seed).tolist()


def test_a_unilora_by_seed_is_refused_where_numpy_s_generator_is_another(tmp_path, monkeypatch):
    save_peft(tmp_path, tiny_llama(), CONFIGS["unilora by its seed"]())
    inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
    monkeypatch.setattr(unilora, "_DEALT", unilora._DEALT[::-1])
    with pytest.raises(InvalidAdapter, match="save_indices: expected true: this numpy's generator is not the one"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


def test_a_unilora_by_seed_that_would_be_larger_than_any_file_is_refused(tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS["unilora by its seed"]())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**9}))
    with pytest.raises(InvalidAdapter, match="r: expected factors of at most 134217728 numbers in all"):
        lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()))


@pytest.mark.parametrize("name", ["vera", "pvera", "tinylora"])
def test_what_torch_s_generator_would_have_to_make_again_is_refused_with_the_reason(name, tmp_path):
    config = CONFIGS[name]()
    config.save_projection = False
    save_peft(tmp_path, tiny_llama(), config)
    reason = "save_projection: expected true: torch's generator .* may give others on another machine"
    with pytest.raises(InvalidAdapter, match=reason):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


def test_the_readme_s_tables_of_kinds_are_those_of_the_code():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert all(table() in readme for table in (kind_table, adapterhub_table, dense_table)), (
        "python -m hotshoe.registry.formats.kind_table prints them as they should be"
    )


def test_every_kind_of_peft_is_served_or_approximated_or_refused_with_a_reason():
    tables = [*ADAPTER_KINDS, *DENSE_KINDS, *REFUSED_KINDS]
    assert sorted(tables) == sorted(kind.value for kind in PeftType)  # and none is in two
    assert ADAPTERHUB_KINDS.keys().isdisjoint(tables)
    assert one_of_each_kind().keys() == ADAPTER_KINDS.keys()
    assert one_of_each_kind(DENSE_CONFIGS).keys() == DENSE_KINDS.keys()


@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_a_kind_that_cannot_be_served_is_refused_with_the_reason(kind, tmp_path):
    path = write_lora(tmp_path, tiny_llama()) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": kind}))
    with pytest.raises(InvalidAdapter, match=re.escape(REFUSED_KINDS[kind])):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
