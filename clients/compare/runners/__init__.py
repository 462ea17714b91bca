"""Scripts that a rival's own Python runs: `python -m runners.<name>`, with the folder above on its path.

There is no hotshoe in those environments: imports of ours are relative, and of `protocol` alone.
"""
