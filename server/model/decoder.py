"""The one decoder that runs every family: paged, batched, and open to adapters at each site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels import ops
from hotshoe.kernels.attention_batch import AttentionBatch, PagedBatch
from hotshoe.registry.formats.base import BlockId, NormId
from hotshoe.server.model.backends import Backend
from hotshoe.server.model.bottlenecks import add_block
from hotshoe.server.model.decoder_input import DecoderInput, HeadRows, HeadUpdate
from hotshoe.server.model.kv_cache import KvCache
from hotshoe.server.model.linear import SiteLinear
from hotshoe.server.model.spec import BLOCK_NORMS, BLOCKS, ModelSpec
from hotshoe.server.model.step_logits import StepLogits

if TYPE_CHECKING:
    from hotshoe.server.adapters.adapter_batch import AdapterBatch
    from hotshoe.server.adapters.placed_adapter import Beyond


_COPIED_ROWS = 256  # of an input that is scaled in several ways
_COMPILED_POSITIONS = 65_536  # beyond, long prompts' attention is better left to torch's blocked kernel


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer's weights, as the backend holds them."""

    input_norm: Tensor  # [hidden]
    mlp_norm: Tensor  # [hidden]
    qk_norm: Tensor | None  # [heads + kv_heads, head_dim]: the query norm, then the key norm
    block_norms: tuple[Tensor, Tensor] | None  # [hidden] each, behind attention and behind the feed-forward
    sites: Mapping[str, SiteLinear]  # by the names of adapters.sites.SITES


class Decoder:
    """Token rows in, logits out. Holds no request: what belongs to one comes with the call."""

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        *,
        embedding: Tensor,
        layers: Sequence[DecoderLayer],
        norm: Tensor,
        head: Any,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self._embedding = embedding  # [vocab, hidden]
        self._layers = tuple(layers)
        self._norm = norm
        self._head = head
        # as transformers has it: the root in the dtype of the embedding, which in bfloat16 is another number
        root = torch.tensor(spec.hidden_size**0.5 if spec.scaled_embedding else 1.0)
        self.embedding_scale = root.to(embedding.dtype).item()
        ropes = spec.distinct_ropes
        near, far = ([rope.inverse_frequencies(spec.head_dim, far=far) for rope in ropes] for far in (False, True))
        self._frequencies = torch.stack(near)[:, None].to(backend.device)  # [ropes, 1, rotary_dim / 2]
        self._far_frequencies = torch.stack(far)[:, None].to(backend.device)
        factors = torch.tensor([rope.attention_factor for rope in ropes])
        self._rope_factors = factors[:, None, None].to(backend.device)
        compile_steps = backend.compile_steps
        self._compiled = compile_steps(spec, self._layers, norm=norm, head=head) if compile_steps else None

    @property
    def takes(self) -> "frozenset[Beyond]":
        """What rows' adapters may have that is computed with all others' rows, and as fast."""
        layers = self._compiled.layers if self._compiled else None
        return frozenset() if layers is None else layers.takes

    def new_kv_cache(self, num_slots: int) -> KvCache:
        """A zeroed cache of that many positions; the first page of slots must stay unused."""
        return self._kv_cache(num_slots, self.backend.device)

    @property
    def kv_token_bytes(self) -> int:
        """What the cache takes for one position."""
        return self._kv_cache(1, torch.device("meta")).size_bytes

    def _kv_cache(self, num_slots: int, device: torch.device) -> KvCache:
        return KvCache(
            num_slots,
            num_layers=self.spec.num_layers,
            kv_heads=self.spec.num_kv_heads,
            head_dim=self.spec.head_dim,
            dtype=self.backend.kv_dtype or self.backend.dtype,
            device=device,
        )

    @torch.inference_mode()
    def forward(self, inputs: DecoderInput, kv: KvCache, adapters: "AdapterBatch | None" = None) -> Tensor:
        """Runs one step: writes the rows' keys and values into `kv` and returns the wanted logits.

        Returns:
            [R, vocab] float32, on the backend's device: an inference tensor, so change it under inference_mode only.
        """
        return self.logits_of(inputs, kv, adapters).values.clone()

    @torch.inference_mode()
    def logits_of(
        self, inputs: DecoderInput, kv: KvCache, adapters: "AdapterBatch | None" = None, *, compiled: bool = True
    ) -> StepLogits:
        """As `forward`, with what is known of the logits already, which stay until the next step.

        compiled: False for rows whose adapters change more than compiled code knows of.
        """
        self._check(inputs)
        hidden = self._embed(inputs)
        if not (compiled and self._run_compiled(hidden, inputs, kv, adapters)):
            self._run_layers(hidden, inputs, kv, adapters)
        if compiled and self._compiled is not None and self._compiled.head is not None:
            norms = () if adapters is None else adapters.norm_rows(NormId(None, "norm"))
            logits: StepLogits = self._compiled.head.logits(hidden, inputs.logit_rows, norms)
            normed = self._normed_rows(hidden, inputs, adapters) if inputs.has_own_heads else None
        else:
            normed = self._normed_rows(hidden, inputs, adapters)
            logits = StepLogits(self._head_product(normed))
        if normed is not None and inputs.has_own_heads:
            logits = with_own_heads(logits, normed, inputs)
        if self.spec.logit_cap is not None:  # logits that differed may be equal now, so the likeliest is asked again
            logits = StepLogits(ops.soft_cap(logits.values, self.spec.logit_cap))
        return logits

    def _normed_rows(self, hidden: Tensor, inputs: DecoderInput, adapters: "AdapterBatch | None") -> Tensor:
        """What the head reads, of the rows whose logits are wanted."""
        rows = inputs.logit_rows.to(hidden.device)
        if adapters is None:
            return ops.rms_norm(hidden.index_select(0, rows), self._norm, self.spec.norm_eps)
        return self._normed(hidden, self._norm, NormId(None, "norm"), adapters).index_select(0, rows)

    def _normed(self, x: Tensor, weight: Tensor, norm: NormId, adapters: "AdapterBatch | None") -> Tensor:
        """x [rows, …, size] under a norm, with each row's own weights."""
        normed = ops.rms_norm(x, weight, self.spec.norm_eps)
        for start, end, added in () if adapters is None else adapters.norm_rows(norm):
            normed[start:end] = ops.rms_norm(x[start:end], (weight + added).to(weight.dtype), self.spec.norm_eps)
        return normed

    def _run_compiled(self, hidden: Tensor, inputs: DecoderInput, kv: KvCache, adapters: "AdapterBatch | None") -> bool:
        """Runs a step in compiled code, where there is some and it pays; says whether it did."""
        rows = hidden.shape[0]
        layers = self._compiled.layers if self._compiled else None
        if layers is None or not rows or _attended_positions(_by_slots(inputs.attention)) > _COMPILED_POSITIONS:
            return False
        terms = None if adapters is None else adapters.row_terms(num_rows=rows, num_layers=self.spec.num_layers)
        cos, sin = self._cos_sin(inputs.positions, inputs.far_rows)
        layers.run(
            hidden,
            kv,
            cos=cos,
            sin=sin,
            kv_slots=inputs.kv_slots,
            attention=inputs.attention,
            terms=terms,
        )
        return True

    def _run_layers(self, hidden: Tensor, inputs: DecoderInput, kv: KvCache, adapters: "AdapterBatch | None") -> None:
        """Takes hidden through all layers in place, operation by operation."""
        device = self.backend.device
        rotations, activate = self._rotations(inputs), ops.GATES[self.spec.gate]
        slots = inputs.kv_slots.to(device)
        plans = self._plan_attention(inputs)
        for index, layer in enumerate(self._layers):
            x = self._normed(hidden, layer.input_norm, NormId(index, "input_layernorm"), adapters)
            qkv = self._run_site(index, "qkv", x, adapters)
            self._norm_heads(index, qkv, adapters)
            attended = self._attend(index, qkv, rotations[index], slots, kv, plans[self.spec.windows[index]])
            self._add_gated(index, qkv, attended, adapters)
            self._add_block(hidden, index, "o", attended, adapters)
            x = self._normed(hidden, layer.mlp_norm, NormId(index, self.spec.mlp_norm), adapters)
            x = activate(self._run_site(index, "gate_up", x, adapters))
            self._add_block(hidden, index, "down", x, adapters)

    def _add_block(self, hidden: Tensor, index: int, site: str, x: Tensor, adapters: "AdapterBatch | None") -> None:
        """Runs the site that ends a block, and adds what it gives to hidden, normed first where the family does."""
        block = ("o", "down").index(site)
        output, norms = self._run_site(index, site, x, adapters), self._layers[index].block_norms
        if norms is not None:
            output = self._normed(output, norms[block], NormId(index, BLOCK_NORMS[block]), adapters)
        add_block(hidden, output, BlockId(index, BLOCKS[block]), adapters)

    def _embed(self, inputs: DecoderInput) -> Tensor:
        token_ids = inputs.token_ids.to(self._embedding.device)
        hidden = F.embedding(token_ids, self._embedding).to(self.backend.dtype)
        if self.embedding_scale != 1.0:
            hidden *= self.embedding_scale
        self._complete(hidden, inputs)
        return hidden

    def _complete(self, hidden: Tensor, inputs: DecoderInput) -> None:
        """Puts in place, of what was looked up, what is given instead and what is added."""
        if inputs.embedding_rows is not None and inputs.embeddings is not None:
            given = inputs.embeddings.to(hidden)
            hidden.index_copy_(0, inputs.embedding_rows.to(hidden.device), given)
        if inputs.added_rows is not None and inputs.added is not None:
            hidden.index_add_(0, inputs.added_rows.to(hidden.device), inputs.added.to(hidden))

    def _cos_sin(self, positions: Tensor, far_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """By rope, as `spec.distinct_ropes` has them: [ropes, rows, rotary_dim / 2] float32 twice, on the device."""
        frequencies = self._frequencies
        if far_rows is not None:
            frequencies = torch.where(far_rows[:, None], self._far_frequencies, frequencies)
        angles = positions[:, None].float() * frequencies
        return angles.cos() * self._rope_factors, angles.sin() * self._rope_factors

    def _rotations(self, inputs: DecoderInput) -> list[tuple[Tensor, Tensor]]:
        """By layer, cos and sin [rows, 1, rotary_dim] as `ops.rope_` takes them."""
        far_rows, device = inputs.far_rows, self.backend.device
        cos, sin = self._cos_sin(inputs.positions.to(device), None if far_rows is None else far_rows.to(device))
        cos = torch.cat((cos, cos), dim=-1)[:, :, None].to(self.backend.dtype)
        sin = torch.cat((-sin, sin), dim=-1)[:, :, None].to(self.backend.dtype)
        return [(cos[index], sin[index]) for index in self.spec.rope_indices]

    def _plan_attention(self, inputs: DecoderInput) -> Mapping[int | None, Any]:
        return {
            window: ops.plan_attention(
                _by_slots(inputs.attention),
                self.backend.attention,
                window=window,
                device=self.backend.device,
                dtype=self.backend.dtype,
            )
            for window in set(self.spec.windows)
        }

    def _norm_heads(self, index: int, qkv: Tensor, adapters: "AdapterBatch | None") -> None:
        """Norms queries and keys in place, where the family does."""
        spec, norm = self.spec, self._layers[index].qk_norm
        if norm is None:
            return
        heads = qkv.view(qkv.shape[0], -1, spec.head_dim)
        parts = {"q_norm": slice(0, spec.num_heads), "k_norm": slice(spec.num_heads, norm.shape[0])}
        for name, part in parts.items():
            x = heads[:, part]
            x.copy_(self._normed(x, norm[part], NormId(index, name), adapters))

    def _attend(
        self,
        index: int,
        qkv: Tensor,
        rotation: tuple[Tensor, Tensor],
        slots: Tensor,
        kv: KvCache,
        plan: Any,
    ) -> Tensor:
        spec = self.spec
        heads = qkv.view(qkv.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        query_and_key = heads[:, : spec.num_heads + spec.num_kv_heads]
        ops.rope_(query_and_key[..., : rotation[0].shape[-1]], *rotation)
        new = heads[:, spec.num_heads :].view(heads.shape[0], 2, spec.num_kv_heads, spec.head_dim)
        kv.layers[index].index_copy_(0, slots, new.to(kv.layers[index].dtype))
        out = self._attention(heads[:, : spec.num_heads], kv.layers[index], plan)
        return out.view(out.shape[0], spec.num_heads * spec.head_dim)

    def _add_gated(self, index: int, qkv: Tensor, attended: Tensor, adapters: "AdapterBatch | None") -> None:
        """Adds what rows see of their adapters' gated prompts to what attention gave, by the same queries."""
        spec = self.spec
        for start, end, prompt, weight in () if adapters is None else adapters.gated_prompts(index):
            heads = qkv[start:end].unflatten(1, (-1, spec.head_dim))[:, : spec.num_heads].float()
            query = heads.unflatten(1, (spec.num_kv_heads, -1))  # [rows, kv_heads, group, head_dim]
            scores = torch.einsum("nhgd,thd->nhgt", query, prompt.keys) * spec.attention_scale
            seen = torch.einsum("nhgt,thd->nhgd", scores.softmax(-1), prompt.values)
            attended[start:end] += (weight * prompt.gate * seen.flatten(1)).to(attended.dtype)

    def _run_site(self, index: int, site: str, x: Tensor, adapters: "AdapterBatch | None") -> Tensor:
        """One site's output: output scale, then bias, then each row's own delta of the unscaled input."""
        y = self._product(index, site, (x,) if adapters is None else adapters.scaled_inputs(index, site, x))
        if adapters is not None:
            adapters.scale_output(index, site, y)
            self._add_copies(index, site, x, y, adapters)
        bias = self._layers[index].sites[site].bias
        if bias is not None:
            y += bias
        if adapters is not None:
            adapters.add_delta(index, site, x, y)
        return y

    def _add_copies(self, index: int, site: str, x: Tensor, y: Tensor, adapters: "AdapterBatch") -> None:
        """Adds to y what rows take of the base's product again, its inputs and outputs scaled; a few copies at once."""
        for start, end, copies, weight in adapters.copies(index, site):
            rows, at_once = x[start:end], max(1, _COPIED_ROWS // (end - start))
            for first in range(0, len(copies.outputs), at_once):
                outputs = copies.outputs[first : first + at_once]
                scaled = [(rows * scales[first : first + at_once, None]).flatten(0, 1) for scales in copies.inputs]
                products = self._product(index, site, [part.to(x.dtype) for part in scaled])
                added = (products.unflatten(0, (len(outputs), -1)) * outputs[:, None]).sum(0)
                y[start:end] += (weight * added).to(y.dtype)

    # What a backend of its own computes by other means.

    def _product(self, index: int, site: str, inputs: Sequence[Tensor]) -> Tensor:
        """A site's linear, without its bias; an input for all its targets, or one for each."""
        return self._layers[index].sites[site].with_inputs(inputs)

    def _attention(self, query: Tensor, cache: Tensor, plan: Any) -> Tensor:
        """[rows, heads, head_dim] of rotated queries, by what `_plan_attention` gave."""
        return ops.paged_attention(query, cache, plan, scale=self.spec.attention_scale, cap=self.spec.attention_cap)

    def _head_product(self, x: Tensor) -> Tensor:
        """Logits [rows, vocab] float32 of what the last norm gave."""
        return ops.linear(x, self._head).float()

    def _check(self, inputs: DecoderInput) -> None:
        rows = inputs.token_ids.shape[0]
        if inputs.positions.shape != (rows,) or inputs.kv_slots.shape != (rows,):
            raise ValueError(f"positions, kv_slots: expected [{rows}], one for each token id")
        if inputs.attention.num_rows != rows:
            raise ValueError(f"attention: covers {inputs.attention.num_rows} rows of {rows}")
        if inputs.far_rows is not None and inputs.far_rows.shape != (rows,):
            raise ValueError(f"far_rows: expected [{rows}], one for each token id")
        if (inputs.embedding_rows is None) != (inputs.embeddings is None):
            raise ValueError("embedding_rows, embeddings: expected both or neither")
        if (inputs.added_rows is None) != (inputs.added is None):
            raise ValueError("added_rows, added: expected both or neither")


def with_own_heads(logits: StepLogits, normed: Tensor, inputs: DecoderInput) -> StepLogits:
    """Logits in which some rows' tokens have other rows of the head, or more; changed in place, and read again."""
    values, likeliest, finite = logits.values, logits.likeliest, logits.finite
    for part in inputs.head_rows:
        values[part.start : part.end, part.token_ids] = normed[part.start : part.end].float() @ part.rows.T
    for update in inputs.head_updates:
        x = normed[update.start : update.end].float()
        for factors, weight in update.factors:
            values[update.start : update.end].addmm_(x @ factors.directions.T, factors.rows.T, alpha=weight)
    changed: tuple[HeadRows | HeadUpdate, ...] = (*inputs.head_rows, *inputs.head_updates)
    for start, end in {(part.start, part.end) for part in changed}:
        rows = slice(start, end)
        if likeliest is not None and finite is not None:
            likeliest[rows] = values[rows].argmax(1).tolist()
            finite[rows] = values[rows].isfinite().all(1).tolist()
    return StepLogits(values, finite, likeliest)


def _by_slots(attention: AttentionBatch | PagedBatch) -> AttentionBatch:
    assert isinstance(attention, AttentionBatch), "pages are for a TritonDecoder"
    return attention


def _attended_positions(attention: AttentionBatch) -> int:
    """How many positions a step's prompt rows attend to, summed over rows."""
    return sum((segment.end - segment.start) * segment.slots.shape[0] for segment in attention.prefills)
