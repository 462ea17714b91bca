"""LORA on the embedding and on the output head: row v of E becomes E[v] + s B A[:, v], and logits gain s B (A x).

Of a tied base PEFT adapts one without the other: the embedding's update is not the head's. With ensure_weight_tying
they are one update, whose factors the file has twice, and the head's are loaded last. PEFT also saves the weight that
it adapted beside A and B, and loads it again, where both read the same weight for both; so here it replaces rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter, TokenFactors
from hotshoe.registry.formats.peft_config import Config
from hotshoe.registry.formats.plan import MODULE_PREFIX, Read, Tensors, require_shape
from hotshoe.registry.formats.replaced import ReplacedPlan, RowsPlan
from hotshoe.registry.formats.target_modules import EMBEDDING, HEAD, is_token_module, pattern_test, wants_tied
from hotshoe.registry.validation import TensorEntry


@dataclass(frozen=True, slots=True)
class _Factors:
    a: TensorEntry  # [rank, vocab_size] of the embedding, [rank, hidden_size] of the head
    b: TensorEntry  # [hidden_size, rank] of the embedding, [vocab_size, rank] of the head
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class TokensPlan:
    """Claimed factors of the embedding and of the head, and the weights that PEFT saved with them."""

    factors: dict[str, _Factors]  # by module
    weights: ReplacedPlan
    are_one: bool  # the embedding's update is the head's

    @property
    def rank(self) -> int:
        return max(part.rank for part in self.factors.values())

    @property
    def token_modules(self) -> frozenset[str]:
        return self.weights.token_modules | self.factors.keys()

    def lower_into(self, lowered: LoweredAdapter, read: Read, base: BaseWeights) -> LoweredAdapter:
        """An adapter that has these beside what it is already."""
        lowered = self.weights.lower_into(lowered, read, base)
        embedding, head = self.factors.get(EMBEDDING), self.factors.get(HEAD)
        if self.are_one and embedding is not None and head is not None:
            for entry in (embedding.a, embedding.b):
                read(entry)
            rows, directions = read(head.b), read(head.a)
            return replace(
                lowered,
                embedding_update=TokenFactors(rows, directions * embedding.scale),
                head_update=TokenFactors(rows * head.scale, directions),
            )
        if embedding is not None:
            rows, directions = read(embedding.a).T.contiguous(), read(embedding.b, scale=embedding.scale).T.contiguous()
            lowered = replace(lowered, embedding_update=TokenFactors(rows, directions))
        if head is not None:
            lowered = replace(lowered, head_update=TokenFactors(read(head.b, scale=head.scale), read(head.a)))
        return lowered


def adapted_modules(selected: Sequence[str], config: Config, base: BaseShape) -> Sequence[str]:
    """Which of `EMBEDDING` and `HEAD` are adapted where target_modules selects these: both if they are to be tied."""
    saved = config.peek("modules_to_save")
    if not wants_tied(config, base) or (isinstance(saved, list) and any(map(is_token_module, saved))):
        return selected
    targets = config.peek("target_modules")
    if isinstance(targets, str):
        is_target = pattern_test("target_modules", targets)
        is_named = is_target("embed_tokens") or is_target("lm_head")
    else:
        is_named = bool(selected)
    return (HEAD, EMBEDDING) if is_named else selected


def take_tokens(
    modules: Sequence[str],
    config: Config,
    tensors: Tensors,
    base: BaseShape,
    *,
    rank_of: Callable[[str], int],
    scale_of: Callable[[str], float],
) -> TokensPlan | None:
    """Takes the tensors of the modules, of `EMBEDDING` and `HEAD`; None if there are none."""
    if not modules:
        return None
    are_one = len(modules) == 2 and wants_tied(config, base)
    factors = {}
    for module in modules:
        rank = rank_of(EMBEDDING if are_one else module)
        factors[module] = _take_factors(module, tensors, base, rank, scale_of(module))
    weights = {module: entry for module in modules if (entry := _take_weight(module, tensors, base)) is not None}
    if not base.tied_head:
        embedding, head = (RowsPlan(weights[of]) if of in weights else None for of in (EMBEDDING, HEAD))
        return TokensPlan(factors, ReplacedPlan(embedding, head), are_one)
    last = weights.get(HEAD, weights.get(EMBEDDING))
    idle = tuple(entry for entry in weights.values() if entry is not last)
    shared = ReplacedPlan(None if last is None else RowsPlan(last), head_is_embedding=True, idle=idle)
    return TokensPlan(factors, shared, are_one)


def _take_factors(module: str, tensors: Tensors, base: BaseShape, rank: int, scale: float) -> _Factors:
    if module == EMBEDDING:
        names, inputs, outputs = ("lora_embedding_A", "lora_embedding_B"), base.vocab_size, base.hidden_size
    else:
        names, inputs, outputs = ("lora_A.weight", "lora_B.weight"), base.hidden_size, base.vocab_size
    a, b = (
        tensors.take(f"{MODULE_PREFIX}{module}.{name}", reason="target_modules selects its module") for name in names
    )
    require_shape(a, (None, inputs), of=f"{module} of {base.name}")
    require_shape(b, (outputs, None), of=f"{module} of {base.name}")
    for entry, found in ((a, a.shape[0]), (b, b.shape[1])):
        if found != rank:
            raise InvalidAdapter(entry.name, f"found rank {found}, expected {rank} by r and rank_pattern")
    return _Factors(a, b, scale)


def _take_weight(module: str, tensors: Tensors, base: BaseShape) -> TensorEntry | None:
    """What PEFT saves unless it is told not to."""
    name = f"{MODULE_PREFIX}{module}.base_layer.weight"
    if not tensors.has(name):
        return None
    entry = tensors.take(name, reason="it is there")
    require_shape(entry, (base.vocab_size, base.hidden_size), of=f"{module} of {base.name}")
    return entry
