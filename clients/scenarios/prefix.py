"""Shared beginnings are computed once: system prompts, several answers to one prompt, choices that are scored."""

import time
from collections.abc import Sequence

from hotshoe.clients.scenarios.asker import Answer, Ask, count_errors
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import TENANT_KEY, Stage

SERVER_ARGUMENTS = ("--tenant-metadata", TENANT_KEY)
SYSTEM_TOKENS = 480
QUESTION_TOKENS = 16
NEW_TOKENS = 8
REQUESTS = 32
STREAMS = 8
BRANCHES = 8


async def run(stage: Stage) -> ScenarioReport:
    """The same traffic with one system prompt and with one for each request; then branches of one prompt."""
    asker, requests = stage.asker, stage.scaled(REQUESTS, at_least=STREAMS)
    system = asker.prompt(SYSTEM_TOKENS)
    shared = [_ask(stage, system) for _ in range(requests)]
    first = await asker.send(_ask(stage, system))
    distinct = [_ask(stage, asker.prompt(SYSTEM_TOKENS)) for _ in range(requests)]
    stage.tell("one system prompt for all, then one for each")
    together = await asker.send_all(shared, at_a_time=STREAMS)
    apart = await asker.send_all(distinct, at_a_time=STREAMS)
    stranger = await asker.send(_ask(stage, system, tenant="somebody else"))
    stage.tell("branches of one prompt")
    figures = {
        "shared_first_token": _median_first_token(together),
        "distinct_first_token": _median_first_token(apart),
        **await _branches(stage),
    }
    cached = sum(answer.parsed().cached_prompt_tokens for answer in together)
    hits = cached / (requests * (SYSTEM_TOKENS + QUESTION_TOKENS))
    return ScenarioReport(
        "prefix",
        {**stage.info, "system_tokens": SYSTEM_TOKENS, "requests": requests, "branches": BRANCHES},
        {**figures, "hit_ratio": hits},
        [
            Bar("prompt tokens found in the cache, of those shared", hits / _shared_part(), Sense.AT_LEAST, 0.95),
            Bar(
                "time to first token, shared system prompt ÷ one for each",
                figures["shared_first_token"] / figures["distinct_first_token"],
                Sense.AT_MOST,
                0.5,
            ),
            Bar("8 answers ÷ 1, same prompt", figures["eight_answers"] / figures["one_answer"], Sense.AT_MOST, 2.0),
            Bar("8 choices ÷ 1, same prompt", figures["eight_choices"] / figures["one_choice"], Sense.AT_MOST, 2.0),
            Bar("tokens found of another tenant", stranger.parsed().cached_prompt_tokens, Sense.AT_MOST, 0),
        ],
        count_errors([first, stranger, *together, *apart]),
    )


def _shared_part() -> float:
    return SYSTEM_TOKENS / (SYSTEM_TOKENS + QUESTION_TOKENS)


def _ask(stage: Stage, system: tuple[int, ...], *, tenant: str = "") -> Ask:
    prompt = (*system, *stage.asker.prompt(QUESTION_TOKENS))
    return stage.asker.make(prompt, new_tokens=NEW_TOKENS, tenant=tenant)


async def _branches(stage: Stage) -> dict[str, float]:
    """Seconds for one and for eight branches of a prompt that nobody sent before; the fastest of three tries."""
    client, asker = stage.client, stage.asker
    words = [" yes", " no", " rain", " bread", " money", " boats", " clouds", " weather"][:BRANCHES]
    seconds: dict[str, list[float]] = {"one_answer": [], "eight_answers": [], "one_choice": [], "eight_choices": []}
    for _ in range(stage.scaled(5, at_least=2)):
        for name, answers in (("one_answer", 1), ("eight_answers", BRANCHES)):
            started = time.perf_counter()
            await client.generate(
                asker.prompt(SYSTEM_TOKENS), n=answers, max_new_tokens=1, ignore_eos=True, temperature=1.0
            )
            seconds[name].append(time.perf_counter() - started)
        for name, choices in (("one_choice", words[:1]), ("eight_choices", words)):
            started = time.perf_counter()
            await client.score(asker.prompt(SYSTEM_TOKENS), choices)
            seconds[name].append(time.perf_counter() - started)
    return {name: min(times) for name, times in seconds.items()}


def _median_first_token(answers: Sequence[Answer]) -> float:
    times = sorted(answer.parsed().first_token_seconds or 0.0 for answer in answers)
    return times[len(times) // 2]
