"""An adapter at rest: bytes, checked, canonical. Knows nothing of gRPC or of requests."""
