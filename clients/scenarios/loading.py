"""Adapters load while eight streams decode: the streams must not notice, nor the first token wait for long."""

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle

from hotshoe.clients.scenarios.gaps import background
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage
from hotshoe.clients.swaps import ask_swaps

SERVER_ARGUMENTS = ()
STREAMS = 8
COLD = 40
SPAN_SECONDS = 4.0
SPANS = 6
TRIES = 20


async def run(stage: Stage) -> ScenarioReport:
    """First the streams, with quiet spans between those in which adapters load from disk; then first tokens, alone."""
    names = await stage.publish(STREAMS + stage.scaled(COLD, at_least=4))
    warm, cold = names[:STREAMS], names[STREAMS:]
    size = (await stage.client.get_adapter(cold[0])).size_bytes
    for name in warm:
        await stage.client.load(name, pin=True)
    report = ScenarioReport("loading", {**stage.info, "streams": STREAMS, "adapter_bytes": size})
    await _measure_gaps(stage, report, warm, cold)
    await _measure_first_tokens(stage, report, cold)
    return report


async def _measure_gaps(stage: Stage, report: ScenarioReport, warm: Sequence[str], cold: Sequence[str]) -> None:
    asker, left = stage.asker, cycle(cold)
    asks = [asker.make(asker.prompt(32), new_tokens=1800, adapter=name) for name in warm]
    loads = 0
    async with background(asker, asks) as streams:
        for number in range(stage.scaled(SPANS)):
            stage.tell(f"spans {number + 1} of {stage.scaled(SPANS)}")
            with streams.span("quiet"):
                await asyncio.sleep(SPAN_SECONDS)
            with streams.span("loading"):
                ends = time.perf_counter() + SPAN_SECONDS
                while time.perf_counter() < ends:
                    name = next(left)
                    await stage.client.load(name)
                    await stage.client.unload(name)
                    loads += 1
    report.figures |= {**streams.figures("quiet"), **streams.figures("loading")}
    seconds = sum(end - start for start, end in streams.spans["loading"])
    report.figures["loads_per_second"] = loads / seconds
    report.errors |= streams.errors()
    ratio = report.figures["loading_p99"] / report.figures["quiet_p99"]
    report.bars.append(Bar("inter-token p99 of streams while adapters load ÷ quiet", ratio, Sense.AT_MOST, 1.10))


async def _measure_first_tokens(stage: Stage, report: ScenarioReport, cold: Sequence[str]) -> None:
    """Time to first token with the adapter on the device, on the host and on disk, nothing else running."""
    tries = stage.scaled(TRIES, at_least=2)
    found = await ask_swaps(stage.client, stage.asker, cold, tries=tries)
    medians = {place: found.medians.get(place, 0.0) for place in found.seconds}
    report.errors |= found.errors
    report.figures |= {f"first_token_{place}": value for place, value in medians.items()}
    report.bars += [
        Bar("added time to first token, on host", 1e3 * (medians["host"] - medians["device"]), Sense.AT_MOST, 5, "ms"),
        Bar("added time to first token, on disk", 1e3 * (medians["disk"] - medians["device"]), Sense.AT_MOST, 50, "ms"),
    ]
