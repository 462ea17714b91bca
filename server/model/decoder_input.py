"""One step's work, as the decoder takes it: flat rows, decodes first, then the prefill segments in order."""

from dataclasses import dataclass

from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch, PagedBatch
from hotshoe.registry.formats.lowered import TokenFactors


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows of the output head that stand in place of the base's, for some of a step's logits."""

    start: int  # logits start … end−1, in the order of logit_rows
    end: int
    token_ids: Tensor  # [n]
    rows: Tensor  # [n, hidden_size] float32


@dataclass(frozen=True, slots=True)
class HeadUpdate:
    """Low-rank updates of the output head, for some of a step's logits."""

    start: int  # as `HeadRows` has it
    end: int
    factors: tuple[tuple[TokenFactors, float], ...]  # and times what each


@dataclass(frozen=True, slots=True)
class DecoderInput:
    """T rows, each one token of one sequence; R of them want logits. All index tensors int64, on the CPU."""

    token_ids: Tensor  # [T]; not looked at for rows in embedding_rows
    positions: Tensor  # [T]
    kv_slots: Tensor  # [T]: where each row's key and value go
    attention: AttentionBatch | PagedBatch  # the latter where a TritonDecoder runs it
    logit_rows: Tensor  # [R]
    embedding_rows: Tensor | None = None  # [E]: rows whose input is given, not looked up
    embeddings: Tensor | None = None  # [E, hidden_size]
    added_rows: Tensor | None = None  # [A]: rows to whose input something is added, given or looked up
    added: Tensor | None = None  # [A, hidden_size]
    far_rows: Tensor | None = None  # [T] bool: of sequences that are longer than `RopeSpec.far_from`; None: none is
    head_rows: tuple[HeadRows, ...] = ()
    head_updates: tuple[HeadUpdate, ...] = ()  # beside what `head_rows` replaces

    @property
    def has_own_heads(self) -> bool:
        """Whether some logits are not those of the base's output head alone."""
        return bool(self.head_rows or self.head_updates)
