"""Whatever a stranger does to a config: it is refused, or what we lower is what PEFT computes from the same files."""

import json
import warnings
from functools import partial

import pytest
import torch
from canonical import canonical_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import KasaConfig, LoraConfig, PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, DENSE_CONFIGS, one_of_each_kind, tasks_of
from tiny_models import ModelWeights, tiny_llama, tiny_qwen2

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.kind import DENSE_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

TOKENS = torch.randint(0, 128, (1, 7), generator=torch.Generator().manual_seed(3))
TOKENS_TOO = "LORA of tokens too"
BASES = {
    "ADAPTION_PROMPT": tiny_llama,
    TOKENS_TOO: partial(tiny_llama, tied=True),
}  # by name in SOUND; tiny_qwen2 for the others
SOUND = {
    **one_of_each_kind(),
    **one_of_each_kind(DENSE_CONFIGS),
    "LORA": LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"]),
    "LORA with patterns and biases": LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj", "k_proj"],
        rank_pattern={"k_proj": 3},
        alpha_pattern={"layers.1.self_attn.q_proj": 5},
        lora_bias=True,
        bias="lora_only",
    ),
    "LORA whose W is less": LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights="pissa"
    ),
    "LORA with numbers between": LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], kasa_config=KasaConfig()
    ),
    "LORA of blocks": CONFIGS["rank-stabilized bd-lora beside plain"](),
    TOKENS_TOO: LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens", "lm_head"], rank_pattern={"lm_head": 3}
    ),
    "LORA of parameters": CONFIGS["rank-stabilized lora on parameters and modules"](),
    "GLORA of matrices": CONFIGS["glora of matrices"](),
    "LORA that kept its samples": CONFIGS["monteclora"](),
}
NAMES = [
    "q_proj",
    "k_proj",
    "up_proj",
    "v_proj",
    "down_proj",
    "self_attn.q_proj",
    "layers.1.self_attn.q_proj",
    "lm_head",
    "embed_tokens",
    "up_proj.weight",
]
TEXTS = [*NAMES, "", "all", "none", "lora_only", "all-linear", "gaussian", "layers", "LORA", "IA3"]
TEXTS += ["pissa", "olora", "mica", "zero"]
PATTERNS = [
    r".*(q|up)_proj",
    r"model\.layers\.\d\..*_proj",
    r".*\.1\..*",
    "^model",
    "q_proj$",
    r".*k_proj",
    "(",
    "[qk]_proj",
]
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 3, 4, 8, -1, 0.5, 1e9, [], {}, [0], [1], [0, 1], [0, True]]),
    st.sampled_from(TEXTS + PATTERNS),
    st.lists(st.sampled_from(NAMES), max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "target_modules_bd_a": st.lists(st.sampled_from(NAMES), max_size=2),
            "target_modules_bd_b": st.lists(st.sampled_from(NAMES), max_size=2),
            "nblocks": st.sampled_from([1, 2, 3, "2"]),
            "match_strict": st.booleans(),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "num_groups": st.sampled_from([1, 7, 64, 0]),
            "init_type": st.sampled_from(["random", "batch_average", "none"]),
            "num_samples": st.sampled_from([1, 8, 3, -1]),
            "buffer_size": st.sampled_from([1, 2, "2"]),
        },
    ),
    st.dictionaries(st.sampled_from(NAMES + PATTERNS), st.sampled_from([1, 2, 3, 8, 0.5, "8"]), min_size=1, max_size=3),
)
# Those through which a config says what is computed are tried most; of the other kinds, all of their own.
FIELDS = {
    "LORA": ["r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"]
    + ["rank_pattern", "alpha_pattern", "bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"]
    + ["alora_invocation_tokens", "modules_to_save", "trainable_token_indices", "use_bdlora", "kasa_config"]
    + ["velora_config", "monteclora_config", "use_qalora", "target_parameters"],
    "IA3": ["target_modules", "feedforward_modules", "exclude_modules"],
    "PREFIX_TUNING": ["num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "prefix_projection"],
    "PROMPT_TUNING": ["num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "prompt_tuning_init"],
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    made = {}
    for name, config in SOUND.items():
        made[name] = tmp_path_factory.mktemp("adapter")
        save_peft(made[name], BASES.get(name, tiny_qwen2)(), config)
    return made


@torch.no_grad()
def peft_logits(base, directory, task):
    chosen = {} if task is None else {"task_ids": torch.full(TOKENS.shape[:1], task)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(base, directory).eval()
        return wrapped(input_ids=TOKENS, **chosen).logits[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("name", SOUND)
def test_a_mutated_config_is_refused_or_means_what_it_means_to_peft(name, directories):
    directory, new_base = directories[name], BASES.get(name, tiny_qwen2)
    base = new_base()
    weights = ModelWeights(base)
    path = directory / "adapter_config.json"
    sound = json.loads(path.read_text())
    *_, task = tasks_of(SOUND[name])
    rank = 96 if sound["peft_type"] in DENSE_KINDS else 0  # all of it
    likely = FIELDS.get(sound["peft_type"]) or sorted(sound)
    any_field = st.sampled_from([*likely, *likely, *likely, *sorted(sound), "auto_map", "lora_scale"])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(changes=st.dictionaries(any_field, VALUES, max_size=2), dropped=st.sets(any_field, max_size=1))
    def check(changes, dropped):
        config = {field: value for field, value in {**sound, **changes}.items() if field not in dropped}
        path.write_text(json.dumps(config))
        files = adapter_files(directory)
        try:
            lowered = lower_adapter(files, weights, approximate_rank=rank, task=task)
        except InvalidAdapter as refusal:
            with pytest.raises(InvalidAdapter) as at_publish:
                inspect_adapter(files, weights.shape, approximate_rank=rank)
            assert str(at_publish.value) == str(refusal)
            return
        try:
            theirs = peft_logits(new_base(), directory, task)
        except (ValueError, TypeError):
            return  # of a field that is of training only: PEFT's own config refuses it, and there is no answer to equal
        assert (canonical_logits(base, lowered, TOKENS) - theirs).abs().max() <= 1e-4

    try:
        check()
    finally:
        path.write_text(json.dumps(sound))
