"""The gRPC services: message to core type and back, nothing else."""
