"""The `hotshoe` command: one verb a file."""
