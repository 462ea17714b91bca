"""Which decoder linears a PEFT config selects: target_modules, exclude_modules, layers_to_transform, layers_pattern.

An adapter's tensors must be of exactly those: of a file with more, PEFT leaves the rest out; of one with fewer, it
leaves random values in.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.module_pattern import ModulePattern, StepBudget
from hotshoe.registry.formats.peft_config import INTEGER, NULL, TEXT, Config, Rule, either, list_of

Names = Sequence[str] | str  # a list of names' ends, or a regular expression of whole names
NAMES: Rule[Names] = Rule("names of modules, as a list or a regular expression", either(list_of(TEXT), TEXT).accepts)

# Modules that PEFT can adapt and that are no decoder linears.
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# By model_type, what PEFT adapts if target_modules is null; other families it asks to be told.
QUERIES_AND_VALUES: Mapping[str, Sequence[str]] = dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), ("q_proj", "v_proj")
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_DEFAULT_LAYER = re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")


def take_targets(
    config: Config, base: BaseShape, *, by_layer: bool, defaults: Mapping[str, Sequence[str]] = QUERIES_AND_VALUES
) -> list[LinearId]:
    """Takes those fields (the last two only if `by_layer`) and gives the linears that they select, in base order.

    Args:
        defaults: what null in target_modules stands for, by model_type.

    Raises:
        InvalidAdapter: a field is malformed, or selects modules that are no decoder linears.
        IncompatibleAdapter: they select nothing of this base.
    """
    selected, others = take_modules(config, base, by_layer=by_layer, defaults=defaults)
    if others:
        raise InvalidAdapter("target_modules", f"selects {others[0]}; only decoder linears can be adapted")
    require_any(selected, base)
    return selected


def wants_tied(config: Config, base: BaseShape) -> bool:
    """Whether PEFT keeps the embedding and the head one, where it adapts or keeps either: `ensure_weight_tying`."""
    return base.tied_head and config.peek("ensure_weight_tying") is True


def is_token_module(name: object) -> bool:
    """Whether a name in a config is, to PEFT, that of the embedding or of the head."""
    return isinstance(name, str) and name.rpartition(".")[2] in ("embed_tokens", "lm_head")


def require_any(selected: Sequence[object], base: BaseShape) -> None:
    """Raises IncompatibleAdapter if nothing was selected."""
    if not selected:
        raise IncompatibleAdapter("target_modules", f"selects no linear of {base.name}; expected of {targets_of(base)}")


def take_modules(
    config: Config, base: BaseShape, *, by_layer: bool, defaults: Mapping[str, Sequence[str]] = QUERIES_AND_VALUES
) -> tuple[list[LinearId], list[str]]:
    """As `take_targets`, and those of `EMBEDDING` and `HEAD` that are selected too; it may be nothing."""
    targets = take_names(config, "target_modules", base, defaults)
    is_excluded = _take_excluded(config)
    in_layers = _take_layers(config, targets) if by_layer else _any_layer
    if isinstance(targets, str) and targets.lower() == "all-linear":
        is_target: Callable[[str], bool] = _any_name
        others: list[str] = []  # PEFT leaves the output head out, and the embedding is no linear
    else:
        is_target = _target_test(targets, in_layers)
        others = [module for module in (HEAD, EMBEDDING) if is_target(module) and not is_excluded(module)]
    selected = [
        linear for linear, shape in base.linears.items() if not is_excluded(shape.module) and is_target(shape.module)
    ]
    return selected, others


def take_names(config: Config, field: str, base: BaseShape, defaults: Mapping[str, Sequence[str]]) -> Names:
    """Takes a field of modules' names, or gives what null in it stands for, by model_type."""
    names = config.take(field, either(NAMES, NULL), default=None)
    if names is not None:
        return names
    if base.model_type not in defaults:
        raise InvalidAdapter(field, f"expected {NAMES.expected}: PEFT has no default for {base.model_type}")
    return defaults[base.model_type]


def _take_excluded(config: Config) -> Callable[[str], bool]:
    """Takes exclude_modules; excluded, too, is what modules_to_save keeps, and whatever lies within it."""
    excluded = config.take("exclude_modules", either(NAMES, NULL), default=None)
    is_excluded = name_test("exclude_modules", excluded) if excluded else _no_name
    saved = config.peek("modules_to_save")
    if not isinstance(saved, list):  # its own rule refuses it, or it is null
        return is_excluded
    budget = StepBudget()
    patterns = [compile_pattern("modules_to_save", str(name), budget) for name in saved]

    def test(module: str) -> bool:
        ends = [at for at, character in enumerate(module) if character == "."]
        wholes = [module[:end] for end in (*ends, len(module))]
        try:
            is_saved = any(pattern.matches_tail(whole) for pattern in patterns for whole in wholes)
        except ValueError as error:
            raise InvalidAdapter("modules_to_save", str(error)) from None
        return is_saved or is_excluded(module)

    return test


def take_parameters(config: Config, base: BaseShape) -> list[LinearId]:
    """Takes target_parameters, ends of parameters' names, and gives the linears whose weights they select.

    Raises:
        InvalidAdapter: they select other parameters than decoder linears' weights, too.
    """
    names = config.take("target_parameters", either(list_of(TEXT), NULL), default=None)
    if not names:
        return []
    is_target = name_test("target_parameters", names)
    biases = [f"{shape.module}.bias" for shape in base.linears.values() if shape.has_bias]
    weights = [f"{module}.weight" for module in (EMBEDDING, HEAD, *(norm.module for norm in base.norms.values()))]
    for parameter in (*biases, *weights):
        if is_target(parameter):
            raise InvalidAdapter("target_parameters", f"selects {parameter}; only decoder linears' weights can be")
    selected = [linear for linear, shape in base.linears.items() if is_target(f"{shape.module}.weight")]
    if not selected:
        raise IncompatibleAdapter(
            "target_parameters",
            f"selects no weight of {base.name}; expected of {targets_of(base)}, such as q_proj.weight",
        )
    return selected


def targets_of(base: BaseShape) -> str:
    """The names of a base's decoder linears, for messages."""
    return ", ".join(dict.fromkeys(linear.target for linear in base.linears))


def name_test(field: str, names: Names) -> Callable[[str], bool]:
    """Whether a module's name is of the list, or ends in a dot and one of it; or matches the regular expression."""
    if isinstance(names, str):
        return pattern_test(field, names)
    whole, ends = frozenset(names), tuple(f".{name}" for name in names)
    return lambda module: module in whole or module.endswith(ends)


def pattern_test(field: str, text: str) -> Callable[[str], bool]:
    """Whether a regular expression matches a whole name; InvalidAdapter, naming the field, if it is none."""
    pattern = compile_pattern(field, text)

    def test(module: str) -> bool:
        try:
            return pattern.matches(module)
        except ValueError as error:
            raise InvalidAdapter(field, str(error)) from None

    return test


def compile_pattern(field: str, text: str, budget: StepBudget | None = None) -> ModulePattern:
    """The regular expression that stands in a field."""
    try:
        return ModulePattern(text, budget)
    except ValueError as error:
        raise InvalidAdapter(field, f"expected a regular expression of a module's name: {error}") from None


def _target_test(targets: Names, in_layers: Callable[[str], bool]) -> Callable[[str], bool]:
    if isinstance(targets, str):
        return pattern_test("target_modules", targets)
    whole, ends = frozenset(targets), tuple(f".{name}" for name in targets)
    # A name that is listed in full is meant, whatever its layer.
    return lambda module: module in whole or (module.endswith(ends) and in_layers(module))


def _take_layers(config: Config, targets: Names) -> Callable[[str], bool]:
    chosen = config.take("layers_to_transform", either(either(INTEGER, list_of(INTEGER)), NULL), default=None)
    containers = config.take("layers_pattern", either(NAMES, NULL), default=None)
    if isinstance(targets, str) and (chosen is not None or containers is not None):
        field = "layers_pattern" if chosen is None else "layers_to_transform"
        raise InvalidAdapter(field, "expected null where target_modules is text and not a list")
    patterns = [re.compile(rf"(?:^|.*?\.){name}\.(?P<layer>\d+)\.") for name in _containers(containers)]
    layers = frozenset((chosen,) if isinstance(chosen, int) else chosen or ())
    if not layers:
        if containers:
            raise InvalidAdapter("layers_pattern", "expected null where layers_to_transform is null")
        return _any_layer

    def in_layers(module: str) -> bool:
        found = next(filter(None, (pattern.match(module) for pattern in patterns or (_DEFAULT_LAYER,))), None)
        return found is not None and int(found["layer"]) in layers

    return in_layers


def _containers(names: Names | None) -> list[str]:
    names = [names] if isinstance(names, str) and names else list(names or ())
    for name in names:
        if not _DOTTED.fullmatch(name):
            raise InvalidAdapter("layers_pattern", "expected the name of the list of layers, such as layers")
    return names


def _any_layer(_: str) -> bool:
    return True


def _any_name(_: str) -> bool:
    return True


def _no_name(_: str) -> bool:
    return False
