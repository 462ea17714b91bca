"""Biases, norms' weights and token rows, with low-rank updates or without, as the files of the PEFT kind that has them.

LORA where weights of linears change: biases are its lora_bias, or beside norms of rows (use_dora), which PEFT does not
allow, in place of the base's; token rows are its trainable_token_indices. Else BEFT holds biases, LN_TUNING norms, and
TRAINABLE_TOKENS rows. What is of none of these, or of most tokens, is kept whole in modules_to_save.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId, LinearShape
from hotshoe.registry.formats.lowered import TokenRows
from hotshoe.registry.formats.plan import MODULE_PREFIX
from hotshoe.registry.formats.target_modules import EMBEDDING, HEAD
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.registry.recipes.replacements import Replacements
from hotshoe.registry.recipes.target_names import target_names

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 0.25  # of all tokens: more are kept as a whole matrix


def replacement_files(
    replaced: Replacements,
    base: BaseWeights,
    *,
    base_name: str,
    updates: Mapping[LinearId, Factors],
    row_norms: "Mapping[LinearId, Tensor] | None" = None,
    token_updates: Mapping[str, Factors],
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors, float32; equal parts give equal bytes.

    Args:
        base_name: what base_model_name_or_path says.
        updates: by linear, of any rank.
        row_norms: as `lora_files` has its norms.
        token_updates: as `lora_files` has them.

    Raises:
        InvalidAdapter: no PEFT kind holds these parts together.
    """
    rows = _rows(replaced, base.shape)
    norms = {base.shape.norms[norm].module: base.norm(norm) + added for norm, added in replaced.norms.items()}
    if token_updates and row_norms is not None:
        raise InvalidAdapter("sources", "change output scales, and all tokens' rows: use_dora is of linears only")
    if token_updates or row_norms is not None or any(update.a.shape[0] for update in updates.values()):
        return _lora(replaced, base, base_name, updates, row_norms, rows, norms, token_updates)
    if replaced.biases:
        tensors = {_name(base.shape, linear, "beft_bias"): bias[None] for linear, bias in replaced.biases.items()}
        targets = target_names(replaced.biases, base.shape)
        return _files("BEFT", {"target_modules": targets}, tensors, {**_whole(replaced, base), **norms}, base_name)
    if norms:
        tensors = {f"{MODULE_PREFIX}{module}.ln_tuning_layers.weight": weight for module, weight in norms.items()}
        return _files("LN_TUNING", {"target_modules": sorted(norms)}, tensors, _whole(replaced, base), base_name)
    if rows is None or EMBEDDING not in rows or HEAD in rows:
        raise InvalidAdapter("sources", "change rows of the output head and no linear: no PEFT kind holds that alone")
    modules = (EMBEDDING, HEAD) if base.shape.tied_head else (EMBEDDING,)
    tensors = {f"{MODULE_PREFIX}{module}.trainable_tokens_delta": rows[EMBEDDING].rows for module in modules}
    fields = {"token_indices": rows[EMBEDDING].token_ids.tolist()}
    return _files("TRAINABLE_TOKENS", fields, tensors, {}, base_name)


def _lora(
    replaced: Replacements,
    base: BaseWeights,
    base_name: str,
    updates: Mapping[LinearId, Factors],
    row_norms: "Mapping[LinearId, Tensor] | None",
    rows: Mapping[str, TokenRows] | None,
    norms: "Mapping[str, Tensor]",
    token_updates: Mapping[str, Factors],
) -> dict[str, bytes]:
    import torch

    shape = base.shape
    chosen = [linear for linear in shape.linears if linear in updates or linear in replaced.biases]
    updates = {linear: _of_some_rank(updates.get(linear), shape.linears[linear]) for linear in chosen}
    added = biases = None
    if replaced.biases and row_norms is None and not token_updates:
        none = {linear: torch.zeros(shape.linears[linear].out_features) for linear in updates}
        added = {**none, **replaced.biases}
    elif replaced.biases:
        biases = {linear: bias for linear in updates if (bias := base.bias(linear)) is not None}
        if lone := next((linear for linear in replaced.biases if linear not in biases), None):
            raise InvalidAdapter(
                "sources",
                f"add a bias to {lone}, which has none, beside "
                + ("tokens' updates: no PEFT kind" if token_updates else "output scales: no PEFT kind")
                + " has both, for it has biases only in place of the base's there",
            )
        biases |= {linear: biases[linear] + delta for linear, delta in replaced.biases.items()}
    is_large = rows is None or any(len(one.token_ids) > _MOST * shape.vocab_size for one in rows.values())
    is_large |= bool(token_updates)  # beside which PEFT trains no rows
    whole = _whole(replaced, base) if is_large else {}
    base_layers = _base_layers(whole, replaced, token_updates, shape) if token_updates else {}
    if base_layers:
        whole = {} if shape.tied_head else {name: one for name, one in whole.items() if name not in base_layers}
    return lora_files(
        updates,
        shape,
        base_name=base_name,
        norms=row_norms,
        whole={**whole, **norms} or None,
        added_biases=added,
        biases=biases,
        token_rows=None if is_large else rows,
        token_updates=token_updates,
        base_layers=base_layers,
    )


def _base_layers(
    whole: "Mapping[str, Tensor]", replaced: Replacements, token_updates: Mapping[str, Factors], base: BaseShape
) -> "dict[str, Tensor]":
    """Of the whole weights, those that PEFT keeps beside an update: of a tied base one, which is both modules'."""
    if not base.tied_head or not whole:
        return {module: weight for module, weight in whole.items() if module in token_updates}
    if not replaced.rows_are_tied:
        raise InvalidAdapter(
            "sources", "change rows of a tied embedding or head alone, and all tokens' rows: no PEFT kind holds both"
        )
    return dict.fromkeys(token_updates, whole[EMBEDDING])


def _of_some_rank(update: Factors | None, shape: LinearShape) -> Factors:
    """A zero of rank 1 for no update, or one of rank 0, which PEFT does not have."""
    import torch

    if update is not None and update.a.shape[0]:
        return update
    return Factors(torch.zeros(1, shape.in_features), torch.zeros(shape.out_features, 1))


def _rows(replaced: Replacements, base: BaseShape) -> dict[str, TokenRows] | None:
    """By module, a tied head's only once; None if that head's are not the embedding's, for which only `_whole` does."""
    if base.tied_head and not replaced.rows_are_tied:
        return None
    rows = {EMBEDDING: replaced.embedding_rows, HEAD: None if base.tied_head else replaced.head_rows}
    return {module: found for module, found in rows.items() if found is not None}


def _whole(replaced: Replacements, base: BaseWeights) -> "dict[str, Tensor]":
    """The embedding and the head, each if it has rows of its own."""
    whole = {}
    for module, rows, weight in (
        (EMBEDDING, replaced.embedding_rows, base.embedding),
        (HEAD, replaced.head_rows, base.head),
    ):
        if rows is not None:
            whole[module] = weight().index_copy(0, rows.token_ids, rows.rows)
    return whole


def _name(base: BaseShape, linear: LinearId, suffix: str) -> str:
    return f"{MODULE_PREFIX}{base.linears[linear].module}.{suffix}"


def _files(
    kind: str,
    fields: Mapping[str, object],
    tensors: "Mapping[str, Tensor]",
    whole: "Mapping[str, Tensor]",
    base_name: str,
) -> dict[str, bytes]:
    from safetensors.numpy import save

    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        **fields,
        **({"modules_to_save": sorted(whole)} if whole else {}),
    }
    every = {**tensors, **{f"{MODULE_PREFIX}{module}.weight": weight for module, weight in whole.items()}}
    arrays = {name: tensor.float().contiguous().numpy() for name, tensor in every.items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS_FILE: save(arrays, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}
