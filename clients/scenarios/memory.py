"""Twenty thousand requests with adapters that come and go, and callers who hang up: the server must not grow."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from hotshoe.clients.scenarios.asker import Answer, Ask, Asker, count_errors
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

STREAMS = 32
# Loads may take all the time they want, and nobody examines: twenty thousand requests are to be over in minutes.
SERVER_ARGUMENTS = ("--max-running-requests", str(STREAMS), "--loader-share", "1", "--doctor", "off")
ADAPTERS = 100
REQUESTS = 20_000
PROMPT_TOKENS, NEW_TOKENS = 16, 4
PARTS = 10
SETTLED = 1  # parts after which memory is looked at: allocators and caches have filled by then
AT_ONCE = 3  # parts whose peak counts: from one moment to the next, loads make it go up and down by tens of megabytes
HANG_UPS = 20  # one request in so many is given up by its caller
MEGABYTE = 1e6


async def run(stage: Stage) -> ScenarioReport:
    """First what many adapters and streams take, then traffic in parts, with memory read after each."""
    adapters, requests = stage.scaled(ADAPTERS, at_least=8), stage.scaled(REQUESTS, at_least=10 * PARTS)
    names = await stage.publish(adapters)
    report = ScenarioReport("memory", {**stage.info, "adapters": adapters, "requests": requests, "streams": STREAMS})
    report.figures["started_mb"] = stage.resident_bytes() / MEGABYTE
    for name in names:
        await stage.client.load(name, tier="host")
    asker = stage.asker
    long = [asker.make(asker.prompt(64), new_tokens=64, adapter=names[i % adapters]) for i in range(STREAMS)]
    errors = Counter(count_errors(await asker.send_all(long, at_a_time=STREAMS)))
    report.figures["busy_mb"] = stage.resident_bytes() / MEGABYTE
    sizes = []
    for part in range(1, PARTS + 1):
        errors += Counter(await _traffic(stage, names, requests // PARTS))
        resident = stage.resident_bytes() / MEGABYTE
        stage.tell(f"{part * requests // PARTS} requests: {resident:.0f} MB")
        sizes.append(resident)
    settled, ended = max(sizes[SETTLED : SETTLED + AT_ONCE]), max(sizes[-AT_ONCE:])
    report.figures |= {"settled_mb": settled, "ended_mb": ended}
    report.errors = dict(errors)
    report.bars = [Bar("growth while requests and adapters come and go", ended - settled, Sense.AT_MOST, 100, "MB")]
    return report


async def _traffic(stage: Stage, names: Sequence[str], requests: int) -> dict[str, int]:
    """Sends requests for any of the adapters, and now and then drops one; gives the errors."""
    asker, answers = stage.asker, []
    left = iter(range(requests))

    async def stream() -> None:
        for number in left:
            name = asker.random.choice(names)
            ask = asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=NEW_TOKENS, adapter=name)
            if number % HANG_UPS:
                answers.append(await asker.send(ask))
            else:
                await _hang_up(asker, ask)
                await stage.client.unload(name)

    await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return count_errors(answers)


async def _hang_up(asker: Asker, ask: Ask) -> None:
    """Asks, and leaves when the answer has begun."""
    answer = Answer(ask, 0.0)
    task = asyncio.create_task(asker.follow(answer))
    while not (answer.has_begun or answer.ended):
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
