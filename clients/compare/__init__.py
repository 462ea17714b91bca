"""`hotshoe bench compare`: one workload for hotshoe and its rivals, each in an environment and a process of its own.

plan.py          what is measured: cases of adapters × concurrency, and its prompts
materials.py     the base as a Hugging Face directory and as GGUF, and random adapters as PEFT lays them out
environments.py  a virtual environment for each rival, of exactly pinned packages
rivals.py        the table of rivals
runners/         one script a rival, run by the rival's own Python; protocol.py is all that they share with us
runner_process.py  our end of that protocol
comparison.py    rounds that take turns between rivals, the check of their tokens, and loading under way
report.py charts.py   medians and ratios; JSON, CSV and PNG
"""
