"""How much each tenant was served, so that the one served least is next: a virtual token counter."""

import math
from collections.abc import Collection, Mapping

INPUT_COST = 1
OUTPUT_COST = 2  # a drawn token takes a step of its own
FORGET_ABOVE = 1024  # tenants


class TenantShares:
    """Service in tokens (input + 2 · output) over the tenant's weight.

    Whoever has had nothing waiting starts level with the least served of those who have, when it comes back: being
    idle earns no credit. Counters only order those who wait, so that no row stays empty for the sake of fairness.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights`: shares of tenants; 1 for each that is not named. Raises ValueError unless they are positive."""
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"tenant_weights: {tenant!r} must have a weight above 0, not {weight}")
        self._served: dict[str, float] = {}

    def served(self, tenant: str) -> float:
        return self._served.get(tenant, 0.0)

    def charge(self, tenant: str, *, input_tokens: int, output_tokens: int) -> None:
        cost = INPUT_COST * input_tokens + OUTPUT_COST * output_tokens
        self._served[tenant] = self.served(tenant) + cost / self._weights.get(tenant, 1.0)

    def lift(self, tenant: str, others: Collection[str]) -> None:
        """Something of a tenant waits again, beside `others`, or after the last of them."""
        level = min((self.served(other) for other in others), default=0.0)
        self._served[tenant] = max(self.served(tenant), level)
        if len(self._served) > FORGET_ABOVE:  # who would be lifted anyway need not be known
            keep = {tenant, *others}
            self._served = {name: served for name, served in self._served.items() if name in keep or served > level}
