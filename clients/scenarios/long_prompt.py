"""A 2,000-token prompt arrives while eight streams decode: it must not stop them."""

import asyncio

from hotshoe.clients.scenarios.gaps import background
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

SERVER_ARGUMENTS = ()
STREAMS = 8
PROMPT_TOKENS = 2000
QUIET_SECONDS = 2.0


async def run(stage: Stage) -> ScenarioReport:
    """Long prompts one after another, with quiet between them; both in one run, under the same streams."""
    asker, prompts = stage.asker, stage.scaled(5)
    alone = [await asker.send(asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=1)) for _ in range(2)]
    asks = [asker.make(asker.prompt(32), new_tokens=1800) for _ in range(STREAMS)]
    long = []
    async with background(asker, asks) as streams:
        for number in range(prompts):
            stage.tell(f"long prompt {number + 1} of {prompts}")
            with streams.span("quiet"):
                await asyncio.sleep(QUIET_SECONDS)
            ask = asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=1)
            with streams.span("busy"):
                long.append(await asker.send(ask))
    report = ScenarioReport(
        "long-prompt",
        {**stage.info, "streams": STREAMS, "prompt_tokens": PROMPT_TOKENS, "prompts": prompts},
        {**streams.figures("quiet"), **streams.figures("busy")},
        errors=streams.errors(),
    )
    report.figures["long_first_token"] = _mean([answer.parsed().first_token_seconds for answer in long])
    report.figures["long_first_token_alone"] = alone[-1].parsed().first_token_seconds or 0.0
    ratio = report.figures["busy_p99"] / report.figures["quiet_p99"]
    report.bars = [Bar("inter-token p99 of other streams under a long prompt ÷ quiet", ratio, Sense.AT_MOST, 3.0)]
    return report


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / max(1, len(known))
