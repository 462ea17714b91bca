"""Runs a transformers model under an adapter's canonical form, in plain torch, to compare with an oracle's forward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tiny_models import decoder_linears, decoder_norms
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from hotshoe.registry.formats.activations import activation
from hotshoe.registry.formats.base import BlockId
from hotshoe.registry.formats.lowered import (
    Bottleneck,
    GatedPrompt,
    LoweredAdapter,
    LoweredLinear,
    TokenFactors,
    TokenRows,
)


@torch.no_grad()
def canonical_logits(model: PreTrainedModel, adapter: LoweredAdapter, token_ids: Tensor) -> Tensor:
    """[batch, length, vocab] logits of the tokens, those of virtual tokens left out."""
    cache = DynamicCache(config=model.config)
    with _adapted(model, adapter, _acts(adapter.invocation, token_ids)):
        if adapter.kv_prefix is not None:
            for layer, (keys, values) in enumerate(zip(adapter.kv_prefix.keys, adapter.kv_prefix.values, strict=True)):
                cache.update(_for_each(keys, token_ids), _for_each(values, token_ids), layer)
        if adapter.prompt_embeddings is not None:
            batch = adapter.prompt_embeddings.expand(token_ids.shape[0], -1, -1)
            model(inputs_embeds=batch, past_key_values=cache, use_cache=True)
        return model(token_ids, past_key_values=cache, use_cache=True).logits


def _for_each(states: Tensor, token_ids: Tensor) -> Tensor:
    """From [length, kv_heads, head_dim] to [batch, kv_heads, length, head_dim], a copy for each sequence."""
    return states.transpose(0, 1).expand(token_ids.shape[0], -1, -1, -1).contiguous()


def _acts(invocation: tuple[int, ...] | None, token_ids: Tensor) -> Tensor | None:
    """[batch, length, 1]: whether the adapter acts on each token; None: on all."""
    if invocation is None:
        return None
    mask = torch.zeros(*token_ids.shape, 1, dtype=torch.bool)
    for row, tokens in enumerate(token_ids.tolist()):
        places = [i for i in range(len(tokens)) if tuple(tokens[i : i + len(invocation)]) == invocation]
        if places:
            mask[row, places[-1] :] = True
    return mask


@contextmanager
def _adapted(model: PreTrainedModel, adapter: LoweredAdapter, acts: Tensor | None) -> Iterator[None]:
    parts = {linear: part for linear, _, part in decoder_linears(model)}
    handles = [parts[linear].register_forward_hook(_hook(lowered, acts)) for linear, lowered in adapter.linears.items()]
    norms = {norm: part for norm, _, part in decoder_norms(model)}
    handles += [norms[norm].register_forward_hook(_reweighted(added)) for norm, added in adapter.norms.items()]
    attentions = dict(model.named_modules())
    handles += [
        attentions[f"model.layers.{layer}.self_attn"].register_forward_hook(_gated(prompt), with_kwargs=True)
        for layer, prompt in adapter.gated_prompts.items()
    ]
    for block, bottleneck in adapter.bottlenecks.items():
        handles += _beside(model, block, bottleneck)
    if adapter.embedding_rows:
        handles.append(model.get_input_embeddings().register_forward_hook(_with_rows(adapter.embedding_rows)))
    if adapter.head_rows:
        handles.append(model.get_output_embeddings().register_forward_hook(_with_logits(adapter.head_rows)))
    if adapter.embedding_update:
        handles.append(model.get_input_embeddings().register_forward_hook(_with_added(adapter.embedding_update)))
    if adapter.head_update:
        handles.append(model.get_output_embeddings().register_forward_hook(_with_more(adapter.head_update)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gated(prompt: GatedPrompt):
    """Attention whose queries see a prompt beside their context, in a softmax of their own."""

    def hook(part: nn.Module, _: object, kwargs: dict, output: tuple):
        hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        query = part.q_proj(hidden).unflatten(-1, (-1, part.head_dim)).transpose(1, 2)
        half = part.head_dim // 2
        turned = torch.cat((-query[..., half:], query[..., :half]), dim=-1)
        query = query * cos[:, None] + turned * sin[:, None]
        keys, values = (
            states.repeat_interleave(query.shape[1] // states.shape[1], 1).transpose(0, 1)
            for states in (prompt.keys, prompt.values)
        )
        seen = (query @ keys.mT * part.head_dim**-0.5).softmax(-1) @ values
        added = part.o_proj(prompt.gate * seen.transpose(1, 2).flatten(2))
        return (output[0] + added, *output[1:])

    return hook


def _beside(model: PreTrainedModel, block: BlockId, network: Bottleneck):
    """A block with a narrow network beside it; the residual is what stands before the block's norm."""
    layer, residual = model.model.layers[block.layer], []
    norm = {"self_attn": layer.input_layernorm, "mlp": layer.post_attention_layernorm}[block.name]

    def before(_: nn.Module, inputs: tuple[Tensor]) -> None:
        residual[:] = inputs

    def after(_: nn.Module, __: object, output: Tensor | tuple):
        o = output[0] if isinstance(output, tuple) else output
        (r,) = residual
        tapped = {"output": o, "residual": r, "sum": r + o}[network.taps]
        narrow = activation(network.activation)(nn.functional.linear(tapped, network.down, network.down_bias))
        o = o + network.residual_gain * r + nn.functional.linear(narrow, network.up, network.up_bias)
        return (o, *output[1:]) if isinstance(output, tuple) else o

    return [
        norm.register_forward_pre_hook(before),
        getattr(layer, block.name).register_forward_hook(after),
    ]


def _reweighted(added: Tensor):
    """A norm whose weights are changed."""

    def hook(part: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        (x,) = inputs
        return (part.weight + added) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + part.variance_epsilon))

    return hook


def _with_rows(replaced: TokenRows):
    def hook(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        for token_id, row in zip(replaced.token_ids.tolist(), replaced.rows, strict=True):
            y = torch.where((inputs[0] == token_id)[..., None], row, y)
        return y

    return hook


def _with_logits(replaced: TokenRows):
    def hook(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        return y.index_copy(-1, replaced.token_ids, inputs[0] @ replaced.rows.T)

    return hook


def _with_added(update: TokenFactors):
    def hook(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        return y + update.rows[inputs[0]] @ update.directions

    return hook


def _with_more(update: TokenFactors):
    def hook(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        return y + (inputs[0] @ update.directions.T) @ update.rows.T

    return hook


def _hook(lowered: LoweredLinear, acts: Tensor | None):
    """As `LoweredAdapter`'s module defines it."""

    def hook(part: nn.Linear, inputs: tuple[Tensor], plain: Tensor) -> Tensor:
        (x,) = inputs
        scaled = x if lowered.input_scale is None else x * lowered.input_scale
        if lowered.input_rotation is not None:
            blocks = scaled.unflatten(-1, lowered.input_rotation.shape[:2])
            scaled = torch.einsum("...rk,rkc->...rc", blocks, lowered.input_rotation).flatten(-2)
        product = y = nn.functional.linear(scaled, part.weight)
        if lowered.output_scale is not None:
            y = y * lowered.output_scale
        if lowered.output_swap is not None:
            y = y + lowered.output_swap.gains * product[..., lowered.output_swap.partners]
        if lowered.copies is not None:
            for outputs, scales in zip(lowered.copies.outputs, lowered.copies.inputs, strict=True):
                y = y + outputs * nn.functional.linear(x * scales, part.weight)
        for bias in (part.bias, lowered.bias_delta):
            if bias is not None:
                y = y + bias
        if (factors := lowered.factors) is not None:
            a, b = factors
            y = y + (x @ a.T) @ b.T
        return y if acts is None else torch.where(acts, y, plain)

    return hook
