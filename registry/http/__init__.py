"""A registry to OCI clients: who may read it, what they are answered, and the server that does so."""
