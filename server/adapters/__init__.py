"""Adapters on this server: from the registry to the host to the device, and into a step's batch."""
