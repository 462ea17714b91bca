"""A thousand published adapters in Zipf traffic must be served nearly as fast as eight."""

from collections.abc import Sequence
from statistics import median

from hotshoe.clients.scenarios.asker import Answer, count_errors, tokens_per_second
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

SERVER_ARGUMENTS = ("--host-bytes", "6GiB")  # enough for all of them
ADAPTERS = 1000
FEW = 8
STREAMS = 16
TOKENS = 64  # of each prompt, and of each answer
REQUESTS = 64  # of a round
ROUNDS = 3


async def run(stage: Stage) -> ScenarioReport:
    """Rounds of eight adapters in turn and of all, drawn by 1/k, take turns; the ratio is of neighbours.

    All lie on the host, some on the device; a first round from disk is told beside.
    """
    adapters, rounds = stage.scaled(ADAPTERS, at_least=2 * FEW), stage.scaled(ROUNDS)
    stage.tell(f"publishing {adapters} adapters")
    names = await stage.publish(adapters)
    # The rarest eight: they are the same bytes of the same shape, and leave the Zipf traffic's favourites alone.
    few = names[-FEW:]
    await _round(stage, few)
    stage.tell("the first round, from disk")
    cold = await _round(stage, _zipf(stage, names))
    stage.tell("bringing all to the host")
    for name in names:
        await stage.client.load(name, tier="host")
    ratios: list[float] = []
    rates: dict[str, list[float]] = {"few": [], "zipf": []}
    answers = list(cold)
    for number in range(rounds):
        stage.tell(f"round {number + 1} of {rounds}")
        few_answers = await _round(stage, few)
        zipf_answers = await _round(stage, _zipf(stage, names))
        rates["few"].append(tokens_per_second(few_answers))
        rates["zipf"].append(tokens_per_second(zipf_answers))
        ratios.append(rates["zipf"][-1] / rates["few"][-1])
        answers += [*few_answers, *zipf_answers]
    residents = await stage.client.list_resident()
    return ScenarioReport(
        "many-adapters",
        {**stage.info, "adapters": adapters, "streams": STREAMS, "requests": REQUESTS, "rounds": rounds},
        {
            "few_tokens_per_second": median(rates["few"]),
            "zipf_tokens_per_second": median(rates["zipf"]),
            "from_disk_tokens_per_second": tokens_per_second(cold),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
            "resident_adapters": float(len(residents)),
        },
        [Bar("throughput with Zipf traffic over all ÷ over 8 adapters", median(ratios), Sense.AT_LEAST, 0.90)],
        count_errors(answers),
    )


def _zipf(stage: Stage, names: Sequence[str]) -> list[str]:
    weights = [1 / rank for rank in range(1, len(names) + 1)]
    return stage.asker.random.choices(names, weights, k=stage.scaled(REQUESTS, at_least=STREAMS))


async def _round(stage: Stage, adapters: Sequence[str]) -> list[Answer]:
    """One round of requests, each of which takes the next adapter."""
    asker, requests = stage.asker, stage.scaled(REQUESTS, at_least=STREAMS)
    turns = [adapters[index % len(adapters)] for index in range(requests)]
    asks = [asker.make(asker.prompt(TOKENS), new_tokens=TOKENS, adapter=adapter) for adapter in turns]
    return await asker.send_all(asks, at_a_time=STREAMS)
