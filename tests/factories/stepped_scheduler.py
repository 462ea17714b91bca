"""The scheduler step by step, without tensors or threads: what runs when, counted in steps, rows and loads."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.load_queue import LoadQueue
from hotshoe.server.adapters.placed_adapter import SequenceTerms
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.adapters.residency_entry import Entry, Phase
from hotshoe.server.adapters.residency_state import ResidencyState
from hotshoe.server.config import EngineConfig, ResidencyConfig
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.request import AdapterUse, Request, SamplingParams, StopCriteria
from hotshoe.server.engine.scheduler import Scheduler
from hotshoe.server.engine.sequence import Sequence as Answer
from hotshoe.server.engine.step_plan import StepPlan


class SteppedResidency:
    """Residency's own bookkeeping; every adapter is on the host, and takes some steps to the device."""

    def __init__(self, adapter_slots: int, *, load_steps: int) -> None:
        self.num_slots = adapter_slots
        self.loads = 0
        self._load_steps = load_steps
        config = ResidencyConfig(adapter_slots=adapter_slots)
        self._state = ResidencyState(config, clear=lambda slot: None, evicted=lambda *eviction: None)
        self._queue = LoadQueue(self._state)
        self._placing: list[list[Any]] = []  # [entry, steps left]

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        entries = [self._state.entry(digest) for digest in digests]
        if all(entry.on_device for entry in entries):
            self._state.claims.drop(digests)
            for entry in entries:
                entry.references += 1
                self._state.touch(entry)
            return tuple(entry.slot for entry in entries if entry.slot is not None)
        self._state.claims.renew(digests)
        for entry in entries:
            if not entry.on_device and entry.phase is Phase.IDLE:
                self._queue.put(entry, Phase.AWAITING_SLOT)
        return None

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            entry = cast(Entry, self._state.find(digest))
            entry.references -= 1
            self._state.touch(entry)

    def waits_for_room(self, digests: Sequence[str]) -> bool:
        entries = [self._state.find(digest) for digest in digests]
        return any(entry is not None and entry.phase is Phase.AWAITING_SLOT for entry in entries)

    def sequence_terms(self, slot: int) -> SequenceTerms:
        return SequenceTerms()

    def step(self) -> bool:
        """One step passes; True if a load has ended."""
        while (entry := self._queue.look().entry) is not None:
            self._placing.append([entry, self._load_steps])
        for placing in self._placing:
            placing[1] -= 1
        done = [entry for entry, left in self._placing if left <= 0]
        self._placing = [placing for placing in self._placing if placing[1] > 0]
        for entry in done:
            entry.phase = Phase.IDLE
            self._state.touch(entry)
        self.loads += len(done)
        return bool(done)


class SteppedScheduler:
    """Requests go in, and end after as many tokens as they ask for.

    Attributes:
        starts: request ids in the order in which they got their first row.
        service: input + 2 · output tokens of each tenant.
    """

    def __init__(
        self,
        *,
        adapter_slots: int = 8,
        load_steps: int = 2,
        tenant_weights: Mapping[str, float] | None = None,
        **config: Any,
    ) -> None:
        settings = {"kv_tokens": 65_536, "max_waiting_requests": 4096, "max_step_tokens": 512, **config}
        self.config, kv_tokens = EngineConfig(**settings), settings["kv_tokens"]
        self.residency = SteppedResidency(adapter_slots, load_steps=load_steps)
        self.scheduler = Scheduler(
            config=self.config,
            blocks=KvBlocks(
                num_pages=kv_tokens // self.config.page_tokens,
                page_tokens=self.config.page_tokens,
                max_sequences=self.config.max_running_requests,
                max_table_pages=kv_tokens // self.config.page_tokens,
            ),
            residency=cast(AdapterResidency, self.residency),
            adapter_slots=cast(AdapterSlots, self.residency),
            base_digest="sha256:base",
            max_sequence_length=kv_tokens,
            tenant_weights=tenant_weights,
        )
        self.steps = 0
        self.starts: list[str] = []
        self.service: Counter[str] = Counter()
        self._arrivals = itertools.count()

    def submit(self, *, prompt: int = 8, output: int = 8, adapters: Sequence[str] = (), tenant: str = "") -> str:
        number = next(self._arrivals)
        request = Request(
            request_id=f"request-{number}",
            prompt_token_ids=tuple((number, *range(prompt - 1))),
            sampling=SamplingParams(),
            stopping=StopCriteria(max_new_tokens=output, ignore_eos=True),
            adapters=tuple(AdapterUse(digest, digest, digest) for digest in adapters),
            tenant=tenant,
        )
        self.scheduler.add(Answer(request, 0, order=(number, 0), leader=None, eos=()))
        return request.request_id

    def step(self) -> StepPlan:
        """Plans a step and commits it."""
        plan = self.scheduler.plan()
        for chunk in plan.chunks:
            answer = chunk.sequence
            tenant = answer.request.tenant
            if answer.first_token is None and chunk.start == answer.cached_prompt_tokens:
                self.starts.append(answer.request.request_id)
            self.service[tenant] += min(chunk.end, answer.num_prompt) - min(chunk.start, answer.num_prompt)
            self.scheduler.commit(chunk)
            if chunk.draws:
                answer.first_token = 0.0
                answer.append(1)
                self.service[tenant] += 2
                if answer.num_output == answer.request.stopping.max_new_tokens:
                    self.scheduler.finish(answer)
        if self.residency.step():
            self.scheduler.note_change()
        self.steps += 1
        return plan

    def run(self, *, steps: int = 100_000, before_step: Callable[[], object] = lambda: None) -> None:
        """Steps until nothing is left, or that many times."""
        for _ in range(steps):
            before_step()
            if not self.scheduler.running and not len(self.scheduler.waiting):
                return
            self.step()
        assert steps < 100_000, f"{len(self.scheduler.waiting)} still wait"
