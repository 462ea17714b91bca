"""What the engine says after each step, in one call: answers for the streams, figures for the metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

from hotshoe.server.engine.request import AnswerOutput
from hotshoe.server.engine.scheduler import Scheduler
from hotshoe.server.engine.sequence import Sequence
from hotshoe.server.engine.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepStats:
    """Figures of one step; what counts sequences or usage is as it stands after the step."""

    running: int  # sequences in the batch
    waiting: int  # sequences that wait for a place, pages or an adapter
    kv_usage: float  # share of pages that running sequences hold, 0 … 1
    rows: int  # computed in this step: prefill_tokens + decode_tokens
    prefill_tokens: int
    decode_tokens: int
    distinct_adapters: int  # in this step's batch
    preemptions: int
    prefix_queries: int  # tokens looked up in the prefix cache
    prefix_hits: int  # tokens found there
    seconds: float  # the whole step took
    waiting_adapters: tuple[str, ...]  # keys that waiting sequences want


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step's outputs and figures."""

    outputs: list[AnswerOutput]
    stats: StepStats


def step_stats(plan: StepPlan, scheduler: Scheduler, *, seconds: float) -> StepStats:
    """The figures of a plan that was carried out and committed."""
    rows = sum(chunk.num_rows for chunk in plan.chunks)
    decode_tokens = sum(chunk.decodes for chunk in plan.chunks)
    return StepStats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        kv_usage=scheduler.blocks.usage,
        rows=rows,
        prefill_tokens=rows - decode_tokens,
        decode_tokens=decode_tokens,
        distinct_adapters=len(_adapter_keys(chunk.sequence for chunk in plan.chunks)),
        preemptions=plan.num_preemptions,
        prefix_queries=plan.prefix_queries,
        prefix_hits=plan.prefix_hits,
        seconds=seconds,
        waiting_adapters=_adapter_keys(scheduler.waiting),
    )


def _adapter_keys(sequences: Iterable[Sequence]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for sequence in sequences for key in sequence.adapter_keys))
