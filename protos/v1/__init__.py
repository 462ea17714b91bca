"""Package hotshoe.v1 of the wire contract."""
