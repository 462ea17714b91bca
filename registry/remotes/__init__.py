"""Other people's registries, and copies between them and ours. Everything that comes from one is verified."""
