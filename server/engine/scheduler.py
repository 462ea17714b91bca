"""Decides what one step computes: decodes first, then chunks of prompts, under a budget of tokens, pages and adapters.

Knows sequences, pages and which adapters are on the device; knows nothing of tensors, and nothing of what comes out.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.prompt_budget import PromptBudget
from hotshoe.server.engine.sequence import Sequence, SequenceStatus
from hotshoe.server.engine.sequence_pages import SequencePages
from hotshoe.server.engine.slot_line import SlotLine
from hotshoe.server.engine.step_plan import Chunk, PrefixWrite, StepPlan, TailCopy
from hotshoe.server.engine.tenant_shares import TenantShares
from hotshoe.server.engine.waiting_queue import WaitingQueue
from hotshoe.server.errors import PromptTooLong, ServerError

if TYPE_CHECKING:
    from hotshoe.server.adapters.adapter_places import AdapterPlaces
    from hotshoe.server.adapters.residency import AdapterResidency

MAX_LOGIT_ROWS = 256  # of one step: a row of logits is a whole vocabulary of floats


class Scheduler:
    """Who runs, who waits, and who holds what.

    A sequence runs from its admission to its end or preemption; only then it holds a block table and one reference
    on each of its adapters. All pages of what is known of it are taken at admission, so that only a decode can lack
    one; then the newest running sequence gives way, and is computed again later.
    """

    def __init__(
        self,
        *,
        config: EngineConfig,
        blocks: KvBlocks,
        residency: "AdapterResidency",
        adapter_slots: "AdapterPlaces[Any]",
        base_digest: str,
        max_sequence_length: int,
        far_from: int | None = None,
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            far_from: sequences of more positions are far, as `RopeSpec` has it; None: none is.
            tenant_weights: shares of the batch; 1 for each tenant that is not named.
        """
        self.blocks = blocks
        self.running: list[Sequence] = []
        self.shares = TenantShares(tenant_weights)
        self.waiting = WaitingQueue(self.shares)
        self._slot_line = SlotLine(num_slots=adapter_slots.num_slots, max_overtakes=config.max_overtakes)
        self._config = config
        self._residency = residency
        self._adapter_slots = adapter_slots
        self._pages = SequencePages(blocks, base_digest=base_digest, shared=config.share_prefixes)
        self._max_sequence_length = max_sequence_length
        self._far_from = far_from
        self._prompt_budget = PromptBudget(
            max_rows=config.max_prefill_tokens_with_decodes, max_stretch=config.max_step_stretch
        )
        self._changes = 0  # of pages or adapters: a reason to try again what could not start

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence."""
        self.waiting.push(sequence)

    def note_change(self) -> None:
        """Adapters came or went: sequences that could not start may be able to now."""
        self._changes += 1

    def note_step(self, plan: StepPlan, seconds: float) -> None:
        """A plan was run, in so much time: what prompts may add to the next step follows from it."""
        if plan.num_decodes:
            rows = plan.num_rows - plan.num_decodes
            self._prompt_budget.note_step(num_decodes=plan.num_decodes, num_prompt_rows=rows, seconds=seconds)

    def finish(self, sequence: Sequence, *, soiled: bool = False) -> None:
        """Takes a sequence out, wherever it is; with `soiled`, its own pages are cleared before they are used again."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self._stop(sequence, soiled=soiled)
        sequence.status = SequenceStatus.FINISHED

    def plan(self) -> StepPlan:
        """Plans the next step; a plan without chunks means that there is nothing to compute now."""
        plan = StepPlan()
        self._plan_decodes(plan)
        self._plan_prompts(plan)
        plan.chunks.sort(key=lambda chunk: chunk.num_rows > 1)
        return plan

    def commit(self, chunk: Chunk) -> None:
        """Takes note that a chunk was computed and its numbers are finite; its full pages may be shared from now on."""
        sequence = chunk.sequence
        sequence.computed = chunk.end
        if chunk.end >= sequence.virtual_tokens + sequence.num_prompt:
            sequence.prompt_computed = True
        self._pages.offer(sequence)
        if sequence.has_siblings and sequence.leader is None and chunk.start < sequence.shared_positions <= chunk.end:
            self._pages.offer_tail(sequence)

    def reset(self) -> None:
        """After a step that failed: every running sequence waits again, every page is free, nothing is cached."""
        for sequence in list(self.running):
            self._requeue(sequence)
        self.blocks.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError unless pages and adapter references are exactly those of the running sequences."""
        self.blocks.check_integrity()
        tables = [sequence.table for sequence in self.running]
        if None in tables or len(set(tables)) != len(tables):
            raise AssertionError("two running sequences share a block table, or one has none")
        if not self.running and self.blocks.usage:
            raise AssertionError(f"{self.blocks.usage:.1%} of the pages are referenced, but nothing runs")
        held = Counter(key for sequence in self.running for key in sequence.adapter_keys)
        for resident in self._residency.residents():
            if resident.running != held[resident.key]:
                raise AssertionError(f"{resident.key}: {resident.running} references, {held[resident.key]} uses")

    def _plan_decodes(self, plan: StepPlan) -> None:
        """One row for each sequence that has only its newest token to compute; the oldest takes pages first."""
        for sequence in sorted(self.running, key=lambda s: s.order):
            if sequence.status is not SequenceStatus.RUNNING or sequence.target - sequence.computed != 1:
                continue
            if self._is_far(sequence) != sequence.far:
                self._requeue(sequence)  # all its positions turn otherwise from now on: they are computed again
            elif self._grow(sequence, plan):
                self._append_chunk(plan, sequence)
        plan.num_decodes = len(plan.chunks)

    def _plan_prompts(self, plan: StepPlan) -> None:
        """What the budget leaves goes to prompts, the least served tenant's first: begun ones, then those that wait."""
        begun = [sequence for sequence in self.running if sequence.target - sequence.computed > 1]
        admits = not plan.num_preemptions and len(self.running) < self._config.max_running_requests
        if admits:
            self._slot_line.begin_step(self.running, self.waiting)
        for sequence in self.waiting.turns(begun, with_waiting=admits):
            if self._room(plan) == 0:
                return
            if sequence.status is SequenceStatus.RUNNING:
                self._append_chunk(plan, sequence)
            elif admits:
                admits = self._admit(sequence, plan)

    def _admit(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Starts a waiting sequence, if it is its turn and all is there; False if nobody behind it may start either."""
        if len(self.running) == self._config.max_running_requests:
            return False
        if not sequence.may_start or not self._slot_line.admits(sequence):
            return True
        if sequence.tried_at != self._changes:
            self._try_start(sequence, plan)
        if sequence.status is SequenceStatus.RUNNING:
            self._slot_line.note_start(sequence)
        elif sequence.lacked_room:
            self._slot_line.note_in_line(sequence)
        return not sequence.lacked_pages  # whoever is behind must not take them first, or it would never start

    def _try_start(self, sequence: Sequence, plan: StepPlan) -> None:
        """Starts a sequence if its adapters are on the device and its pages can be had; else notes what it lacks."""
        sequence.tried_at, sequence.lacked_pages, sequence.lacked_room = self._changes, False, False
        try:
            adapter_slots = self._residency.acquire(sequence.adapter_keys) if sequence.adapter_keys else ()
        except ServerError as error:
            plan.failed.append((sequence, error))
            return
        if adapter_slots is None:
            sequence.lacked_room = self._residency.waits_for_room(sequence.adapter_keys)
            return
        sequence.attach(adapter_slots, [self._adapter_slots.sequence_terms(slot) for slot in adapter_slots])
        too_long = self._too_long(sequence)
        if too_long is None and self._open_table(sequence, plan):
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.status = SequenceStatus.RUNNING
            if sequence.started is None:
                sequence.started = time.monotonic()
            self._append_chunk(plan, sequence)
            return
        sequence.lacked_pages = too_long is None
        self._release_adapters(sequence)
        if too_long is not None:
            plan.failed.append((sequence, too_long))

    def _too_long(self, sequence: Sequence) -> PromptTooLong | None:
        """Why it can never run, now that the number of its virtual tokens is known; None if it can."""
        if sequence.max_positions + 1 > self._max_sequence_length:
            limit = f"the model's length, {self._max_sequence_length}"
        elif self.blocks.pages_for(sequence.max_positions) > self.blocks.num_pages:
            limit = f"the key-value cache, {self.blocks.num_pages * self.blocks.page_tokens} tokens"
        else:
            return None
        return PromptTooLong(
            "prompt",
            f"{sequence.virtual_tokens} virtual tokens of the adapters, prompt and answer do not fit {limit}",
        )

    def _is_far(self, sequence: Sequence) -> bool:
        return self._far_from is not None and sequence.target > self._far_from

    def _open_table(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Takes cached pages for its beginning and free ones for the rest; False, and nothing taken, if too few."""
        blocks = self.blocks
        sequence.turn(far=self._is_far(sequence))
        cached, tail = self._pages.find(sequence)
        table = blocks.open_table(cached)
        spare = len(self.running)  # a page for the next token of each that runs: else it might be preempted at once
        missing = blocks.pages_for(sequence.target) - len(cached)
        if missing + spare > blocks.num_available or not blocks.grow(table, sequence.target):
            blocks.close_table(table)
            return False
        sequence.table, sequence.offered_pages, sequence.computed = table, len(cached), len(cached) * blocks.page_tokens
        if tail is not None:
            plan.tail_copies.append(TailCopy(sequence, tail, sequence.computed, sequence.shared_positions))
            sequence.computed = sequence.shared_positions
        hits = max(0, sequence.computed - sequence.virtual_tokens)
        if sequence.prefix_tokens > sequence.computed:
            plan.prefix_writes.append(PrefixWrite(sequence, sequence.computed, sequence.prefix_tokens))
            sequence.computed = sequence.prefix_tokens
        plan.prefix_queries += len(sequence.tokens)
        plan.prefix_hits += hits
        if sequence.started is None:  # preempted ones would find pages of their own
            sequence.cached_prompt_tokens = min(hits, sequence.num_prompt)
        return True

    def _grow(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Makes room for its next position, if need be by preempting the newest; False if that is itself."""
        assert sequence.table is not None
        while not self.blocks.grow(sequence.table, sequence.target):
            newest = max(self.running, key=lambda s: s.order)
            self._requeue(newest)
            plan.num_preemptions += 1
            if newest is sequence:
                return False
        return True

    def _append_chunk(self, plan: StepPlan, sequence: Sequence) -> None:
        """Plans as many of the positions that it lacks as the step has room for."""
        room, logit_room = self._room(plan), MAX_LOGIT_ROWS - plan.num_logits
        start, target = sequence.computed, sequence.target
        first = int(min(sequence.first_logit_position, target - 1))
        end = min(target, start + room, max(start, first) + max(1, logit_room))
        if end <= start:
            return
        num_logits = end - min(max(start, first), end - 1)
        draws = end == sequence.target and not sequence.scores
        decodes = draws and end - start == 1 and sequence.num_output > 0
        plan.chunks.append(Chunk(sequence, start, end, num_logits=num_logits, draws=draws, decodes=decodes))
        plan.num_rows += end - start
        plan.num_logits += num_logits
        self.shares.charge(sequence.request.tenant, input_tokens=sequence.take_charge(end), output_tokens=int(draws))

    def _room(self, plan: StepPlan) -> int:
        """Rows that may still be planned; prompts may not make a step long for those who decode in it."""
        rows = self._config.max_step_tokens
        if plan.num_decodes:
            here = min(len(self.running) + len(self.waiting), self._config.max_running_requests)
            joining = max(0, here - plan.num_decodes)
            rows = min(rows, plan.num_decodes + self._prompt_budget.rows(plan.num_decodes, joining))
        return rows - plan.num_rows

    def _requeue(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.push(sequence)

    def _stop(self, sequence: Sequence, *, soiled: bool = False) -> None:
        assert sequence.table is not None
        self.running.remove(sequence)
        self.blocks.close_table(sequence.table, soiled=soiled)
        self._release_adapters(sequence)
        self._changes += 1

    def _release_adapters(self, sequence: Sequence) -> None:
        if sequence.adapter_keys:
            self._residency.release(sequence.adapter_keys)
        sequence.detach()
