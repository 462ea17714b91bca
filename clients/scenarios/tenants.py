"""One tenant floods: all that have work waiting are served alike, by input + 2 · output tokens."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping

from hotshoe.clients.scenarios.asker import Answer, Ask, count_errors
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import TENANT_KEY, Stage

SERVER_ARGUMENTS = ("--tenant-metadata", TENANT_KEY, "--max-running-requests", "16")
IN_FLIGHT = {"flood": 96, "ant": 12, "bee": 12, "cat": 12}
SIZES = {"flood": (48, 24), "ant": (16, 24), "bee": (96, 16), "cat": (24, 48)}  # prompt and new tokens
SECONDS = 40.0
SETTLE_SECONDS = 8.0
OUTPUT_COST = 2


async def run(stage: Stage) -> ScenarioReport:
    """Each tenant keeps more requests under way than its share of the batch; then tokens are counted."""
    answers: dict[str, list[Answer]] = {tenant: [] for tenant in IN_FLIGHT}
    seconds = max(4.0, SECONDS * stage.settings.scale)
    tasks = [
        asyncio.create_task(_keep_asking(stage, answers[tenant], _asks(stage, tenant)))
        for tenant, count in IN_FLIGHT.items()
        for _ in range(count)
    ]
    await asyncio.sleep(SETTLE_SECONDS)
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    ended = time.perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    service = {tenant: _service(of_tenant, started, ended) for tenant, of_tenant in answers.items()}
    figures = {f"{tenant}_share": served / sum(service.values()) for tenant, served in service.items()}
    return ScenarioReport(
        "tenants",
        {**stage.info, "in_flight": IN_FLIGHT, "prompt_and_new_tokens": SIZES, "seconds": seconds},
        {**figures, "service_per_second": sum(service.values()) / seconds},
        [Bar("Jain's index of the tenants' service", jain(service), Sense.AT_LEAST, 0.95)],
        count_errors(answer for of_tenant in answers.values() for answer in of_tenant),
    )


def jain(service: Mapping[str, float]) -> float:
    """1 if all have the same, 1/n if one has everything."""
    return sum(service.values()) ** 2 / (len(service) * sum(value * value for value in service.values()))


def _asks(stage: Stage, tenant: str) -> Iterator[Ask]:
    prompt, new_tokens = SIZES[tenant]
    while True:
        yield stage.asker.make(stage.asker.prompt(prompt), new_tokens=new_tokens, tenant=tenant)


async def _keep_asking(stage: Stage, answers: list[Answer], asks: Iterable[Ask]) -> None:
    for ask in asks:
        answers.append(Answer(ask, time.perf_counter()))
        await stage.asker.follow(answers[-1])


def _service(answers: Iterable[Answer], started: float, ended: float) -> float:
    """Input + 2 · output tokens of what came in that time; a prompt counts when its first token comes."""
    service = 0.0
    for answer in answers:
        times = answer.parsed().token_times
        service += OUTPUT_COST * sum(started < at <= ended for at in times)
        service += answer.ask.prompt_tokens if times and started < times[0] <= ended else 0
    return service
