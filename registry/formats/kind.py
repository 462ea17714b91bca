"""From an adapter's files to its canonical form, whatever its kind. A new kind is a file and a line in the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.adalora import plan_adalora
from hotshoe.registry.formats.adapterhub import is_adapterhub, method_of, one_table
from hotshoe.registry.formats.adaption_prompt import plan_adaption_prompt
from hotshoe.registry.formats.base import BaseShape, BaseWeights
from hotshoe.registry.formats.beft import plan_beft
from hotshoe.registry.formats.bottleneck import plan_bottleneck
from hotshoe.registry.formats.c3a import plan_c3a
from hotshoe.registry.formats.deft import plan_deft
from hotshoe.registry.formats.delora import plan_delora
from hotshoe.registry.formats.dense import ApproximatePlan, DenseFormat
from hotshoe.registry.formats.fourierft import plan_fourierft
from hotshoe.registry.formats.glora import plan_glora
from hotshoe.registry.formats.gralora import plan_gralora
from hotshoe.registry.formats.hira import plan_hira
from hotshoe.registry.formats.hra import plan_hra
from hotshoe.registry.formats.ia3 import plan_ia3
from hotshoe.registry.formats.lora import plan_lora
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.miss import plan_miss
from hotshoe.registry.formats.peanut import plan_peanut
from hotshoe.registry.formats.peft_config import NULL, TEXT, Config, either
from hotshoe.registry.formats.plan import Format, TaskPlans, Tensors
from hotshoe.registry.formats.poly import plan_poly
from hotshoe.registry.formats.prefix_tuning import plan_cartridge, plan_prefix_tuning
from hotshoe.registry.formats.products import plan_loha, plan_lokr
from hotshoe.registry.formats.prompt_tuning import plan_cpt, plan_multitask, plan_p_tuning, plan_prompt_tuning
from hotshoe.registry.formats.randlora import plan_randlora
from hotshoe.registry.formats.replaced import (
    ReplacingPlan,
    plan_ln_tuning,
    plan_trainable_tokens,
    take_saved_modules,
)
from hotshoe.registry.formats.rotations import plan_boft, plan_oft, plan_road
from hotshoe.registry.formats.sparse import plan_shira, plan_supertuning
from hotshoe.registry.formats.tinylora import plan_tinylora
from hotshoe.registry.formats.unilora import plan_unilora
from hotshoe.registry.formats.vblora import plan_vblora
from hotshoe.registry.formats.vera import plan_pvera, plan_vera
from hotshoe.registry.formats.waveft import plan_waveft
from hotshoe.registry.validation import (
    ANY_INTEGER,
    AdapterLimits,
    Pause,
    TensorEntry,
    TensorFile,
    go_on,
    read_config,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_WEIGHTS_FILE, HUB_INTERFACE_FILE = "adapter.safetensors", "adapter_interface.json"  # of AdapterHub's package
_PICKLES = {WEIGHTS_FILE: "adapter_model.bin", HUB_WEIGHTS_FILE: "pytorch_adapter.bin"}
DEFAULT_LIMITS = AdapterLimits()


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
    "OFT": AdapterKind(plan_oft, "rotation of input blocks", "–", 2e-6, "`block_share`, Cayley or its Neumann series"),
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
    "UNILORA": AdapterKind(plan_unilora, "low-rank update", "r", 0.0, "with `save_indices`"),
    "VBLORA": AdapterKind(plan_vblora, "low-rank update", "r", 0.0, "the bank's mixtures, written out"),
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


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What the registry says about an adapter."""

    kind: str  # PEFT's peft_type, or one of ADAPTERHUB_KINDS
    rank: int  # the largest of any linear, 0 if it has no low-rank part
    target_modules: tuple[str, ...]  # names of the decoder linears that it changes, in base order
    base_model: str  # base_model_name_or_path of the config, "" if it does not say
    dtype: str  # of its tensors; "BF16+F32" if they differ
    num_parameters: int
    num_tensors: int
    virtual_tokens: int  # positions that it puts before the prompt
    num_tasks: int = 0  # of which a request names one; 0 if it is the same for every request


def inspect_adapter(
    files: Mapping[str, Path],
    shape: BaseShape,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
) -> AdapterSummary:
    """Checks everything about an adapter short of lowering it: every field, every tensor, every value.

    Args:
        files: by name, those that PEFT or AdapterHub's package writes; others are not read.
        approximate_rank: the rank to which updates of full rank are cut; 0 refuses them.

    Raises:
        InvalidAdapter: it cannot be served exactly, or as nearly as was asked; the error names the first field or
            tensor that is wrong.
        IncompatibleAdapter: it can, but not on that base.
    """
    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits) as tensor_file:
        entries = tensor_file.entries.values()
        plans = checked.plans(tensor_file, shape, limits)
        for entry in sorted(entries, key=lambda entry: entry.offset):
            tensor_file.check_finite(entry)
    plan = plans.of(0)
    return AdapterSummary(
        kind=checked.kind,
        rank=plan.rank,
        target_modules=tuple(dict.fromkeys(linear.target for linear in plan.linears)),
        base_model=checked.base_model,
        dtype="+".join(sorted({entry.dtype for entry in entries})),
        num_parameters=sum(entry.num_elements for entry in entries),
        num_tensors=len(entries),
        virtual_tokens=plan.virtual_tokens,
        num_tasks=plans.count,
    )


def lower_adapter(
    files: Mapping[str, Path],
    base: BaseWeights,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
    task: int | None = None,
    pause: Pause = go_on,
) -> LoweredAdapter:
    """Checks an adapter as `inspect_adapter` does, and gives its canonical form on that base.

    Args:
        approximate_rank: as `inspect_adapter` has it.
        task: which of its tasks, each of which has a form of its own; None for an adapter that has none.
        pause: called between tensors, so that the caller may spread the work over time.

    Returns:
        Float32 tensors on the CPU.

    Raises:
        InvalidAdapter, IncompatibleAdapter: as `inspect_adapter`.
    """
    import torch

    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits, pause) as tensor_file:
        plans = checked.plans(tensor_file, base.shape, limits, pause)
        _check_task(task, plans.count)
        unread = set(tensor_file.entries)

        def read(entry: TensorEntry, *, scale: float = 1.0) -> "Tensor":
            pause()
            unread.remove(entry.name)
            if entry.is_integer:  # in bounds, as its plan has checked
                return torch.from_numpy(tensor_file.read_integers(entry, below=ANY_INTEGER))
            return torch.from_numpy(tensor_file.read(entry, scale=scale))

        lowered = plans.of(task or 0).lower(read, base)
    assert not unread, f"{checked.kind} claimed tensors that it did not lower: {sorted(unread)}"
    return lowered


def tasks_of(
    files: Mapping[str, Path],
    shape: BaseShape,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
    pause: Pause = go_on,
) -> Sequence[int | None]:
    """What `lower_adapter` may be told as an adapter's task: each that it has, or None. Raises as that does."""
    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits, pause) as tensor_file:
        return range(checked.plans(tensor_file, shape, limits, pause).count) or (None,)


@dataclass(frozen=True, slots=True)
class _CheckedConfig:
    """A config whose kind is known, its fields still to be taken by that kind."""

    kind: str
    base_model: str
    fields: Config
    approximate_rank: int  # 0 for a kind that is served exactly

    def open_weights(self, files: Mapping[str, Path], limits: AdapterLimits, pause: Pause = go_on) -> TensorFile:
        name = HUB_WEIGHTS_FILE if self.kind in ADAPTERHUB_KINDS else WEIGHTS_FILE
        return TensorFile.open(_file(files, name), name=name, max_bytes=limits.max_bytes, pause=pause)

    def plans(
        self, tensor_file: TensorFile, shape: BaseShape, limits: AdapterLimits, pause: Pause = go_on
    ) -> TaskPlans:
        tensors = Tensors(
            tensor_file.entries,
            shape,
            pause,
            check_integers=lambda entry, below: tensor_file.read_integers(entry, below=below),
        )
        plans = self._plans(tensors, shape)
        tensors.close()
        if (rank := plans.of(0).rank) > limits.max_rank:
            field = "approximate_rank" if self.approximate_rank else "r"
            raise InvalidAdapter(field, f"found rank {rank}, expected at most {limits.max_rank}")
        return plans

    def _plans(self, tensors: Tensors, shape: BaseShape) -> TaskPlans:
        kind = ADAPTER_KINDS.get(self.kind) or ADAPTERHUB_KINDS.get(self.kind)
        wraps_modules = kind is None or kind.wraps_modules
        saved = take_saved_modules(self.fields, tensors, shape) if wraps_modules else None
        if kind is not None:
            found = kind.plan(self.fields, tensors, shape)
        else:
            dense = DENSE_KINDS[self.kind].plan(self.fields, tensors, shape)
            found = ApproximatePlan(dense, self.approximate_rank, shape)
        plans = found if isinstance(found, TaskPlans) else TaskPlans(0, lambda task: found)
        if saved is None:
            return plans
        return TaskPlans(plans.count, lambda task: ReplacingPlan(self.kind, saved, plans.of(task)))


def kind_of(fields: Mapping[str, object]) -> object:
    """The kind that a config says; what stands there if it is none."""
    return method_of(fields) if is_adapterhub(fields) else fields.get("peft_type")


def _check_config(files: Mapping[str, Path], approximate_rank: int) -> _CheckedConfig:
    fields = read_config(_file(files, CONFIG_FILE))
    kind = kind_of(fields)
    if is_adapterhub(fields):
        interface = files.get(HUB_INTERFACE_FILE)
        places = None if interface is None else read_config(interface, name=HUB_INTERFACE_FILE)
        fields = one_table(fields, places)
        base_field, served = "model_name", ADAPTERHUB_KINDS
    else:
        base_field, served = "base_model_name_or_path", ADAPTER_KINDS
    if not isinstance(kind, str) or (kind not in served and kind not in DENSE_KINDS):
        why = f": {REFUSED_KINDS[kind]}" if isinstance(kind, str) and kind in REFUSED_KINDS else ""
        raise InvalidAdapter("peft_type", f"expected {' or '.join(ADAPTER_KINDS)}, found {shown(kind)}{why}")
    if kind in DENSE_KINDS and approximate_rank < 1:
        raise InvalidAdapter(
            "peft_type",
            f"{kind}'s update is of full rank, and has no exact form that a batch can share; give approximate_rank, "
            "hotshoe publish --approximate-rank R, to serve the nearest of rank R",
        )
    if kind in served and approximate_rank:
        raise InvalidAdapter("approximate_rank", f"expected 0, found {approximate_rank}: {kind} is served exactly")
    config = Config(fields)
    base_model = config.take(base_field, either(TEXT, NULL), default=None)
    return _CheckedConfig(kind, base_model or "", config, approximate_rank)


def _check_task(task: int | None, num_tasks: int) -> None:
    if num_tasks == 0 and task is not None:
        raise InvalidAdapter("task", f"found {task}, expected none: it has no tasks")
    if num_tasks and (task is None or task >= num_tasks):
        found = "none" if task is None else task
        raise InvalidAdapter(
            "task",
            f"found {found}, expected one from 0 to {num_tasks - 1}: each of its tasks is an adapter of its own, and "
            "only requests and loads name one",
        )


def _file(files: Mapping[str, Path], name: str) -> Path:
    path = files.get(name)
    if path is None or not path.is_file():
        pickle = _PICKLES.get(name)
        raise InvalidAdapter(name, f"missing; {pickle} is a pickle and is not read" if pickle in files else "missing")
    return path
