"""Signatures over an adapter's digest, and the policy that says which count. Knows nothing of stores or gRPC."""
