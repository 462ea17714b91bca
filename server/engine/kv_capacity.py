"""How large the key-value cache is: as asked for, or what the device has left for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.scheduler import MAX_LOGIT_ROWS
from hotshoe.server.model.workspace import StepLimits, workspace

if TYPE_CHECKING:
    from hotshoe.server.model.decoder import Decoder

CPU_TOKENS = 16_384  # where memory is everybody's, and long contexts are slow
CPU_SHARE = 0.5
MAX_SLOTS = 1 << 31  # steps say in 32 bits where keys and values go


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """Of an engine's cache; its null page comes on top."""

    tokens: int
    page_tokens: int
    token_bytes: int

    @property
    def pages(self) -> int:
        return self.tokens // self.page_tokens

    @property
    def size_bytes(self) -> int:
        return (self.tokens + self.page_tokens) * self.token_bytes


def kv_capacity(config: EngineConfig, decoder: "Decoder", *, adapter_bytes: int, free_bytes: int | None) -> KvCapacity:
    """What `config` says, or else as many whole pages as fit.

    Args:
        adapter_bytes: of the device's memory, which adapters may still take.
        free_bytes: of the device's memory, now that base and adapter tables have theirs; None if that is not known.
    Raises:
        ValueError: a GPU has no room for one request of the model's length, or a CPU none for a page.
    """
    tokens = config.kv_tokens
    if tokens is None:
        if decoder.backend.device.type == "cpu":
            tokens = _tokens_on_cpu(config, decoder.kv_token_bytes, free_bytes)
        else:
            tokens = _tokens_on_gpu(config, decoder, adapter_bytes, free_bytes or 0)
    return KvCapacity(tokens, config.page_tokens, decoder.kv_token_bytes)


def _tokens_on_cpu(config: EngineConfig, token_bytes: int, free_bytes: int | None) -> int:
    room = CPU_TOKENS if free_bytes is None else int(CPU_SHARE * free_bytes) // token_bytes
    tokens = _whole_pages(min(CPU_TOKENS, room), config.page_tokens)
    if tokens < config.page_tokens:
        raise ValueError(
            f"--kv-tokens: half of the {_gib(free_bytes or 0)} that the machine has free holds {room} tokens, less "
            f"than one page of {config.page_tokens}; give a number to take more, or a smaller --page-tokens"
        )
    return tokens


def _tokens_on_gpu(config: EngineConfig, decoder: "Decoder", adapter_bytes: int, free_bytes: int) -> int:
    spec, sequences = decoder.spec, config.max_running_requests
    limits = StepLimits(config.max_step_tokens, max(MAX_LOGIT_ROWS, sequences), sequences, config.page_tokens)
    steps = workspace(spec, decoder.backend, limits)
    ours = int(config.free_gpu_memory_fraction * free_bytes)
    slots = (ours - steps.fixed - adapter_bytes) // (decoder.kv_token_bytes + steps.per_token)
    null_page = config.page_tokens
    tokens = max(0, _whole_pages(min(slots, MAX_SLOTS), config.page_tokens) - null_page)
    if tokens >= spec.max_sequence_length:
        return tokens
    needed = (spec.max_sequence_length + config.page_tokens) * (decoder.kv_token_bytes + steps.per_token)
    raise ValueError(
        f"--kv-tokens: one request of the model's length, {spec.max_sequence_length} tokens, takes {_gib(needed)}, and "
        f"{tokens} tokens fit: the GPU has {_gib(free_bytes)} free beside the base, of which "
        f"--free-gpu-memory-fraction {config.free_gpu_memory_fraction:g} takes {_gib(ours)}; steps may need "
        f"{_gib(steps.fixed)} of that (--max-step-tokens {config.max_step_tokens}, --max-running-requests "
        f"{sequences}), adapters {_gib(adapter_bytes)} more (--device-bytes); give a smaller number to serve shorter "
        "requests, or make room by those flags"
    )


def _whole_pages(tokens: int, page_tokens: int) -> int:
    return tokens // page_tokens * page_tokens


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
