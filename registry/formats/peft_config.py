"""The fields of adapter_config.json, each read once: understood by its kind, known to change nothing, or refused.

A kind takes the fields that its formula needs, checks those that must stand at their neutral value, and closes the
config; a field that nobody asked for is refused by name, since PEFT may mean something by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.strict_json import shown

MAX_ITEMS = 4_096
MAX_TEXT = 2_048

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Rule(Generic[T_co]):
    """What a field may hold, and why nothing else. `accepts` must be true of values of that type only."""

    expected: str
    accepts: Callable[[object], bool]
    why: str = ""
    null: T_co | None = None  # what PEFT takes null for, where it is not itself a value

    def admits(self, value: object) -> bool:
        """Whether the field may stand at that, null for what it stands for included."""
        return self.accepts(value) or (value is None and self.null is not None)

    def because(self, why: str) -> "Rule[T_co]":
        """The same, with a reason for whom it refuses."""
        return replace(self, why=why)


def one_of(*values: T) -> Rule[T]:
    """Exactly one of these; true is not 1."""
    names = " or ".join("null" if value is None else str(value).lower() for value in values)
    return Rule(names, lambda value: any(type(value) is type(choice) and value == choice for choice in values))


def either(first: Rule[T], second: Rule[Other]) -> Rule[T | Other]:
    """What one of the two accepts."""
    null = second.null if first.null is None else first.null
    return Rule(
        f"{first.expected} or {second.expected}", lambda value: first.accepts(value) or second.accepts(value), null=null
    )


def table_of(rule: Rule[T]) -> Rule[Mapping[str, T]]:
    """An object whose values follow the rule."""
    return Rule(
        f"{rule.expected} by name",
        lambda value: isinstance(value, dict) and len(value) <= MAX_ITEMS and all(map(rule.accepts, value.values())),
    )


def object_of(rules: Mapping[str, Rule[object]]) -> Rule[Mapping[str, object]]:
    """An object of fields of these names, any of which may be missing."""
    return Rule(
        f"an object of {', '.join(f'{name} ({rule.expected})' for name, rule in rules.items())}",
        lambda value: (
            isinstance(value, dict) and all(name in rules and rules[name].admits(value[name]) for name in value)
        ),
    )


def list_of(rule: Rule[T]) -> Rule[list[T]]:
    """A list whose items follow the rule."""
    return Rule(
        f"a list of {rule.expected}",
        lambda value: isinstance(value, list) and len(value) <= MAX_ITEMS and all(map(rule.accepts, value)),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 <= value <= 1e6


NULL: Rule[None] = one_of(None)
FLAG: Rule[bool] = Rule("true or false", lambda value: isinstance(value, bool), null=False)
OFF: Rule[bool] = Rule("false", lambda value: value is False, null=False)
COUNT: Rule[int] = Rule("a positive integer", lambda value: type(value) is int and 0 < value < 1 << 31)
INTEGER: Rule[int] = Rule("an integer of at least 0", lambda value: type(value) is int and 0 <= value < 1 << 31)
NUMBER: Rule[float] = Rule("a number up to a million", _is_number)
SHARE: Rule[float] = Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)  # type: ignore[operator]
TEXT: Rule[str] = Rule(
    f"at most {MAX_TEXT} printable characters",
    lambda value: isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable(),
)
OBJECT: Rule[Mapping[str, object]] = Rule("an object", lambda value: isinstance(value, dict))
NOTHING: Rule[object] = Rule("null or empty", lambda value: value is None or value in ([], {}))  # a feature not used

# What every kind's config has, and nothing that is computed depends on.
COMMON: Mapping[str, Rule[object]] = {
    "peft_type": TEXT,  # it led to the kind
    # PEFT passes what it is told on to the model for these; others give it a head, or read its states.
    "task_type": one_of(None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"),
    "inference_mode": FLAG,
    "revision": either(TEXT, NULL),
    "peft_version": either(TEXT, NULL),
    "runtime_config": either(OBJECT, NULL),  # PEFT ignores it in files
    "modules_to_save": NOTHING,
    "auto_mapping": Rule("null", lambda value: value is None or _names_a_transformers_class(value)),
}


def _names_a_transformers_class(value: object) -> bool:
    """What PEFT writes if it was told no task_type. It is never looked up, only told apart from anything else.

    Unsloth adds that it has mended the two names.
    """
    names = {"base_model_class", "parent_library"}
    if not isinstance(value, dict) or not names <= value.keys() <= names | {"unsloth_fixed"}:
        return False
    library, name = value["parent_library"], value["base_model_class"]
    return FLAG.admits(value.get("unsloth_fixed")) and (
        isinstance(name, str)
        and name.isidentifier()
        and isinstance(library, str)
        and library.startswith("transformers.")
    )


class Config:
    """The fields of one adapter_config.json that have not been taken yet."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._given = fields
        self._fields = dict(fields)

    def take(self, name: str, rule: Rule[T], *, default: T) -> T:
        """The field's value, or the default that PEFT gives it; raises InvalidAdapter naming the field otherwise."""
        return self.require(name, rule) if name in self._fields else default

    def require(self, name: str, rule: Rule[T]) -> T:
        """As `take`, for a field that has no default."""
        if name not in self._fields:
            raise InvalidAdapter(name, f"missing, expected {rule.expected}")
        value = self._fields.pop(name)
        if not rule.admits(value):
            why = f": {rule.why}" if rule.why else ""
            raise InvalidAdapter(name, f"expected {rule.expected}, found {shown(value)}{why}")
        if value is None and rule.null is not None:
            return rule.null
        return value  # type: ignore[return-value]  # rules accept values of their type only

    def peek(self, name: str) -> object:
        """The field as it stands in the file, unchecked, be it taken or not; None if it is not there."""
        return self._given.get(name)

    def close(
        self, kind: str, rest: Mapping[str, Rule[object]], *, common: Mapping[str, Rule[object]] = COMMON
    ) -> None:
        """Checks the remaining fields by `rest` and `common`; raises InvalidAdapter for one that neither names."""
        rules = {**common, **rest}
        for name, value in self._fields.items():
            rule = rules.get(name)
            if rule is None:
                raise InvalidAdapter(
                    shown(name), f"not a field of {kind} that is known here, so it might change the result"
                )
            if not rule.admits(value):
                why = rule.why or "not served otherwise"
                raise InvalidAdapter(name, f"expected {rule.expected}, found {shown(value)}: {why}")
        self._fields.clear()


def require_saved(config: Config, field: str) -> None:
    """Raises InvalidAdapter unless the file has what torch's generator made: it promises no other machine the same."""
    if not config.take(field, FLAG, default=True):
        problem = "torch's generator would make again what is not in the file, and may give others on another machine"
        raise InvalidAdapter(field, f"expected true: {problem}")
