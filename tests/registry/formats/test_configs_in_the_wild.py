"""Configs as tools and older versions of PEFT write them: what PEFT computes from the same files, or a refusal."""

import copy
import json
import warnings

import pytest
import torch
from canonical import canonical_logits
from model_directories import tiny_model
from peft import PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, DENSE_CONFIGS, ia3, lora, one_of_each_kind, tasks_of
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_llama, tiny_qwen2

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.kind import DENSE_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

TOKENS = torch.randint(0, 128, (3, 11), generator=torch.Generator().manual_seed(7))
ALPACA = {"enable_lora": None, "merge_weights": False, "lora_alpha": 8.0}
UNSLOTH = {
    "base_model_class": "Qwen2ForCausalLM",
    "parent_library": "transformers.models.qwen2.modeling_qwen2",
    "unsloth_fixed": True,
}


def edit_config(directory, gone=(), **fields):
    path = directory / "adapter_config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in gone}))


@torch.no_grad()
def assert_equal_to_peft(directory, new_base, task=None, rank=0):
    base = new_base()
    lowered = lower_adapter(adapter_files(directory), ModelWeights(base), task=task, approximate_rank=rank)
    ours, plain = canonical_logits(base, lowered, TOKENS), base(TOKENS).logits
    chosen = {} if task is None else {"task_ids": torch.full(TOKENS.shape[:1], task)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(base, directory).eval()(input_ids=TOKENS, **chosen).logits
    assert (ours - theirs[:, -TOKENS.shape[1] :]).abs().max() <= (1e-3 if rank else 2e-5)  # of large random weights
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    "config, edited",
    [
        (lora(), {"auto_mapping": UNSLOTH, "task_type": None}),
        (lora(), ALPACA),
        (lora(), {"task_type": "SEQ_2_SEQ_LM"}),
        (lora(), {"task_type": "FEATURE_EXTRACTION"}),
        (lora(), {"init_lora_weights": None, "revision": "main"}),
        (lora(), {"modules_to_save": ["classifier", "score"]}),
        (lora(), {"target_modules": ["query_key_value", "c_attn", *"qkvo"] + [f"{x}_proj" for x in "qkvo"]}),
        (lora(modules_to_save=["embed_tokens"], target_modules=["embed_tokens", "q_proj"]), {}),
        (lora(target_modules=r"^(?!.*lm_head).*(q_proj|up_proj)$"), {}),
        (lora(target_modules=r"^(model(?=\.).*\.(q_proj|down_proj))$"), {}),
        (lora(target_modules=r"^(?!.*visual)(?=.*mlp).*(?:gate|up|down)_proj.*"), {}),
        (lora(layers_to_transform=[1], layers_pattern="model.layers"), {}),
        (lora(layers_to_transform=[1], layers_pattern=""), {}),
        (ia3(), {"feedforward_modules": None}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value.target_modules)[:30],
)
def test_what_tools_write_means_what_it_means_to_peft(config, edited, tmp_path):
    save_peft(tmp_path, tiny_qwen2(), config)
    if "target_modules" in edited:  # the attention's alone
        save_peft(tmp_path, tiny_qwen2(), lora(target_modules=edited["target_modules"]))
    edit_config(tmp_path, **edited)
    assert_equal_to_peft(tmp_path, tiny_qwen2)


def rename(directory, new_name):
    path = directory / "adapter_model.safetensors"
    save_file({new_name(name): tensor for name, tensor in load_file(path).items()}, path)


def name_in_a_model(name):
    if name.endswith(
        ("lora_magnitude_vector", "lora_diag", "lora_E", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
    ):
        return f"{name}.default"
    module, _, last = name.rpartition(".")
    return f"{module}.default.{last}" if ".lora_" in name else name


@pytest.mark.parametrize(
    "name",
    ["rank-stabilized lora with patterns", "dora with bias all", "lora with every bias", "adalora"]
    + ["lora on the embedding", "lora on the output head", "kasa", "monteclora"],
)
def test_tensors_named_as_they_are_in_a_model_are_those_that_peft_finds(name, tmp_path):
    save_peft(tmp_path, tiny_qwen2(), CONFIGS[name]())
    of_training = ("monteclora_sampler", "lora_magnitude_vector")
    rename(tmp_path, lambda name: name if any(part in name for part in of_training) else name_in_a_model(name))
    assert_equal_to_peft(tmp_path, tiny_qwen2)


@pytest.mark.parametrize("suffix", ["", ".weight", ".default.weight"])
def test_norms_of_dora_may_be_named_as_peft_finds_them(suffix, tmp_path):
    save_peft(tmp_path, tiny_qwen2(), CONFIGS["dora"]())
    rename(tmp_path, lambda name: name + suffix if name.endswith("lora_magnitude_vector") else name)
    assert_equal_to_peft(tmp_path, tiny_qwen2)


def test_a_tensor_that_is_there_by_both_names_is_refused(tmp_path):
    save_peft(tmp_path, tiny_qwen2(), lora())
    path, key = tmp_path / "adapter_model.safetensors", "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    tensors = load_file(path)
    save_file(tensors | {f"{key}.default.weight": tensors[f"{key}.weight"].clone()}, path)
    with pytest.raises(InvalidAdapter, match=rf"{key}\.(default\.)?weight: expected it once"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_qwen2()))


KINDS = {**one_of_each_kind(), **one_of_each_kind(DENSE_CONFIGS)}


def saved(kind, directory, **fields):
    """A base that suits the kind, and the arguments of an adapter of it that was saved."""
    new_base = tiny_llama if kind == "ADAPTION_PROMPT" else tiny_qwen2
    make = next(make for make in (*CONFIGS.values(), *DENSE_CONFIGS.values()) if make().peft_type.value == kind)
    config = make()
    for name, value in fields.items():
        setattr(config, name, value)
    save_peft(directory, new_base(), config)
    *_, task = tasks_of(config)
    return new_base, task, 96 if kind in DENSE_KINDS else 0


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_false_where_it_is_false_to_peft(kind, tmp_path):
    new_base, task, rank = saved(kind, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    flags = [name for name, value in config.items() if value is False]
    edit_config(tmp_path, **dict.fromkeys(flags), inference_mode=None)
    assert_equal_to_peft(tmp_path, new_base, task, rank)


@pytest.mark.parametrize(
    "kind, gone",
    [(kind, ()) for kind in KINDS if hasattr(KINDS[kind], "target_modules")]
    + [(kind, ("target_modules", "feedforward_modules")) for kind in ("LORA", "IA3")],
)
def test_null_targets_are_those_that_peft_takes(kind, gone, tmp_path):
    new_base, task, rank = saved(kind, tmp_path, target_modules=None, feedforward_modules=None)
    edited = {"target_modules": None} | ({"feedforward_modules": None} if kind == "IA3" else {})
    edit_config(tmp_path, gone=gone, **edited)
    assert_equal_to_peft(tmp_path, new_base, task, rank)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("kind", ["LORA", "ADALORA", "VBLORA", "BEFT", "IA3", "LN_TUNING"])
def test_null_targets_are_those_that_peft_takes_on_a_gemma(kind, family, tmp_path):
    gone = {"target_modules": None, **({"feedforward_modules": None} if kind == "IA3" else {})}
    config, model = copy.deepcopy(KINDS[kind]), tiny_model(family)
    for name in gone:
        setattr(config, name, None)
    save_peft(tmp_path, model, config)
    edit_config(tmp_path, **gone)
    assert inspect_adapter(
        adapter_files(tmp_path), base_shape(tiny_model(family))
    ).num_tensors  # which leaves none over


def test_targets_that_peft_has_no_default_of_are_asked_for(tmp_path):
    save_peft(tmp_path, tiny_qwen2(), KINDS["ADALORA"])
    edit_config(tmp_path, target_modules=None)
    shape = base_shape(tiny_qwen2())
    mistral = type(shape)(**{name: getattr(shape, name) for name in shape.__slots__} | {"model_type": "mistral"})
    with pytest.raises(InvalidAdapter, match="target_modules: expected names of modules.*no default for mistral"):
        inspect_adapter(adapter_files(tmp_path), mistral)


@pytest.mark.parametrize(
    "edited, problem",
    [
        ({"enable_lora": [True, False, True]}, "enable_lora: .* only parts are adapted"),
        ({"task_type": "SEQ_CLS"}, "task_type: expected null or causal_lm"),
        ({"brand_new": None}, "brand_new: not a field of LORA"),
        ({"auto_mapping": {**UNSLOTH, "trusted": True}}, "auto_mapping: expected null"),
        ({"modules_to_save": ["layers.0"]}, r"modules_to_save: selects model\.layers\.0"),
        ({"modules_to_save": [r"layers\.0\..*"]}, r"layers\.0\..*: surplus"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(edited, problem, tmp_path):
    save_peft(tmp_path, tiny_qwen2(), lora())
    edit_config(tmp_path, **edited)
    with pytest.raises(InvalidAdapter, match=problem):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_qwen2()))
