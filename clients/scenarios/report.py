"""What a scenario found: figures, and the bars that some of them must reach."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "hotshoe.scenario/1"


class Sense(StrEnum):
    """On which side of its limit a figure should be."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: what was measured, beside its limit."""

    promise: str
    measured: float
    sense: Sense
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.sense is Sense.AT_LEAST else self.measured <= self.limit


@dataclass(slots=True)
class ScenarioReport:
    """One run of one scenario. Times in seconds; `conditions` say what was run, `figures` what came out."""

    scenario: str
    conditions: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)  # failed requests by class

    def as_data(self) -> dict[str, Any]:
        """As plain values, each bar with whether it was met."""
        data = {"schema": SCHEMA, **asdict(self)}
        data["bars"] = [{**asdict(bar), "met": bar.met} for bar in self.bars]
        return data
