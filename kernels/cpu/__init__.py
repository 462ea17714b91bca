"""The operations on a CPU: one a file."""
