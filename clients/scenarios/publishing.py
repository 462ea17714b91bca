"""Adapters are published, and examined by the doctor before they may be, while eight streams decode."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from hotshoe.clients.scenarios.asker import count_errors
from hotshoe.clients.scenarios.gaps import Streams, background
from hotshoe.clients.scenarios.random_adapters import write_random_lora
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

SERVER_ARGUMENTS = ("--doctor", "require")
STREAMS = 8
ROUNDS = 5
QUIET_SECONDS = 3.0
_LOOK_SECONDS = 0.1  # between looks for the report


async def run(stage: Stage) -> ScenarioReport:
    """Rounds of streams, each with a quiet span, one in which an adapter is published, and a quiet one again."""
    rounds = stage.scaled(ROUNDS, at_least=2)
    warm = await stage.publish(STREAMS)
    for name in warm:
        await stage.client.load(name, pin=True)
    report = ScenarioReport("publishing", {**stage.info, "streams": STREAMS, "rounds": rounds})
    seconds: list[float] = []
    found: list[Streams] = []
    with tempfile.TemporaryDirectory(prefix="hotshoe-scenario-") as scratch:
        fresh = [_write(stage, Path(scratch), number) for number in range(rounds)]
        for number, directory in enumerate(fresh):
            stage.tell(f"round {number + 1} of {rounds}")
            found.append(await _round(stage, warm, directory, seconds))
    for what in ("quiet", "publishing"):
        each = [streams.figures(what) for streams in found]
        report.figures |= {name: median(figures[name] for figures in each) for name in each[0]}
    report.figures["publish_seconds"] = median(seconds)
    report.errors = count_errors(answer for streams in found for answer in streams.answers if answer.ended)
    ratios = [one.figures("publishing")["publishing_p99"] / one.figures("quiet")["quiet_p99"] for one in found]
    promise = "inter-token p99 of streams while an adapter is published and examined ÷ quiet"
    report.bars.append(Bar(promise, median(ratios), Sense.AT_MOST, 1.10))
    return report


def _write(stage: Stage, scratch: Path, number: int) -> Path:
    """An adapter that the server has not seen."""
    seed = time.time_ns() + number
    return write_random_lora(scratch / f"fresh-{number}", rank=8, seed=seed, shape=stage.settings.shape)


async def _round(stage: Stage, warm: Sequence[str], directory: Path, seconds: list[float]) -> Streams:
    asks = [stage.asker.make(stage.asker.prompt(32), new_tokens=1800, adapter=name) for name in warm]
    async with background(stage.asker, asks) as streams:
        with streams.span("quiet"):
            await asyncio.sleep(QUIET_SECONDS)
        started = time.perf_counter()
        with streams.span("publishing"):
            await stage.client.publish_directory(directory, f"examined/{directory.name}")
            while not (await stage.client.get_adapter(f"examined/{directory.name}")).referrers:
                await asyncio.sleep(_LOOK_SECONDS)
        seconds.append(time.perf_counter() - started)
        with streams.span("quiet"):
            await asyncio.sleep(QUIET_SECONDS / 2)
    return streams
