"""Two hundred adapters over eight slots: everybody is served, and nearly as fast as in the best order."""

from collections.abc import Sequence

from hotshoe.clients.scenarios.asker import Answer, count_errors, tokens_per_second
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

SERVER_ARGUMENTS = ("--adapter-slots", "8", "--max-waiting-requests", "4096", "--max-running-requests", "16")
ADAPTERS = 200
REQUESTS = 600
PROMPT_TOKENS = 16
NEW_TOKENS = 16


async def run(stage: Stage) -> ScenarioReport:
    """All requests are sent at once, in the order of each case; the best order is sorted by adapter."""
    adapters = stage.scaled(ADAPTERS, at_least=16)
    requests = stage.scaled(REQUESTS, at_least=2 * adapters)
    names = await stage.publish(adapters)
    for name in names:
        await stage.client.load(name, tier="host")
    in_turn = [names[index % adapters] for index in range(requests)]
    drawn = stage.asker.random.choices(names, [1 / rank for rank in range(1, adapters + 1)], k=requests - adapters)
    zipf = [*names, *drawn]  # each at least once
    stage.asker.random.shuffle(zipf)
    await _serve(stage, names[:16])
    report = ScenarioReport("slots", {**stage.info, "adapters": adapters, "requests": requests})
    for case, order in (("round_robin", in_turn), ("zipf", zipf)):
        best, own = await _serve(stage, sorted(order)), await _serve(stage, order)
        best_rate, rate = tokens_per_second(best), tokens_per_second(own)
        stage.tell(f"{case}: {rate:.1f} tokens/s, {best_rate:.1f} in the best order")
        served = {name for name, answer in zip(order, own, strict=True) if answer.parsed().token_times}
        report.figures[f"{case}_tokens_per_second"] = rate
        report.figures[f"{case}_best_tokens_per_second"] = best_rate
        report.figures[f"{case}_longest_wait"] = max(a.parsed().first_token_seconds or 0.0 for a in own)
        what = case.replace("_", " ")
        report.bars += [
            Bar(f"throughput, {what} ÷ best order", rate / best_rate, Sense.AT_LEAST, 0.90),
            Bar(f"adapters served, {what}", len(served), Sense.AT_LEAST, adapters),
        ]
        for name, count in count_errors([*best, *own]).items():
            report.errors[name] = report.errors.get(name, 0) + count
    return report


async def _serve(stage: Stage, order: Sequence[str]) -> list[Answer]:
    """Answers in the order of the requests."""
    asker = stage.asker
    asks = [asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=NEW_TOKENS, adapter=name) for name in order]
    answers = await asker.send_all(asks, at_a_time=len(asks))
    places = {id(ask): place for place, ask in enumerate(asks)}
    return sorted(answers, key=lambda answer: places[id(answer.ask)])
