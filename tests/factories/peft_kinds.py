"""A config of PEFT's for each kind that is served, and for its variants, for a tiny Llama or Qwen2."""

import re
from collections.abc import Callable, Mapping

from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    BdLoraConfig,
    BeftConfig,
    BOFTConfig,
    C3AConfig,
    CartridgeConfig,
    CPTConfig,
    DeftConfig,
    DeloraConfig,
    FourierFTConfig,
    GloraConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    KasaConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    MontecloraConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PeanutConfig,
    PeftConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PveraConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
    TinyLoraConfig,
    TrainableTokensConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeloraConfig,
    VeraConfig,
    WaveFTConfig,
)
from tiny_models import TARGETS

ALL = list(TARGETS)


def lora(**fields):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **fields})


def ia3(**fields):
    return IA3Config(task_type="CAUSAL_LM", **fields)


def of(config, **fields):
    return config(**{"task_type": "CAUSAL_LM", "target_modules": ALL, **fields})


INVOCATION = [67, 83]  # in the first row of tokens that tests compare
PATTERNS = {"q_proj": 2, "layers.1.mlp.down_proj": 6, r"^model\.layers\.\d\.self_attn\.(k|v)_proj$": 3}
CONFIGS: Mapping[str, Callable[[], PeftConfig]] = {
    "lora": lambda: lora(),
    "lora of some modules": lambda: lora(target_modules=["v_proj", "gate_proj"]),
    "lora by regular expression": lambda: lora(target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\.(q|o|down)_proj"),
    "lora on all-linear": lambda: lora(target_modules="all-linear"),
    "lora on one layer": lambda: lora(layers_to_transform=1),
    "lora on a layer by pattern": lambda: lora(layers_to_transform=[0], layers_pattern="layers"),
    "lora without excluded modules": lambda: lora(exclude_modules=["o_proj", "layers.0.self_attn.q_proj"]),
    "lora on one module by its full name": lambda: lora(target_modules=["model.layers.1.mlp.up_proj", "q_proj"]),
    "rank-stabilized lora": lambda: lora(use_rslora=True),
    "lora with patterns": lambda: lora(rank_pattern=PATTERNS, alpha_pattern={"v_proj": 32, "o_proj": 1}),
    "rank-stabilized lora with patterns": lambda: lora(use_rslora=True, rank_pattern=PATTERNS),
    "lora with lora_bias": lambda: lora(lora_bias=True),
    "lora with bias lora_only": lambda: lora(bias="lora_only", target_modules=["q_proj", "up_proj"]),
    "lora with bias all": lambda: lora(bias="all", target_modules=["q_proj", "up_proj"]),
    "lora with every bias": lambda: lora(bias="all", lora_bias=True),
    "lora with gaussian init": lambda: lora(init_lora_weights="gaussian", lora_dropout=0.1),
    "lora with orthogonal init": lambda: lora(init_lora_weights="orthogonal"),
    "lora without task type": lambda: lora(task_type=None),
    "activated lora": lambda: lora(alora_invocation_tokens=INVOCATION, lora_bias=True),
    "lora with some tokens": lambda: lora(trainable_token_indices=[25, 23, 4]),
    "lora with other tokens of the head": lambda: lora(
        trainable_token_indices={"embed_tokens": [68, 25], "lm_head": [3, 5]}
    ),
    "lora with a head of its own": lambda: lora(modules_to_save=["lm_head"]),
    "lora with some tokens and a norm of its own": lambda: lora(
        trainable_token_indices=[25, 23, 4], modules_to_save=["model.norm"]
    ),
    "lora with embeddings and norms of its own": lambda: lora(modules_to_save=["embed_tokens", "norm"]),
    "lora on the embedding": lambda: lora(target_modules=["embed_tokens", "q_proj"]),
    "lora on the output head": lambda: lora(target_modules=["lm_head", "v_proj"], rank_pattern={"lm_head": 7}),
    "rank-stabilized lora on embedding and head alone": lambda: lora(
        target_modules=["embed_tokens", "lm_head"],
        use_rslora=True,
        rank_pattern={"model.embed_tokens": 2},
        alpha_pattern={"lm_head": 3},
    ),
    "lora on parameters": lambda: lora(
        target_modules=[],
        target_parameters=["q_proj.weight", "model.layers.1.mlp.down_proj.weight"],
        rank_pattern={"q_proj.weight": 2, "down_proj": 7},
    ),
    "rank-stabilized lora on parameters and modules": lambda: lora(
        target_modules=["v_proj"], target_parameters=["up_proj.weight"], use_rslora=True, alpha_pattern={"weight": 3}
    ),
    "ia3 with norms of its own": lambda: ia3(modules_to_save=["post_attention_layernorm"]),
    "trainable tokens": lambda: TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[118, 25, 7]),
    "ln-tuning": lambda: LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]),
    "oft": lambda: of(OFTConfig, oft_block_size=8),
    "oft of shared blocks": lambda: of(OFTConfig, r=4, oft_block_size=0, block_share=True),
    "oft by the cayley transform": lambda: of(OFTConfig, oft_block_size=16, use_cayley_neumann=False),
    "oft of few terms": lambda: of(OFTConfig, oft_block_size=32, num_cayley_neumann_terms=3),
    "oft of two terms": lambda: of(OFTConfig, oft_block_size=4, num_cayley_neumann_terms=2),
    "constrained oft": lambda: of(OFTConfig, oft_block_size=8, coft=True, eps=1.5),
    "constrained oft of shared blocks": lambda: of(OFTConfig, oft_block_size=16, block_share=True, coft=True, eps=0.8),
    "boft": lambda: of(BOFTConfig, boft_block_size=4),
    "boft of few blocks": lambda: of(BOFTConfig, boft_block_num=2, boft_block_size=0, target_modules=["v_proj"]),
    "road": lambda: of(RoadConfig, group_size=16),
    "road of two": lambda: of(RoadConfig, variant="road_2", group_size=32),
    "road of four": lambda: of(RoadConfig, variant="road_4", group_size=8),
    "adaption prompt": lambda: AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=5, adapter_layers=1),
    "adaption prompt at every layer": lambda: AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2
    ),
    "lora with negative alpha": lambda: lora(lora_alpha=-3),
    "ia3": lambda: ia3(),
    "ia3 on everything": lambda: ia3(target_modules=ALL, feedforward_modules=["down_proj", "o_proj"]),
    "ia3 on outputs only": lambda: ia3(target_modules=["q_proj", "up_proj"], feedforward_modules=[]),
    "ia3 by regular expressions": lambda: ia3(
        target_modules=r".*\.(k|up|down)_proj", feedforward_modules=r".*\.mlp\.\w+"
    ),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix with projection": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16
    ),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    "p-tuning by an mlp": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16
    ),
    "p-tuning by an lstm": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 9, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
    "multitask prompt": lambda: MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, num_tasks=3, num_ranks=2
    ),
    "poly": lambda: of(PolyConfig, r=3, n_tasks=3),
    "poly of several splits": lambda: of(PolyConfig, r=4, n_tasks=2, n_skills=3, n_splits=4),
    "dora": lambda: lora(use_dora=True),
    "rank-stabilized dora with patterns": lambda: lora(use_dora=True, use_rslora=True, rank_pattern=PATTERNS),
    "dora with bias all": lambda: lora(use_dora=True, bias="all", target_modules=["k_proj", "down_proj"]),
    "mica": lambda: lora(init_lora_weights="mica"),
    "bd-lora": lambda: lora(use_bdlora=BdLoraConfig(["o_proj", "down_proj"], ["q_proj", "k_", "v_", "gate", "up"], 4)),
    "rank-stabilized bd-lora beside plain": lambda: lora(
        use_bdlora=BdLoraConfig(None, ["0.self_attn.v", "mlp.up_proj"], 2, match_strict=False),
        use_rslora=True,
        bias="lora_only",
        rank_pattern={"layers.0.self_attn.v_proj": 6},
    ),
    "kasa": lambda: lora(kasa_config=KasaConfig()),
    "kasa with patterns": lambda: lora(kasa_config=KasaConfig(), rank_pattern=PATTERNS, use_rslora=True, bias="all"),
    "velora": lambda: lora(velora_config=VeloraConfig(num_groups=7), lora_bias=True, rank_pattern=PATTERNS),
    "monteclora": lambda: lora(
        monteclora_config=MontecloraConfig(num_samples=3, buffer_size=4), rank_pattern=PATTERNS, bias="all"
    ),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "rank-stabilized pissa with patterns": lambda: lora(
        init_lora_weights="pissa", use_rslora=True, rank_pattern=PATTERNS, alpha_pattern={"v_proj": 32}
    ),
    "pissa of every direction": lambda: lora(init_lora_weights="pissa", r=32, target_modules=["k_proj", "up_proj"]),
    "dora from pissa": lambda: lora(init_lora_weights="pissa", use_dora=True),
    "olora": lambda: lora(init_lora_weights="olora"),
    "olora of a negative scale": lambda: lora(init_lora_weights="olora", lora_alpha=-3, rank_pattern=PATTERNS),
    "dora from olora": lambda: lora(init_lora_weights="olora", use_dora=True),
    "adalora": lambda: of(AdaLoraConfig, init_r=6, target_r=4, lora_alpha=500, total_step=10),
    "loha": lambda: of(LoHaConfig, r=3, alpha=60),
    "loha with patterns": lambda: of(LoHaConfig, r=2, alpha=60, rank_pattern=PATTERNS, alpha_pattern={"v_proj": 90}),
    "lokr": lambda: of(LoKrConfig, r=2, alpha=20),
    "lokr of two products": lambda: of(LoKrConfig, r=2, alpha=60, decompose_both=True, decompose_factor=8),
    "lokr of two matrices": lambda: of(LoKrConfig, r=40, alpha=200, rank_pattern={"v_proj": 2}),
    "vera": lambda: of(VeraConfig, r=7),
    "hra": lambda: of(HRAConfig, r=4),
    "hra with orthogonal vectors": lambda: of(HRAConfig, r=5, apply_GS=True, target_modules=["q_proj", "up_proj"]),
    "miss": lambda: of(MissConfig, r=4),
    "miss whose rank divides no width": lambda: of(MissConfig, r=5),
    "mini miss": lambda: of(MissConfig, r=4, mini_r=8, init_weights="mini"),
    "delora": lambda: of(DeloraConfig, r=4, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 3}),
    "beft": lambda: of(BeftConfig),
    "deft": lambda: of(DeftConfig, r=4),
    "deft with orthogonal projections": lambda: of(DeftConfig, r=5, decomposition_method="qr", alpha=8),
    "deft of few outputs": lambda: of(DeftConfig, r=40, target_modules=["k_proj"]),
    "deft that only takes out": lambda: of(DeftConfig, r=3, para=True, target_modules=["o_proj", "gate_proj"]),
    "peanut": lambda: of(PeanutConfig, r=4),
    "deep peanut": lambda: of(PeanutConfig, r=5, depth=2, act_fn="gelu", scaling=2.0),
    "pvera": lambda: of(PveraConfig, r=6),
    "tinylora": lambda: of(TinyLoraConfig, r=3, u=8),
    "tied tinylora": lambda: of(TinyLoraConfig, r=2, u=8, weight_tying=0.7),
    "glora by output": lambda: of(GloraConfig, r=2, config_A_B="vector"),
    "glora of matrices": lambda: of(GloraConfig, r=3),
    "glora of matrices in some linears": lambda: of(
        GloraConfig, r=2, target_modules=["k_proj", "up_proj"], config_C="none", config_D_E="vector"
    ),
    "glora of constants": lambda: of(GloraConfig, config_A_B="constant", config_C="vector", config_D_E="vector"),
    "glora of weights only": lambda: of(GloraConfig, config_A_B="vector", config_C="none", config_D_E="none"),
    "unilora": lambda: of(UniLoraConfig, r=3, theta_d_length=200, save_indices=True),
    "unilora by its seed": lambda: of(UniLoraConfig, r=3, theta_d_length=200, proj_seed=7),
    "unilora by its seed, with numbers to spare": lambda: of(
        UniLoraConfig, r=2, theta_d_length=9000, target_modules=["v_proj", "down_proj"]
    ),
    "cartridge": lambda: CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "gralora": lambda: of(GraloraConfig, r=8, gralora_k=4, alpha=32),
    "gralora beside a whole": lambda: of(GraloraConfig, r=4, hybrid_r=3),
    "vb-lora": lambda: of(VBLoRAConfig, r=4, num_vectors=30, vector_length=16, topk=3),
    "vb-lora that kept its likeliest": lambda: of(
        VBLoRAConfig, r=4, num_vectors=30, vector_length=16, topk=3, save_only_topk_weights=True
    ),
}

# Those that turn inputs or outputs, or put something in place of what the base has.
REPLACING = (
    "adaption prompt at every layer",
    "oft",
    "boft",
    "road of four",
    "glora of matrices",
    "glora of matrices in some linears",
    "trainable tokens",
    "ln-tuning",
    "lora with some tokens",
    "lora with other tokens of the head",
    "lora with a head of its own",
    "lora with embeddings and norms of its own",
    "lora on the embedding",
    "lora on the output head",
    "rank-stabilized lora on embedding and head alone",
    "ia3 with norms of its own",
)

# Those whose update is of full rank.
DENSE_CONFIGS: Mapping[str, Callable[[], PeftConfig]] = {
    "hira": lambda: of(HiraConfig, r=3),
    "fourierft": lambda: of(FourierFTConfig, n_frequency=90, n_frequency_pattern={"v_proj": 50}, scaling=900.0),
    "c3a": lambda: of(C3AConfig, block_size=16, block_size_pattern={"up_proj": 32}),
    "waveft": lambda: of(WaveFTConfig, n_frequency=90, n_frequency_pattern={"v_proj": 50}, scaling=9.0),
    "waveft without a transform": lambda: of(
        WaveFTConfig, n_frequency=90, use_idwt=False, wavelet_family="db4", scaling=5
    ),
    "randlora": lambda: of(RandLoraConfig, r=5),
    "shira": lambda: of(ShiraConfig, r=2),
    "supertuning": lambda: of(SupertuningConfig, sparsity=0.95),
    "supertuning beside a low rank": lambda: of(SupertuningConfig, sparsity=0.95, r=3, lora_alpha=9),
}


def suits(name: str, model: str) -> bool:
    """Whether PEFT can put an adapter of `CONFIGS` on a model; ADAPTION_PROMPT knows few, and repeats a bias."""
    return not name.startswith("adaption") or model not in ("qwen2", "llama with biases")


_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def for_fused(config: PeftConfig) -> PeftConfig:
    """The same for a base whose q, k and v are one linear, and whose gate and up are; the names as they are in it."""

    def renamed(name: str) -> str:
        return re.sub(r"(?<![a-z_])(q|k|v|gate|up)_proj", lambda found: f"{_FUSED[found[1]]}_proj", name)

    for field, value in vars(config).items():
        if not isinstance(value, dict | list | set) or not all(isinstance(name, str) for name in value):
            continue
        if isinstance(value, dict):
            setattr(config, field, {renamed(name): one for name, one in value.items()})
        else:
            setattr(config, field, type(value)(dict.fromkeys(map(renamed, value))))
    if config.peft_type.value == "IA3" and config.target_modules is None:  # PEFT has no defaults for such a base
        config.target_modules, config.feedforward_modules = {"qkv_proj", "down_proj"}, {"down_proj"}
    return config


def tasks_of(config: PeftConfig) -> list[int | None]:
    """The tasks of an adapter with that config; None stands for an adapter that has none."""
    return [*range(getattr(config, "n_tasks", 0) or getattr(config, "num_tasks", 0))] or [None]


def one_of_each_kind(configs: Mapping[str, Callable[[], PeftConfig]] = CONFIGS) -> dict[str, PeftConfig]:
    """By peft_type, the first of `configs`."""
    found: dict[str, PeftConfig] = {}
    for make in configs.values():
        config = make()
        found.setdefault(config.peft_type.value, config)
    return found
