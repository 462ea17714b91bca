"""Whole weights in an adapter's file: modules_to_save, which every kind that wraps modules may have, keeps those of the
embedding, the output head and norms; save_embedding_layers writes the base's own beside them.
"""

from collections.abc import Collection, Mapping, Sequence

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, NormId
from hotshoe.registry.formats.peft_config import NULL, TEXT, Config, either, list_of
from hotshoe.registry.formats.plan import MODULE_PREFIX, Tensors, require_shape
from hotshoe.registry.formats.replaced import ReplacedPlan, RowsPlan, chosen_norms, take_norms
from hotshoe.registry.formats.target_modules import EMBEDDING, HEAD, is_token_module, wants_tied
from hotshoe.registry.validation import TensorEntry

_NO_PLACES = "expected none beside alora_invocation_tokens, before which all is the base's"


def take_saved_modules(config: Config, tensors: Tensors, base: BaseShape) -> ReplacedPlan | None:
    """Takes modules_to_save, ends of modules' names, and the whole weights that it keeps.

    And what save_embedding_layers wrote beside them: the weights of the embedding and the head that were not adapted,
    which PEFT loads into the base, where a tied head and the embedding have one, the last that is loaded.
    """
    names = config.take("modules_to_save", either(list_of(TEXT), NULL), default=None)
    ends = tuple(names or ())
    is_everywhere = config.peek("alora_invocation_tokens") is None
    if ends and not is_everywhere:
        raise InvalidAdapter("modules_to_save", _NO_PLACES)
    norms = chosen_norms("modules_to_save", lambda module: module.endswith(ends), base) if ends else []
    saved = {
        module: _take_whole(f"{module}.weight", module, tensors, base, reason="modules_to_save selects its module")
        for module in _saved_modules(config, ends, base)
    }
    spare = _take_base_weights(saved, tensors, base)
    if not (saved or norms or spare):
        return None
    if not is_everywhere:
        raise InvalidAdapter(next(iter(spare.values())).name, _NO_PLACES)
    copies = [entry for module in saved for entry in _take_copies(module, tensors, base)]
    return _of_weights(saved, spare, take_norms(norms, "weight", tensors, base), copies, config, base)


def _saved_modules(config: Config, ends: tuple[str, ...], base: BaseShape) -> list[str]:
    """Which of the embedding and the head modules_to_save keeps; the one for the other if they are to be tied."""
    modules = [module for module in (EMBEDDING, HEAD) if ends and module.endswith(ends)]
    return [EMBEDDING, HEAD] if wants_tied(config, base) and any(map(is_token_module, ends)) else modules


def _take_base_weights(saved: Collection[str], tensors: Tensors, base: BaseShape) -> dict[str, TensorEntry]:
    found = {}
    for module in (EMBEDDING, HEAD):
        name = f"{module}.original_module.weight" if module in saved else f"{module}.weight"
        if tensors.has(f"{MODULE_PREFIX}{name}"):
            found[module] = _take_whole(name, module, tensors, base, reason="it is there")
    return found


def _take_copies(module: str, tensors: Tensors, base: BaseShape) -> list[TensorEntry]:
    """What PEFT saves a second time by a name that it does not load."""
    name = f"{module}.modules_to_save.weight"
    if not tensors.has(f"{MODULE_PREFIX}{name}"):
        return []
    return [_take_whole(name, module, tensors, base, reason="it is there")]


def _of_weights(
    saved: Mapping[str, TensorEntry],
    spare: Mapping[str, TensorEntry],
    norms: Mapping[NormId, TensorEntry],
    copies: Sequence[TensorEntry],
    config: Config,
    base: BaseShape,
) -> ReplacedPlan:
    """Of a tied base the head's comes last, be it the saved weight of both or the base's own."""
    one = dict(saved) if len(saved) == 2 and wants_tied(config, base) else {}
    if base.tied_head and not saved:
        one = dict(spare)
    if one:
        last = one.get(HEAD) or one[EMBEDDING]
        idle = [entry for entry in (*saved.values(), *spare.values(), *copies) if entry is not last]
        return ReplacedPlan(RowsPlan(last), head_is_embedding=True, norms=norms, idle=tuple(idle))
    chosen = dict(saved)
    shared = spare.get(HEAD) or spare.get(EMBEDDING)
    for module in (EMBEDDING, HEAD):
        entry = shared if base.tied_head else spare.get(module)
        if module not in saved and entry is not None:
            chosen[module] = entry
    rows = {module: RowsPlan(entry) for module, entry in chosen.items()}
    idle = [entry for entry in (*spare.values(), *copies) if entry not in chosen.values()]
    return ReplacedPlan(rows.get(EMBEDDING), rows.get(HEAD), norms=norms, idle=tuple(idle))


def _take_whole(name: str, module: str, tensors: Tensors, base: BaseShape, *, reason: str) -> TensorEntry:
    entry = tensors.take(f"{MODULE_PREFIX}{name}", reason=reason)
    require_shape(entry, (base.vocab_size, base.hidden_size), of=f"{module} of {base.name}")
    return entry
