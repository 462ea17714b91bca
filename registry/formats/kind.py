"""The kinds of adapters: what is served exactly, what is cut to a rank on request, and what is refused, and why.

A new kind is a file and a line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.adalora import plan_adalora
from hotshoe.registry.formats.adaption_prompt import plan_adaption_prompt
from hotshoe.registry.formats.beft import plan_beft
from hotshoe.registry.formats.bottleneck import plan_bottleneck
from hotshoe.registry.formats.c3a import plan_c3a
from hotshoe.registry.formats.deft import plan_deft
from hotshoe.registry.formats.delora import plan_delora
from hotshoe.registry.formats.dense import DenseFormat
from hotshoe.registry.formats.fourierft import plan_fourierft
from hotshoe.registry.formats.glora import plan_glora
from hotshoe.registry.formats.gralora import plan_gralora
from hotshoe.registry.formats.hira import plan_hira
from hotshoe.registry.formats.hra import plan_hra
from hotshoe.registry.formats.ia3 import plan_ia3
from hotshoe.registry.formats.lora import plan_lora
from hotshoe.registry.formats.miss import plan_miss
from hotshoe.registry.formats.peanut import plan_peanut
from hotshoe.registry.formats.plan import Format
from hotshoe.registry.formats.poly import plan_poly
from hotshoe.registry.formats.prefix_tuning import plan_cartridge, plan_prefix_tuning
from hotshoe.registry.formats.products import plan_loha, plan_lokr
from hotshoe.registry.formats.prompt_tuning import plan_cpt, plan_multitask, plan_p_tuning, plan_prompt_tuning
from hotshoe.registry.formats.randlora import plan_randlora
from hotshoe.registry.formats.replaced import plan_ln_tuning, plan_trainable_tokens
from hotshoe.registry.formats.rotations import plan_boft, plan_oft, plan_road
from hotshoe.registry.formats.sparse import plan_shira, plan_supertuning
from hotshoe.registry.formats.tinylora import plan_tinylora
from hotshoe.registry.formats.unilora import plan_unilora
from hotshoe.registry.formats.vblora import plan_vblora
from hotshoe.registry.formats.vera import plan_pvera, plan_vera
from hotshoe.registry.formats.waveft import plan_waveft


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """A kind that is served exactly, and what the README says of it.

    Attributes:
        rank: of what it is lowered to, in the config's own terms.
        error: the largest difference of a logit from PEFT's in the tests, in float32, rounded.
        wraps_modules: whether PEFT replaces modules of the model, and so may keep others whole (modules_to_save).
    """

    plan: Format
    lowered_to: str
    rank: str
    error: float
    note: str
    wraps_modules: bool = True


@dataclass(frozen=True, slots=True)
class DenseKind:
    """A kind whose update is of full rank: its nearest of a low one is served, if the publisher asks for that."""

    plan: DenseFormat
    update: str  # what it is, for the README


_EMBEDDINGS = "embeddings before the prompt, their pages shared"

_PAGES = "key-value pages, shared by all its requests"

# By PEFT's peft_type.
ADAPTER_KINDS: Mapping[str, AdapterKind] = {
    "ADALORA": AdapterKind(plan_adalora, "low-rank update", "up to `init_r`", 5e-6, "ranks as training left them"),
    "ADAPTION_PROMPT": AdapterKind(
        plan_adaption_prompt,
        "keys and values with a softmax of their own, gated",
        "–",
        1e-6,
        "bases of llama and mistral, as in PEFT",
        wraps_modules=False,
    ),
    "BEFT": AdapterKind(plan_beft, "bias", "–", 0.0, ""),
    "BOFT": AdapterKind(
        plan_boft, "rotation of input blocks, output scale", "–", 1e-6, "any block size and number of butterfly factors"
    ),
    "CARTRIDGE": AdapterKind(plan_cartridge, _PAGES, "–", 0.0, "", wraps_modules=False),
    "CPT": AdapterKind(plan_cpt, _EMBEDDINGS, "–", 1e-6, "", wraps_modules=False),
    "DEFT": AdapterKind(plan_deft, "low-rank update", "r", 1e-6, "of the served W; `decomposition_method`, `para`"),
    "DELORA": AdapterKind(plan_delora, "low-rank update", "r", 1e-6, "`rank_pattern`"),
    "GLORA": AdapterKind(
        plan_glora,
        "output scale, low-rank update, bias; copies of W, scaled",
        "1; r with `config_A_B` lora",
        5e-6,
        "with `config_A_B` lora W is multiplied r times more",
    ),
    "GRALORA": AdapterKind(plan_gralora, "low-rank update", "k·r + `hybrid_r`", 4e-6, ""),
    "HRA": AdapterKind(plan_hra, "low-rank update", "r", 2e-6, "of the served W; `apply_GS`"),
    "IA3": AdapterKind(
        plan_ia3, "input and output scales, bias", "–", 1e-6, "any `target_modules`, `feedforward_modules`"
    ),
    "LN_TUNING": AdapterKind(plan_ln_tuning, "norms' weights", "–", 1e-6, ""),
    "LOHA": AdapterKind(plan_loha, "low-rank update", "r²", 1e-6, "`rank_pattern`, `alpha_pattern`"),
    "LOKR": AdapterKind(plan_lokr, "low-rank update", "of its two factors, multiplied", 2e-6, "any `decompose_factor`"),
    "LORA": AdapterKind(
        plan_lora,
        "low-rank update, output scale, bias",
        "r; 2r of PiSSA, OLoRA, KaSA",
        3e-6,
        "DoRA, rsLoRA, aLoRA, BdLoRA, MiCA, QALoRA, VeLoRA, MonteCLoRA, `rank_pattern`, `alpha_pattern`, `lora_bias`, "
        "`bias=…`, every linear of the decoder, embedding and output head; of the served W PiSSA and OLoRA, converted "
        "or not, and KaSA (to 1e-05: PEFT rounds W anew)",
    ),
    "MISS": AdapterKind(plan_miss, "low-rank update", "r", 3e-6, "and its mini form"),
    "MULTITASK_PROMPT_TUNING": AdapterKind(
        plan_multitask, _EMBEDDINGS, "–", 1e-6, "of the task that a request names", wraps_modules=False
    ),
    "OFT": AdapterKind(
        plan_oft, "rotation of input blocks", "–", 2e-6, "`block_share`, `coft`, Cayley or its Neumann series"
    ),
    "PEANUT": AdapterKind(plan_peanut, "low-rank update", "r", 1e-6, "of the served W; any `depth`, six `act_fn`"),
    "POLY": AdapterKind(plan_poly, "low-rank update", "r", 1e-6, "of the task that a request names"),
    "PREFIX_TUNING": AdapterKind(plan_prefix_tuning, _PAGES, "–", 0.0, "", wraps_modules=False),
    "PROMPT_TUNING": AdapterKind(plan_prompt_tuning, _EMBEDDINGS, "–", 1e-6, "", wraps_modules=False),
    "P_TUNING": AdapterKind(plan_p_tuning, _EMBEDDINGS, "–", 1e-6, "what its encoder gave", wraps_modules=False),
    "PVERA": AdapterKind(plan_pvera, "low-rank update", "r", 1e-6, "its mean; with `save_projection`"),
    "ROAD": AdapterKind(plan_road, "output scale and swap, bias", "–", 1e-6, "`road_1`, `road_2`, `road_4`"),
    "TINYLORA": AdapterKind(plan_tinylora, "low-rank update", "r", 1e-6, "with `save_projection`; any `weight_tying`"),
    "TRAINABLE_TOKENS": AdapterKind(
        plan_trainable_tokens, "rows of the embedding and of the output head", "–", 1e-6, "of tokens that the base has"
    ),
    "UNILORA": AdapterKind(plan_unilora, "low-rank update", "r", 0.0, "indices saved, or by `proj_seed`"),
    "VBLORA": AdapterKind(
        plan_vblora, "low-rank update", "r", 0.0, "the bank's mixtures, written out; `save_only_topk_weights`"
    ),
    "VERA": AdapterKind(plan_vera, "low-rank update", "r", 1e-6, "with `save_projection`"),
}

# Kinds of AdapterHub's `adapters` package; their errors are those of its logits.
ADAPTERHUB_KINDS: Mapping[str, AdapterKind] = {
    "BOTTLENECK": AdapterKind(
        plan_bottleneck,
        "narrow networks beside attention and MLP",
        "–",
        1e-6,
        "Houlsby, Pfeiffer, parallel, Compacter, Compacter++; any `reduction_factor`, `scaling`, `leave_out`, "
        "`original_ln_before`, `original_ln_after`",
        wraps_modules=False,
    ),
}

# Kinds that are served approximately, and only on request.
DENSE_KINDS: Mapping[str, DenseKind] = {
    "C3A": DenseKind(plan_c3a, "circulant blocks"),
    "FOURIERFT": DenseKind(plan_fourierft, "a sum of n_frequency waves"),
    "HIRA": DenseKind(plan_hira, "the served W times a low-rank matrix, number by number"),
    "RANDLORA": DenseKind(plan_randlora, "a sum of random bases, exact in as many ranks as W has"),
    "SHIRA": DenseKind(plan_shira, "a few numbers of W, each by itself"),
    "SUPERTUNING": DenseKind(plan_supertuning, "a few numbers of W, each by itself, and a low-rank matrix"),
    "WAVEFT": DenseKind(plan_waveft, "a sum of n_frequency Haar wavelets"),
}

_OTHER_PART = "it changes what this server cannot give each request its own of"
_NOT_IN_FILE = "it is not in the file, and PEFT's computing it anew depends on the machine"
# Kinds of PEFT that are refused, and why.
REFUSED_KINDS: Mapping[str, str] = {
    "ADAMSS": f"its update is of rows that k-means finds by clustering singular vectors of W: {_NOT_IN_FILE}",
    "FROD": f"its update is of full rank, between bases of which one is solved for from all layers' W: {_NOT_IN_FILE}",
    "LILY": "its router averages over all tokens of a batch, so that answers would depend on their neighbours",
    "OSF": "it holds most of W's singular directions anew, so its update has full rank and the size of the model",
    "PSOFT": f"its factors are W's singular vectors, whose signs are any library's choice: {_NOT_IN_FILE}",
    "SHADOW": "it is a second model beside the base",
    "XLORA": "its gates need a forward pass of their own before each step",
}
