"""Sequences: positions before and behind the virtual tokens, and keys that depend on all of it."""

import math

import torch
from running_engine import make_request

from hotshoe.registry.formats.lowered import KvPrefix
from hotshoe.server.adapters.placed_adapter import SequenceTerms
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.prefix_cache import VIRTUAL_TOKEN
from hotshoe.server.engine.request import AdapterUse, Request
from hotshoe.server.engine.sequence import Sequence, SequenceStatus
from hotshoe.server.engine.sequence_pages import SequencePages

USES = (AdapterUse("a", "a", "sha256:1"), AdapterUse("b", "b", "sha256:2", weight=0.5))
SOFT = (
    SequenceTerms(kv_prefix=KvPrefix(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)), prompt_embeddings=None),
    SequenceTerms(kv_prefix=None, prompt_embeddings=torch.zeros(2, 8)),
)


def make_sequence(request: Request, *, index: int = 0, leader: Sequence | None = None) -> Sequence:
    return Sequence(request, index, order=(1, index), leader=leader, eos=[0])


def keys(sequence: Sequence, count: int = 2) -> list[bytes]:
    blocks = KvBlocks(num_pages=1, page_tokens=2, max_sequences=1, max_table_pages=1)
    return SequencePages(blocks, base_digest="sha256:b", shared=False).keys(sequence, count)


def test_positions_are_counted_from_the_first_virtual_token() -> None:
    sequence = make_sequence(make_request([10, 11, 12], max_new_tokens=4, adapters=USES))
    assert sequence.target == 3 and sequence.max_positions == 6
    sequence.attach((7, 8), SOFT)
    assert (sequence.prefix_tokens, sequence.virtual_tokens, sequence.target) == (3, 5, 8)
    assert sequence.stack == ((7, 1.0), (8, 0.5))
    assert sequence.tokens_at(0, 8) == [VIRTUAL_TOKEN] * 5 + [10, 11, 12]
    assert sequence.tokens_at(3, 7) == [VIRTUAL_TOKEN] * 2 + [10, 11]
    assert sequence.tokens_at(2, 4) == [VIRTUAL_TOKEN] * 2
    assert sequence.tokens_at(6, 8) == [11, 12]
    sequence.append(99)
    assert sequence.target == 9 and sequence.max_positions == 11 and sequence.output == [99]


def test_a_scored_choice_computes_all_but_its_last_token() -> None:
    request = make_request([10, 11], max_new_tokens=0, choices=((1, 2, 3), (4,)))
    three, one = make_sequence(request), make_sequence(request, index=1)
    assert (three.target, three.max_positions, three.first_logit_position) == (4, 4, 1)
    assert (one.target, one.max_positions, one.first_logit_position) == (2, 2, 1)
    assert make_sequence(make_request([1])).first_logit_position == math.inf
    assert make_sequence(make_request([1], prompt_logprobs=0)).first_logit_position == 0


def test_siblings_wait_for_the_first_to_compute_the_prompt() -> None:
    request = make_request([1, 2], n=2)
    leader = make_sequence(request)
    sibling = make_sequence(request, index=1, leader=leader)
    assert leader.may_start and not sibling.may_start
    leader.prompt_computed = True
    assert sibling.may_start
    leader.prompt_computed, leader.status = False, SequenceStatus.FINISHED
    assert sibling.may_start


def test_keys_differ_by_adapter_weight_tenant_and_virtual_tokens() -> None:
    plain = make_sequence(make_request([1, 2, 3, 4]))
    variants = [
        make_sequence(make_request([1, 2, 3, 4], tenant="t")),
        make_sequence(make_request([1, 2, 3, 4], adapters=USES[:1])),
        make_sequence(make_request([1, 2, 3, 4], adapters=USES)),
        make_sequence(make_request([1, 2, 3, 4], adapters=(USES[0], AdapterUse("b", "b", "sha256:2", weight=0.25)))),
        make_sequence(make_request([1, 2, 3, 5])),
    ]
    found = [keys(plain), *map(keys, variants)]
    assert len({pages[1] for pages in found}) == len(found)
    assert found[0][0] == found[-1][0], "a prefix that is the same has the same key"
    assert keys(make_sequence(make_request([1, 2, 3, 4]), index=3)) == found[0]
    soft = make_sequence(make_request([1, 2, 3, 4], adapters=USES))
    soft.attach((0, 1), SOFT)
    assert keys(soft) != found[3]


def activated(prompt: list[int], invocation: tuple[int, ...]) -> Sequence:
    sequence = make_sequence(make_request(prompt, adapters=USES[:1]))
    sequence.attach((7,), [SequenceTerms(invocation=invocation)])
    return sequence


def test_an_adapter_acts_from_the_last_place_of_its_invocation() -> None:
    sequence = activated([5, 6, 1, 5, 6, 2], (5, 6))
    assert list(sequence.stacks(0, 6)) == [(0, 3, ()), (3, 6, ((7, 1.0),))]
    assert list(sequence.stacks(1, 3)) == [(1, 3, ())] and list(sequence.stacks(5, 6)) == [(5, 6, ((7, 1.0),))]
    assert list(activated([5, 6, 1], (6, 5)).stacks(0, 3)) == [(0, 3, ())]
    answering = activated([5, 1], (1, 6))
    answering.append(6)
    assert list(answering.stacks(2, 3)) == [(2, 3, ())], "it is called up by the prompt alone"


def test_pages_before_an_invocation_are_the_base_s_own() -> None:
    plain = make_sequence(make_request([1, 2, 3, 4, 5, 6]))
    of_base, acting = keys(plain, 3), keys(activated([1, 2, 3, 4, 5, 6], (4,)), 3)
    assert acting[0] == of_base[0] and not set(acting[1:]) & set(of_base[1:])
    assert keys(activated([1, 2, 3, 4, 5, 6], (9,)), 3) == of_base
    elsewhere = keys(activated([1, 2, 3, 4, 5, 6], (3,)), 3)
    assert elsewhere[0] == of_base[0] and not set(elsewhere[1:]) & set(acting[1:])
    always = keys(make_sequence(make_request([1, 2, 3, 4, 5, 6], adapters=USES[:1])), 3)
    assert not set(always) & {*acting, *elsewhere, *of_base}


def test_keys_of_generated_pages_continue_the_chain() -> None:
    grown = make_sequence(make_request([1, 2, 3]))
    first = list(keys(grown, 1))
    grown.append(4)
    assert keys(grown) == keys(make_sequence(make_request([1, 2, 3, 4]))) and keys(grown, 1) == first
