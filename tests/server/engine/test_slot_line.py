"""Many adapters over few slots: everybody's turn comes, and the batch stays full meanwhile."""

import random
from collections.abc import Sequence

import pytest
from stepped_scheduler import SteppedScheduler


def zipf(count: int, *, adapters: int, seed: int) -> list[int]:
    weights = [1 / (rank + 1) for rank in range(adapters)]
    return random.Random(seed).choices(range(adapters), weights, k=count)


def serve(adapters: Sequence[int], *, max_overtakes: int, load_steps: int = 2) -> tuple[int, int]:
    """Steps and loads until all have been served; the adapters come in this order, with answers of 8 to 24 tokens."""
    rng = random.Random(1)
    stepped = SteppedScheduler(adapter_slots=8, load_steps=load_steps, max_overtakes=max_overtakes)
    for adapter in adapters:
        stepped.submit(output=rng.randint(8, 24), adapters=[f"adapter-{adapter}"])
    stepped.run()
    assert len(stepped.starts) == len(adapters)
    return stepped.steps, stepped.residency.loads


@pytest.mark.parametrize("order", ["zipf", "round robin"])
def test_two_hundred_adapters_over_eight_slots_come_close_to_the_best_order(order: str) -> None:
    adapters = [*range(200)] * 5 if order == "round robin" else [*range(200), *zipf(800, adapters=200, seed=0)]
    steps, loads = serve(adapters, max_overtakes=64)
    best_steps, best_loads = serve(sorted(adapters), max_overtakes=10**9)
    assert best_loads == 200
    assert steps <= 1.1 * best_steps
    assert loads <= 1.1 * best_loads


def test_nobody_waits_for_a_slot_for_ever_while_others_keep_coming() -> None:
    """Four hot adapters hold all four slots, with more requests for them each step than there are rows."""
    stepped = SteppedScheduler(adapter_slots=4, max_running_requests=8, max_overtakes=10)
    rng = random.Random(3)
    cold: dict[str, int] = {}  # request → how many had started when it came

    def arrive() -> None:
        for _ in range(2):
            stepped.submit(output=rng.randint(2, 12), adapters=[f"hot-{rng.randrange(4)}"])
        if stepped.steps in (20, 21, 22, 60, 120):
            request = stepped.submit(output=3, adapters=[f"cold-{stepped.steps}"])
            cold[request] = len(stepped.starts)

    fill = []
    for _ in range(400):
        arrive()
        fill.append(len(stepped.step().chunks))
    assert set(cold) <= set(stepped.starts), "all were served"
    first = next(iter(cold))
    passed = [r for r in stepped.starts[cold[first] : stepped.starts.index(first)] if number(r) > number(first)]
    assert len(passed) <= 10 + 12, "ten may pass, and those who start while one adapter's longest answer ends"
    assert sum(fill[20:]) / len(fill[20:]) >= 7.5, "of eight rows"


def test_a_slot_is_drained_only_as_far_as_the_first_in_line_needs() -> None:
    stepped = SteppedScheduler(adapter_slots=2, max_running_requests=4, max_overtakes=1, load_steps=1)
    stepped.submit(output=60, adapters=["long"])
    stepped.submit(output=10, adapters=["short"])
    stepped.run(steps=3)
    waiting = stepped.submit(output=2, adapters=["other"])
    later = [stepped.submit(output=2, adapters=[name]) for name in ("short", "short", "long", "long")]
    stepped.run(steps=25)
    order = stepped.starts[2:]
    assert order[0] == later[0], "one may pass"
    assert order.index(later[2]) < order.index(waiting), "what is not drained takes new requests"
    assert later[1] not in order[: order.index(waiting)], "what is drained does not"


def test_a_stack_that_waits_gets_all_its_slots() -> None:
    stepped = SteppedScheduler(adapter_slots=3, max_running_requests=6, max_overtakes=6)
    rng = random.Random(4)

    def arrive() -> None:
        stepped.submit(output=rng.randint(2, 9), adapters=[f"hot-{rng.randrange(3)}"])
        if stepped.steps == 30:
            stacks.append(stepped.submit(output=3, adapters=["one", "two", "three"]))

    stacks: list[str] = []
    stepped.run(steps=120, before_step=arrive)
    assert stacks[0] in stepped.starts


def test_stacks_that_share_adapters_do_not_keep_each_other_s_slots() -> None:
    """Each adapter that was in use is wanted again, by a stack of which the other half is not claimed."""
    stepped = SteppedScheduler(adapter_slots=4, max_running_requests=4)
    stepped.submit(output=4, adapters=["a", "b"])
    stepped.submit(output=4, adapters=["c", "d"])
    stepped.run(steps=4)
    for stack in (["x", "y"], ["a", "e"], ["b", "f"], ["c", "g"], ["d", "h"]):
        stepped.submit(output=4, adapters=stack)
    stepped.run(steps=100)
    assert len(stepped.starts) == 7


def test_a_request_that_needs_no_adapter_waits_for_no_slot() -> None:
    stepped = SteppedScheduler(adapter_slots=1, max_overtakes=0)
    stepped.submit(output=40, adapters=["one"])
    stepped.run(steps=4)
    stepped.submit(adapters=["two"])
    plain = stepped.submit()
    stepped.run(steps=1)
    assert stepped.starts[-1] == plain


def number(request_id: str) -> int:
    return int(request_id.rpartition("-")[2])
