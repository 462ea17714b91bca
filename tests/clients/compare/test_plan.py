"""What a comparison asks: the same of everyone, and of every run of the same plan."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from hotshoe.clients.compare.plan import Case, ComparePlan, Prompts
from hotshoe.clients.compare.runners.protocol import Workload


@pytest.fixture(scope="module")
def base(adapters: Mapping[str, Path]) -> Path:
    return adapters[""]


def test_cases_are_every_concurrency_and_fewer_adapters_at_the_most_streams() -> None:
    plan = ComparePlan(concurrency=(8, 1), adapters=4, fewer_adapters=(2, 1))
    assert plan.base_cases == [Case(0, 1), Case(0, 8)]
    assert plan.adapter_cases == [Case(1, 8), Case(2, 8), Case(4, 1), Case(4, 8)]


def test_the_same_plan_asks_the_same_and_no_prompt_twice(base: Path) -> None:
    plan = ComparePlan(prompt_tokens=12, new_tokens=5)
    asked = [[Prompts(plan, base).case(Case(8, 16), number) for number in range(3)] for _ in range(2)]
    assert asked[0] == asked[1]
    other = Prompts(ComparePlan(prompt_tokens=12, new_tokens=5, seed=1), base).case(Case(8, 16), 0)
    workloads = [*asked[0], other, Prompts(plan, base).case(Case(0, 16), 0)]
    prompts = [request.prompt for workload in workloads for request in workload.requests]
    assert len(set(prompts)) == len(prompts) == 5 * 16
    assert {len(prompt) for prompt in prompts} == {12} and {one.new_tokens for one in workloads} == {5}


def test_adapters_take_turns_and_the_base_has_none(base: Path) -> None:
    prompts = Prompts(ComparePlan(), base)
    names = [request.adapter for request in prompts.case(Case(2, 4), 0).requests]
    assert names == ["lora-00-r8", "lora-01-r16", "lora-00-r8", "lora-01-r16"]
    assert {request.adapter for request in prompts.case(Case(0, 4), 0).requests} == {None}


def test_loading_takes_adapters_that_nobody_uses_yet(base: Path) -> None:
    prompts = Prompts(ComparePlan(adapters=4, fewer_adapters=(), loads=3), base)
    quiet, busy = prompts.loading(0, quiet=True), prompts.loading(1, quiet=False)
    used = {request.adapter for request in busy.requests}
    assert not quiet.loads and len(busy.loads) == 3 and used.isdisjoint(load.adapter for load in busy.loads)


def test_checks_are_the_same_stretches_for_the_base_and_each_adapter(base: Path) -> None:
    prompts = Prompts(ComparePlan(), base)
    of_base, of_adapters = prompts.check(0).requests, prompts.check(3).requests
    assert len({request.prompt for request in of_base}) == len(of_base) and len(of_adapters) == 3 * len(of_base)
    assert len({len(request.prompt) for request in of_adapters}) == 1  # static batches then need no padding
    assert [request.prompt for request in of_adapters] == [request.prompt for request in of_base] * 3
    assert len({request.adapter for request in of_adapters}) == 3


def test_a_workload_survives_json(base: Path) -> None:
    workload = Prompts(ComparePlan(), base).loading(0, quiet=False)
    assert Workload.from_json(workload.to_json()) == workload


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"concurrency": ()}, {"loads": -1}, {"fewer_adapters": (8,)}, {"threads": 0}]
)
def test_a_senseless_plan_is_refused_by_name(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ComparePlan(**wrong)
