"""Regular expressions over module names, as PEFT's configs hold them, matched in bounded time.

They come from strangers, and `re` can take years over forty characters of them. This matcher keeps the set of places
that a match may have reached, so nothing is tried twice. What it accepts means what it means to `re`; syntax that it
lacks (looking back, back-references, flags, possessive repeats) is refused.
"""

import re
import string
from collections.abc import Callable, Set

MAX_PATTERN_LENGTH = 2_048
MAX_GROUP_DEPTH = 16
MAX_REPEAT = 256
MAX_STEPS = 200_000  # some 40 ms, and twice what unsloth's patterns take over the 560 linears of a 70B model

_Places = frozenset[int]  # how many characters of the name a match may have consumed
_Node = Callable[[str, Set[int]], _Places]  # from the places before it to the places after it
_Test = Callable[[str], bool]  # of one character

_CLASSES: dict[str, _Test] = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}
_PLAIN = re.compile(r"[A-Za-z0-9_]+(?![A-Za-z0-9_*+?{])")  # none of it repeated
_GROUP = re.compile(r"\((?:\?(?::|=|!|P<(?P<name>[A-Za-z_]\w*)>)|(?!\?))", re.ASCII)
_LITERAL = frozenset(string.ascii_letters + string.digits + "_-.")


class StepBudget:
    """How many more steps may be taken by the patterns that share it."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises ValueError if there are not so many left."""
        self.left -= steps
        if self.left < 0:
            raise ValueError("takes too many steps to match")


class ModulePattern:
    """One pattern; several of one config share a budget.

    Raises:
        ValueError: it is not a regular expression, or uses what is not supported here, or, also when matching, takes
            more steps than are left.
    """

    def __init__(self, text: str, budget: StepBudget | None = None) -> None:
        if len(text) > MAX_PATTERN_LENGTH:
            raise ValueError(f"expected at most {MAX_PATTERN_LENGTH} characters")
        self._text = text
        self._node: _Node | None = None  # literal but for dots, which stand for any character
        if not _LITERAL.issuperset(text):
            budget = budget or StepBudget()
            budget.spend(len(text))
            self._node = _Parser(text, budget).parse()

    def matches(self, name: str) -> bool:
        """Whether it matches the whole name: `re.fullmatch(pattern, name)`."""
        if self._node is None:
            return len(name) == len(self._text) and self._is_tail_of(name)
        return len(name) in self._node(name, frozenset((0,)))

    def matches_tail(self, name: str) -> bool:
        """Whether it matches the name from its start or from after a dot: `re.match(rf"(.*\\.)?({pattern})$", name)`.

        This is how PEFT holds the keys of rank_pattern and alpha_pattern against names.
        """
        if self._node is None:
            start = len(name) - len(self._text)
            return (start == 0 or (start > 0 and name[start - 1] == ".")) and self._is_tail_of(name)
        starts = (0, *(at + 1 for at, character in enumerate(name) if character == "."))
        return len(name) in self._node(name, frozenset(starts))

    def _is_tail_of(self, name: str) -> bool:
        tail = name[len(name) - len(self._text) :]
        return tail == self._text or (
            "." in self._text and all(ours in (".", theirs) for ours, theirs in zip(self._text, tail, strict=True))
        )


class _Parser:
    """Recursive descent: alternatives of sequences of repeated atoms, each turned into a function of places."""

    def __init__(self, text: str, budget: StepBudget) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()  # of groups
        self._budget = budget

    def parse(self) -> _Node:
        node = self._alternatives()
        if self._at < len(self._text):
            raise ValueError(f"unbalanced ')' at {self._at}")
        return node

    def _alternatives(self) -> _Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _any_of(options)

    def _sequence(self) -> _Node:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            start = self._at
            if plain := _PLAIN.match(self._text, start):
                self._at = plain.end()
                parts.append(self._run_of(plain[0]))
                continue
            atom = self._atom()
            is_anchor = self._text[start : self._at] in ("^", "$", "\\b")
            parts.append(self._repeated(atom, is_anchor or self._text.startswith(("(?=", "(?!"), start)))
        return _one_after_another(parts)

    def _repeated(self, node: _Node, is_anchor: bool) -> _Node:
        counts = re.compile(r"[*+?]|\{(\d{1,4})?(,)?(\d{1,4})?\}").match(self._text, self._at)
        if counts is None:
            if self._text[self._at : self._at + 1] == "{":
                raise ValueError(f"unsupported '{{' at {self._at}")
            return node
        if is_anchor:
            raise ValueError(f"nothing to repeat at {self._at}")
        self._at = counts.end()
        if self._text[self._at : self._at + 1] in ("*", "+", "{"):
            raise ValueError(f"unsupported repeat at {self._at}")
        self._take("?")  # lazy: the same names match
        if self._text[self._at : self._at + 1] in ("*", "+", "?", "{"):
            raise ValueError(f"unsupported repeat at {self._at}")
        low, high = _bounds(counts)
        if low > MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT):
            raise ValueError(f"expected a repeat from low to high, up to {MAX_REPEAT}, found {counts[0]}")
        return _repeat(node, low, high)

    def _atom(self) -> _Node:
        character = self._text[self._at]
        self._at += 1
        match character:
            case "(":
                return self._group()
            case "[":
                return self._one(self._set())
            case ".":
                return self._one(lambda _: True)
            case "\\":
                return self._escape()
            case "^":
                return lambda name, places: frozenset(place for place in places if place == 0)
            case "$":
                return lambda name, places: frozenset(place for place in places if place == len(name))
            case "*" | "+" | "?" | "{":
                raise ValueError(f"nothing to repeat at {self._at - 1}")
        return self._one(lambda other: other == character)

    def _group(self) -> _Node:
        start = self._at - 1
        opening = _GROUP.match(self._text, start)
        if opening is None or (opening["name"] or None) in self._names:
            raise ValueError(f"unsupported group at {start}: only ( ), (?: ), (?P<name> ), (?= ) and (?! ) are")
        if opening["name"]:
            self._names.add(opening["name"])
        self._at = opening.end()
        self._depth += 1
        if self._depth > MAX_GROUP_DEPTH:
            raise ValueError(f"expected groups at most {MAX_GROUP_DEPTH} deep")
        node = self._alternatives()
        self._depth -= 1
        if not self._take(")"):
            raise ValueError("expected ')' at the end")
        if opening[0] in ("(?=", "(?!"):
            return _ahead(node, is_there=opening[0] == "(?=")
        return node

    def _escape(self) -> _Node:
        if self._take("b"):
            return lambda name, places: frozenset(place for place in places if _is_boundary(name, place))
        return self._one(self._escaped())

    def _escaped(self) -> _Test:
        if self._at == len(self._text):
            raise ValueError("expected a character after the last backslash")
        character = self._text[self._at]
        self._at += 1
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return lambda other: not _CLASSES[character.lower()](other)
        if character.isalnum():
            raise ValueError(f"unsupported \\{character} at {self._at - 2}")
        return lambda other: other == character

    def _set(self) -> _Test:
        inverted = self._take("^")
        tests: list[_Test] = []
        while not self._take("]"):
            rest = self._text[self._at : self._at + 2]
            if not rest or rest[0] == "[" or rest in ("--", "&&", "||", "~~") or (rest[0] == "]" and not tests):
                raise ValueError(f"unsupported set of characters at {self._at}")
            tests.append(self._member())
        if not tests:
            raise ValueError(f"expected characters between [ and ] at {self._at}")
        return lambda other: any(test(other) for test in tests) is not inverted

    def _member(self) -> _Test:
        first = self._text[self._at]
        self._at += 1
        test = self._escaped() if first == "\\" else lambda other: other == first
        following = self._text[self._at : self._at + 2]
        if len(following) < 2 or following[0] != "-" or following[1] == "]":
            return test
        last = following[1]
        if first == "\\" or last in "\\-[" or first > last:
            raise ValueError(f"unsupported range at {self._at - 1}")
        self._at += 2
        return lambda other: first <= other <= last

    def _one(self, test: _Test) -> _Node:
        """One character for which `test` holds."""

        def node(name: str, places: Set[int]) -> _Places:
            self._budget.spend(len(places) + 1)
            return frozenset(place + 1 for place in places if place < len(name) and test(name[place]))

        return node

    def _run_of(self, text: str) -> _Node:
        """Exactly that text; a character at a time would do, only slower."""

        def node(name: str, places: Set[int]) -> _Places:
            self._budget.spend(len(places) + 1)
            return frozenset(place + len(text) for place in places if name.startswith(text, place))

        return node

    def _take(self, character: str) -> bool:
        if self._text[self._at : self._at + 1] != character:
            return False
        self._at += 1
        return True


def _any_of(options: list[_Node]) -> _Node:
    return lambda name, places: frozenset().union(*(option(name, places) for option in options))


def _one_after_another(parts: list[_Node]) -> _Node:
    def node(name: str, places: Set[int]) -> _Places:
        for part in parts:
            if not places:
                break
            places = part(name, places)
        return frozenset(places)

    return node


def _ahead(node: _Node, *, is_there: bool) -> _Node:
    """The places from which it matches, or from which it does not."""
    return lambda name, places: frozenset(place for place in places if bool(node(name, {place})) is is_there)


def _repeat(node: _Node, low: int, high: int | None) -> _Node:
    def repeated(name: str, places: Set[int]) -> _Places:
        for _ in range(low):
            places = node(name, places)
        reached = frontier = frozenset(places)
        times = low
        while frontier and (high is None or times < high):
            frontier = node(name, frontier) - reached
            reached |= frontier
            times += 1
        return reached

    return repeated


def _bounds(counts: re.Match[str]) -> tuple[int, int | None]:
    """The lowest and highest number of times, None for any, that a quantifier asks for."""
    if counts[0] in ("*", "+", "?"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[counts[0]]
    low, comma, high = counts.groups()
    if comma is None:
        if low is None:
            raise ValueError("unsupported '{}'")
        return int(low), int(low)
    return int(low or 0), None if high is None else int(high)


def _is_boundary(name: str, place: int) -> bool:
    is_word = _CLASSES["w"]
    before = place > 0 and is_word(name[place - 1])
    after = place < len(name) and is_word(name[place])
    return before is not after
