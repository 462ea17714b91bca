"""How long the registry takes, and how much memory: `python -m hotshoe.registry.bench`."""
