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
QUIET_SECONDS = 2.0  # before and after: answers slow down as they grow longer, and the mean of both is as the middle
_WHILE = "while an adapter is published and examined ÷ quiet"
_LOOK_SECONDS = 0.1  # between looks for the report


async def run(stage: Stage) -> ScenarioReport:
    """Rounds of streams, each with a quiet span, one in which an adapter is published, and a quiet one again."""
    rounds = stage.scaled(ROUNDS)
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
    report.bars = [
        Bar(f"inter-token p99 of streams {_WHILE}", _ratio(found, "p99"), Sense.AT_MOST, 1.10),
        Bar(f"their tokens/s {_WHILE}", _ratio(found, "tokens_per_second"), Sense.AT_LEAST, 0.90),
    ]
    return report


def _ratio(found: Sequence[Streams], figure: str) -> float:
    """The median of the rounds' ratios to their own quiet spans."""
    return median(
        one.figures("publishing")[f"publishing_{figure}"] / one.figures("quiet")[f"quiet_{figure}"] for one in found
    )


def _write(stage: Stage, scratch: Path, number: int) -> Path:
    """An adapter that the server has not seen."""
    seed = time.time_ns() + number
    return write_random_lora(scratch / f"fresh-{number}", rank=8, seed=seed, shape=stage.settings.shape)


async def _round(stage: Stage, warm: Sequence[str], directory: Path, seconds: list[float]) -> Streams:
    new_tokens = min(1800, stage.info["max_sequence_length"] - 40)
    quiet_seconds = QUIET_SECONDS * min(1.0, stage.settings.scale)
    asks = [stage.asker.make(stage.asker.prompt(32), new_tokens=new_tokens, adapter=name) for name in warm]
    async with background(stage.asker, asks) as streams:
        with streams.span("quiet"):
            await _quiet(streams, quiet_seconds)
        started = time.perf_counter()
        with streams.span("publishing"):
            await stage.client.publish_directory(directory, f"examined/{directory.name}")
            while not (await stage.client.get_adapter(f"examined/{directory.name}")).referrers:
                await asyncio.sleep(_LOOK_SECONDS)
        seconds.append(time.perf_counter() - started)
        with streams.span("quiet"):
            await _quiet(streams, quiet_seconds)
    return streams


async def _quiet(streams: Streams, seconds: float) -> None:
    """At least so long, and until a token has come: a ratio to what nothing came in says nothing."""
    before = streams.num_messages
    await asyncio.sleep(seconds)
    while streams.num_messages == before and not streams.have_ended:
        await asyncio.sleep(_LOOK_SECONDS)
