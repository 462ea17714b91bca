"""OpenAI's HTTP API over the same service that gRPC reaches; an adapter is a model there."""
