"""All scenarios by the name that `hotshoe bench scenario` takes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hotshoe.clients.scenarios import (
    first_token,
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
from hotshoe.clients.scenarios.random_adapters import DecoderShape
from hotshoe.clients.scenarios.report import ScenarioReport
from hotshoe.clients.scenarios.stage import Stage, StageSettings, open_stage


@dataclass(frozen=True, slots=True)
class Scenario:
    """What its server is started with, and what it does there.

    Attributes:
        shape: of a base of random weights that it has, unless another is asked for; else the default base.
    """

    server_arguments: Sequence[str]
    run: Callable[[Stage], Awaitable[ScenarioReport]]
    shape: DecoderShape | None = None


SCENARIOS: Mapping[str, Scenario] = {
    "long-prompt": Scenario(long_prompt.SERVER_ARGUMENTS, long_prompt.run),
    "many-adapters": Scenario(many_adapters.SERVER_ARGUMENTS, many_adapters.run),
    "slots": Scenario(slots.SERVER_ARGUMENTS, slots.run),
    "tenants": Scenario(tenants.SERVER_ARGUMENTS, tenants.run),
    "loading": Scenario(loading.SERVER_ARGUMENTS, loading.run),
    "memory": Scenario(memory.SERVER_ARGUMENTS, memory.run),
    "prefix": Scenario(prefix.SERVER_ARGUMENTS, prefix.run),
    "publishing": Scenario(publishing.SERVER_ARGUMENTS, publishing.run),
    "first-token": Scenario(first_token.SERVER_ARGUMENTS, first_token.run, first_token.SHAPE),
    "transfer": Scenario(transfer.SERVER_ARGUMENTS, transfer.run),
}


async def run_scenario(name: str, settings: StageSettings) -> ScenarioReport:
    """Runs a scenario on a server of its own. Raises ServerDidNotStart, and what calls raise."""
    scenario = SCENARIOS[name]
    shape = None if "--base" in settings.server_arguments else scenario.shape
    if shape is not None:
        settings = replace(settings, shape=shape)
    async with open_stage(settings, scenario.server_arguments, random_base=shape is not None) as stage:
        return await scenario.run(stage)
