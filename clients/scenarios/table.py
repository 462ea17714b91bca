"""All scenarios by the name that `hotshoe bench scenario` takes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from hotshoe.clients.scenarios import (
    loading,
    long_prompt,
    many_adapters,
    memory,
    prefix,
    publishing,
    slots,
    tenants,
    transfer,
)
from hotshoe.clients.scenarios.report import ScenarioReport
from hotshoe.clients.scenarios.stage import Stage, StageSettings, open_stage


@dataclass(frozen=True, slots=True)
class Scenario:
    """What its server is started with, and what it does there."""

    server_arguments: Sequence[str]
    run: Callable[[Stage], Awaitable[ScenarioReport]]


SCENARIOS: Mapping[str, Scenario] = {
    "long-prompt": Scenario(long_prompt.SERVER_ARGUMENTS, long_prompt.run),
    "many-adapters": Scenario(many_adapters.SERVER_ARGUMENTS, many_adapters.run),
    "slots": Scenario(slots.SERVER_ARGUMENTS, slots.run),
    "tenants": Scenario(tenants.SERVER_ARGUMENTS, tenants.run),
    "loading": Scenario(loading.SERVER_ARGUMENTS, loading.run),
    "memory": Scenario(memory.SERVER_ARGUMENTS, memory.run),
    "prefix": Scenario(prefix.SERVER_ARGUMENTS, prefix.run),
    "publishing": Scenario(publishing.SERVER_ARGUMENTS, publishing.run),
    "transfer": Scenario(transfer.SERVER_ARGUMENTS, transfer.run),
}


async def run_scenario(name: str, settings: StageSettings) -> ScenarioReport:
    """Runs a scenario on a server of its own. Raises ServerDidNotStart, and what calls raise."""
    scenario = SCENARIOS[name]
    async with open_stage(settings, scenario.server_arguments) as stage:
        return await scenario.run(stage)
