"""What replaces weights of the base that are no decoder linears': rows of the embedding and the head, and norms.

TRAINABLE_TOKENS and LORA's trainable_token_indices keep some rows, which are the head's too where it is the embedding.
LN_TUNING keeps norms' weights. Whole weights are in `saved_modules`, and what LORA adds to rows is in `lora_tokens`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId, NormId
from hotshoe.registry.formats.lowered import LoweredAdapter, TokenRows
from hotshoe.registry.formats.peft_config import FLAG, INTEGER, NULL, Config, Rule, either, list_of, one_of
from hotshoe.registry.formats.plan import MODULE_PREFIX, Plan, Read, Reader, Tensors, require_shape
from hotshoe.registry.formats.target_modules import EMBEDDING, HEAD, NAMES, name_test, take_names, wants_tied
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_DELTA = "trainable_tokens_delta"  # PEFT's name for rows that replace
# What null stands for, by model_type.
_LN_TARGETS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("llama", "mistral", "gemma"), ("input_layernorm", "post_attention_layernorm", "norm")),
    **dict.fromkeys(("qwen2", "qwen3"), ("post_attention_layernorm",)),
    **dict.fromkeys(
        ("gemma2", "gemma3_text"),
        (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "norm",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class RowsPlan:
    """Claimed rows of the embedding or of the output head."""

    entry: TensorEntry
    token_ids: Sequence[int] | None = None  # None: of all tokens

    def lower(self, values: "Tensor", base: "Tensor") -> TokenRows | None:
        """None if nothing is replaced."""
        import torch

        if self.token_ids is None:
            token_ids = (values != base).any(1).nonzero()[:, 0]
            values = values[token_ids]
        else:
            token_ids, order = torch.tensor(self.token_ids, dtype=torch.int64).sort()
            values = values[order]
        return TokenRows(token_ids, values.contiguous(), base[token_ids]) if len(token_ids) else None


@dataclass(frozen=True, slots=True)
class ReplacedPlan:
    """Claimed tensors by what they replace."""

    embedding: RowsPlan | None = None
    head: RowsPlan | None = None
    head_is_embedding: bool = False  # the embedding's rows are the head's too
    norms: Mapping[NormId, TensorEntry] = field(default_factory=dict)
    idle: tuple[TensorEntry, ...] = ()  # other copies of the same weights, which PEFT does not use or loads first
    rank: int = 0

    @property
    def token_modules(self) -> frozenset[str]:
        """Which of the embedding and the output head have rows replaced."""
        head = self.head is not None or (self.embedding is not None and self.head_is_embedding)
        return frozenset(({EMBEDDING} if self.embedding is not None else set()) | ({HEAD} if head else set()))

    def lower_into(self, lowered: LoweredAdapter, read: Read, base: BaseWeights) -> LoweredAdapter:
        """An adapter that replaces these beside what it is already."""
        for entry in self.idle:
            read(entry)
        embedding, head = lowered.embedding_rows, lowered.head_rows
        if self.embedding is not None:
            values = read(self.embedding.entry)
            embedding = self.embedding.lower(values, base.embedding())
            head = self.embedding.lower(values, base.head()) if self.head_is_embedding else head
        if self.head is not None:
            head = self.head.lower(read(self.head.entry), base.head())
        norms = {norm: read(entry) - base.norm(norm) for norm, entry in self.norms.items()}
        return replace(
            lowered,
            embedding_rows=embedding or lowered.embedding_rows,
            head_rows=head or lowered.head_rows,
            norms={**lowered.norms, **norms},
        )


class BesidePlan(Protocol):
    """A checked part of an adapter beside its linears, its tensors claimed."""

    @property
    def rank(self) -> int: ...

    @property
    def token_modules(self) -> frozenset[str]:
        """Which of `EMBEDDING` and `HEAD` it changes."""

    def lower_into(self, lowered: LoweredAdapter, read: Read, base: BaseWeights) -> LoweredAdapter:
        """An adapter that has this part beside what it is already."""


@dataclass(frozen=True, slots=True)
class ReplacingPlan:
    """The plan of an adapter that changes such weights, and of whatever else it does."""

    kind: str
    replaced: BesidePlan
    other: Plan | None = None

    def __post_init__(self) -> None:
        """Raises InvalidAdapter if both parts change the rows of one module."""
        if isinstance(self.other, ReplacingPlan) and (both := self.token_modules & self.other.token_modules):
            raise InvalidAdapter(
                "modules_to_save", f"expected no {min(both)}: the adapter changes its rows in another way too"
            )

    @property
    def token_modules(self) -> frozenset[str]:
        return self.replaced.token_modules

    @property
    def rank(self) -> int:
        return max(self.replaced.rank, self.other.rank if self.other else 0)

    @property
    def linears(self) -> Sequence[LinearId]:
        return tuple(self.other.linears) if self.other else ()

    @property
    def virtual_tokens(self) -> int:
        return self.other.virtual_tokens if self.other else 0

    def lower(self, read: Reader, base: BaseWeights) -> LoweredAdapter:
        lowered = self.other.lower(read, base) if self.other else LoweredAdapter(self.kind)
        return self.replaced.lower_into(lowered, read, base)


def plan_trainable_tokens(config: Config, tensors: Tensors, base: BaseShape) -> ReplacingPlan:
    """The plan of a TRAINABLE_TOKENS adapter; see `Format`."""
    token_ids = config.require("token_indices", list_of(INTEGER))
    config.take("target_modules", one_of(EMBEDDING, "embed_tokens", None), default=None)
    config.close("TRAINABLE_TOKENS", {"init_weights": FLAG})
    embedding = _take_rows(EMBEDDING, _DELTA, "token_indices", token_ids, tensors, base)
    head = _take_rows(HEAD, _DELTA, "token_indices", token_ids, tensors, base) if base.tied_head else None
    return ReplacingPlan("TRAINABLE_TOKENS", ReplacedPlan(embedding, head))


def take_trainable_tokens(config: Config, tensors: Tensors, base: BaseShape) -> ReplacedPlan | None:
    """Takes trainable_token_indices, token ids of the embedding or by module, and their tensors.

    The embedding's rows are a tied head's too, unless that has other token ids of its own.
    """
    name = "trainable_token_indices"
    rule = either(either(list_of(INTEGER), _TOKENS_BY_MODULE), NULL)
    wanted: object = config.take(name, rule, default=None)
    if wanted is None:
        return None
    given: Mapping[str, list[int]] = wanted if isinstance(wanted, dict) else {EMBEDDING: wanted}  # type: ignore[dict-item]
    by_module = {EMBEDDING if key.endswith("embed_tokens") else HEAD: token_ids for key, token_ids in given.items()}
    if base.tied_head and len(by_module) == 2:
        if by_module[EMBEDDING] == by_module[HEAD]:
            del by_module[HEAD]
        elif wants_tied(config, base):
            raise InvalidAdapter(name, "expected the same token ids twice, as ensure_weight_tying is true")
    suffix = f"token_adapter.{_DELTA}"
    found = {
        module: _take_rows(module, suffix, name, token_ids, tensors, base) for module, token_ids in by_module.items()
    }
    tied = base.tied_head and HEAD not in found
    return ReplacedPlan(found.get(EMBEDDING), found.get(HEAD), head_is_embedding=tied)


_TOKEN_KEYS = ("embed_tokens", EMBEDDING, HEAD)
_TOKENS_BY_MODULE: Rule[Mapping[str, list[int]]] = Rule(
    "token ids of embed_tokens and lm_head",
    lambda value: (
        isinstance(value, dict)
        and 0 < len(value) <= 2
        and value.keys() <= set(_TOKEN_KEYS)
        and value.keys() != {"embed_tokens", EMBEDDING}
        and all(map(list_of(INTEGER).accepts, value.values()))
    ),
)


def _take_rows(
    module: str, suffix: str, field: str, token_ids: Sequence[int], tensors: Tensors, base: BaseShape
) -> RowsPlan:
    if len(set(token_ids)) != len(token_ids) or not token_ids or max(token_ids) >= base.vocab_size:
        raise InvalidAdapter(field, f"expected token ids below {base.vocab_size}, each once, and one at least")
    entry = tensors.take(f"{MODULE_PREFIX}{module}.{suffix}", reason=f"{field} is set")
    require_shape(entry, (len(token_ids), base.hidden_size), of=f"{len(token_ids)} rows of {module} of {base.name}")
    return RowsPlan(entry, token_ids)


def plan_ln_tuning(config: Config, tensors: Tensors, base: BaseShape) -> ReplacingPlan:
    """The plan of a LN_TUNING adapter; see `Format`."""
    targets = take_names(config, "target_modules", base, _LN_TARGETS)
    excluded = config.take("exclude_modules", either(NAMES, NULL), default=None)
    config.close("LN_TUNING", {})
    is_target = name_test("target_modules", targets)
    is_excluded = name_test("exclude_modules", excluded) if excluded else lambda module: False
    norms = chosen_norms("target_modules", lambda module: is_target(module) and not is_excluded(module), base)
    if not norms:
        raise IncompatibleAdapter("target_modules", f"selects no norm of {base.name}")
    return ReplacingPlan("LN_TUNING", ReplacedPlan(norms=take_norms(norms, "ln_tuning_layers.weight", tensors, base)))


def chosen_norms(field: str, is_chosen: Callable[[str], bool], base: BaseShape) -> list[NormId]:
    """The norms that are chosen; InvalidAdapter if a linear is too, or a part of the decoder that holds others."""
    others = [shape.module for shape in base.linears.values()]
    if field == "target_modules":
        others += [EMBEDDING, HEAD]
    modules = {*others, *(shape.module for shape in base.norms.values())}
    holders = {module[: module.rfind(".")] for module in modules} | {
        f"model.layers.{i}" for i in range(base.num_layers)
    }
    for module in (*others, *holders, "model.layers", "model"):
        if is_chosen(module):
            raise InvalidAdapter(field, f"selects {module}; only embeddings, output heads and norms can be replaced")
    return [norm for norm, shape in base.norms.items() if is_chosen(shape.module)]


def take_norms(norms: Sequence[NormId], suffix: str, tensors: Tensors, base: BaseShape) -> dict[NormId, TensorEntry]:
    """Each norm's weights, from the tensor of its module's name and `suffix`. Raises InvalidAdapter, with the name."""
    found = {}
    for norm in norms:
        shape = base.norms[norm]
        found[norm] = tensors.take(f"{MODULE_PREFIX}{shape.module}.{suffix}", reason="its module is selected")
        require_shape(found[norm], (shape.size,), of=f"{shape.module} of {base.name}")
    return found
