"""Tenants share the batch by what they were served: input + 2 · output tokens, over their weight."""

import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from running_engine import RunningEngine, make_request
from stepped_scheduler import SteppedScheduler

from hotshoe.server.engine.tenant_shares import FORGET_ABOVE, TenantShares

TENANTS = [f"tenant-{i}" for i in range(8)]


def jain(shares: Mapping[str, float], *, weights: Mapping[str, float] | None = None) -> float:
    """1 if all have the same (over their weight), 1/n if one has everything."""
    values = [share / (weights or {}).get(tenant, 1.0) for tenant, share in shares.items()]
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def flood(*, tenants_known: bool) -> dict[str, float]:
    """Service of eight tenants that always have requests waiting, of which one has a hundred times as many."""
    stepped = SteppedScheduler(max_running_requests=16, max_step_tokens=128)
    rng, waiting = random.Random(0), Counter[str]()
    service: Counter[str] = Counter()
    owner: dict[str, str] = {}

    def arrive() -> None:
        seen = Counter(owner[request] for request in stepped.starts)
        for tenant in TENANTS:
            while waiting[tenant] - seen[tenant] < (400 if tenant == TENANTS[0] else 4):
                size = {"prompt": rng.randint(4, 60), "output": rng.randint(4, 40)}
                request = stepped.submit(**size, tenant=tenant if tenants_known else "")
                owner[request] = tenant
                service[request] = size["prompt"] + 2 * size["output"]
                waiting[tenant] += 1

    stepped.run(steps=1500, before_step=arrive)
    return {tenant: sum(service[r] for r in stepped.starts if owner[r] == tenant) for tenant in TENANTS}


def test_a_tenant_that_floods_takes_no_more_than_its_share() -> None:
    assert jain(flood(tenants_known=True)) >= 0.99
    assert jain(flood(tenants_known=False)) < 0.5, "else the flood was none"


def test_weights_share_the_service_in_proportion() -> None:
    weights = {tenant: float(i + 1) for i, tenant in enumerate(TENANTS[:4])}
    stepped = SteppedScheduler(max_running_requests=16, tenant_weights=weights)
    rng = random.Random(1)
    for tenant in TENANTS[:4]:
        for _ in range(600):
            stepped.submit(prompt=rng.randint(4, 40), output=rng.randint(4, 40), tenant=tenant)
    stepped.run(steps=1200)
    total = sum(stepped.service.values())
    for tenant, weight in weights.items():
        assert stepped.service[tenant] / total == pytest.approx(weight / 10, rel=0.05)


def test_who_was_idle_has_no_credit() -> None:
    """One tenant comes back after another was served alone for long: from then on they share alike."""
    stepped = SteppedScheduler(max_running_requests=8)
    stepped.submit(tenant="on-off")
    for _ in range(800):
        stepped.submit(output=20, tenant="steady")
    stepped.run(steps=600)
    before = stepped.service.copy()
    assert before["steady"] > 50 * before["on-off"]
    for _ in range(400):
        stepped.submit(output=20, tenant="on-off")
    stepped.run(steps=400)
    gained = stepped.service - before
    assert gained["on-off"] / gained.total() == pytest.approx(0.5, abs=0.05)


def test_who_runs_alone_and_little_has_no_credit_either() -> None:
    """A stream that never ends keeps a tenant active, not waiting: its low counter is no savings."""
    stepped = SteppedScheduler(max_running_requests=8)
    stepped.submit(output=5000, tenant="stream")
    for _ in range(2000):
        stepped.submit(output=20, tenant="steady")
    stepped.run(steps=1000)
    before = stepped.service.copy()
    for _ in range(400):
        stepped.submit(output=20, tenant="stream")
    stepped.run(steps=400)
    gained = stepped.service - before
    assert gained["stream"] / gained.total() == pytest.approx(0.5, abs=0.08)


def test_no_row_stays_empty_for_the_sake_of_fairness() -> None:
    stepped = SteppedScheduler(max_running_requests=8)
    rng = random.Random(2)
    for tenant, count in zip(TENANTS, (300, 20, 5, 1), strict=False):
        for _ in range(count):
            stepped.submit(output=rng.randint(2, 30), tenant=tenant)

    def check() -> None:
        if stepped.steps and len(stepped.scheduler.waiting) >= 8:
            assert len(stepped.step().chunks) == 8

    stepped.run(before_step=check)
    assert len(stepped.starts) == 326


def test_one_tenant_alone_is_served_by_arrival() -> None:
    stepped = SteppedScheduler(max_running_requests=4, max_step_tokens=16)
    rng = random.Random(3)
    requests = [stepped.submit(prompt=rng.randint(1, 40), output=rng.randint(1, 20)) for _ in range(100)]
    stepped.run()
    assert stepped.starts == requests


def test_long_prompts_of_one_tenant_leave_rows_for_another_s() -> None:
    stepped = SteppedScheduler(max_step_tokens=64)
    for _ in range(10):
        stepped.submit(prompt=2000, output=1, tenant="flood")
    stepped.run(steps=10)
    before = stepped.service["flood"]
    quick = stepped.submit(prompt=320, output=1, tenant="quick")
    stepped.run(steps=12)
    assert stepped.service["quick"] == 322, f"{quick} was computed in at most twice the five steps that it needs alone"
    assert stepped.service["flood"] - before >= 5 * 64, "and the flood had the other half"


def test_rows_of_prompts_are_bounded_while_others_decode() -> None:
    stepped = SteppedScheduler(max_step_tokens=512, max_prefill_tokens_with_decodes=32)
    streams = [stepped.submit(output=200) for _ in range(4)]
    stepped.run(steps=2)
    long = stepped.submit(prompt=2000, output=4)
    prompts = 0
    while long not in {s.request.request_id for s in stepped.scheduler.running} or prompts < 2000:
        plan = stepped.step()
        decoded = {chunk.sequence.request.request_id for chunk in plan.chunks if chunk.decodes}
        assert decoded == set(streams), "each stream gets a token in each step"
        assert plan.num_rows <= len(streams) + 32
        prompts += plan.num_rows - len(streams)
    assert prompts == 2000
    assert stepped.steps <= 2 + 2000 // 32 + 2


def test_prompts_alone_use_the_whole_step() -> None:
    stepped = SteppedScheduler(max_step_tokens=512, max_prefill_tokens_with_decodes=32)
    stepped.submit(prompt=1000)
    assert stepped.step().num_rows == 512


def test_an_engine_serves_both_tenants_alike_though_one_sent_all_its_requests_before(
    start_engine: Callable[..., RunningEngine],
) -> None:
    flood = [make_request([i, 1, 2], max_new_tokens=8, tenant="flood") for i in range(60)]
    quick = [make_request([i, 3, 4], max_new_tokens=8, tenant="quick") for i in range(12)]
    with start_engine(max_running_requests=4) as running:
        running.run(*flood, *quick)
    ends = [o.request_id for report in running.reports for o in report.outputs if o.finish_reason is not None]
    assert max(ends.index(request.request_id) for request in quick) <= 2 * len(quick) + 4


def test_a_prompt_is_charged_once_and_a_token_when_it_is_drawn() -> None:
    """However often it is computed: the cache has room for three of the four, so that the newest are preempted."""
    stepped = SteppedScheduler(kv_tokens=96, page_tokens=4, max_running_requests=8)
    for tenant in ("a", "b", "a", "b"):
        stepped.submit(prompt=10, output=20, tenant=tenant)
    preemptions = 0
    while stepped.scheduler.running or len(stepped.scheduler.waiting):
        preemptions += stepped.step().num_preemptions
    assert preemptions > 0
    assert [stepped.scheduler.shares.served(tenant) for tenant in "ab"] == [2 * (10 + 2 * 20)] * 2


def test_tenants_that_are_gone_are_forgotten_when_they_would_be_lifted_anyway() -> None:
    shares = TenantShares()
    shares.charge("steady", input_tokens=1000, output_tokens=0)
    shares.charge("ahead", input_tokens=2000, output_tokens=0)
    for i in range(FORGET_ABOVE + 10):
        shares.lift(f"passing-{i}", ["steady"])
    assert len(shares._served) < FORGET_ABOVE
    assert shares.served("ahead") == 2000 and shares.served("steady") == 1000


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_are_positive_numbers(weight: float) -> None:
    with pytest.raises(ValueError, match="tenant_weights: 'a' must have a weight above 0"):
        TenantShares({"a": weight})
