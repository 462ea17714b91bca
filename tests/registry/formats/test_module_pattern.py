import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotshoe.registry.formats.module_pattern import ModulePattern, StepBudget

NAMES = [f"model.layers.{layer}.{part}" for layer in (0, 1, 11) for part in ("self_attn.q_proj", "mlp.down_proj")] + [
    "",
    "q_proj",
    "lm_head",
    "model_layers_1.x",
]
# The pattern that unsloth writes for a language model's linears.
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|k_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:q_proj|k_proj|down_proj)))"
)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "model.layers.1.self_attn.q_proj",
        "layers.1.x",
        "^model",
        "^model.layers.0.self_attn.q_proj",
        r".*\.(q|k|v)_proj",
        r"layers\.[0-9]\.mlp.*",
        r"layers\.\d+\.mlp\.down_proj$",
        r"[^.]*_proj",
        r"(model\.)?layers.+?q_proj",
        r".*\.1{1,2}\..*",
        r"\bq_proj\b",
        r"(a*)*b",
        UNSLOTH,
        r"^(?!.*lm_head).*(?:q|down)_proj$",
        r"^(model(?=\.).*\.(q_proj|down_proj))$",
        r"(?P<part>model)\.(?P<rest>.*(?!_proj)_proj)",
        r"(?!(?=.*\.1\.).*mlp).*_proj",
        "",
    ],
)
def test_a_pattern_matches_the_names_that_re_matches(pattern):
    ours = ModulePattern(pattern)
    for name in NAMES:
        assert ours.matches(name) == bool(re.fullmatch(pattern, name)), name
        assert ours.matches_tail(name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "(?=a)",
        "(?!b)",
        "(?!.*1)",
        r"\.",
        "[ab]",
        "[^a]",
        "[a-c]",
        r"\w",
        r"\W",
        r"\d",
        "1",
        "_",
        "^",
        "$",
        r"\b",
        "[.]",
        r"[\d_]",
    ]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.text("ab.1_", max_size=8))
def test_generated_patterns_agree_with_re(pattern, name):
    assert ModulePattern(pattern).matches(name) == bool(re.fullmatch(pattern, name))
    assert ModulePattern(pattern).matches_tail(name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


@settings(max_examples=400, deadline=None)
@given(st.text(r"ab.1_()[]{}^$*+?|\-,:=!<P>dDwWsSbB", max_size=12), st.text("ab.1_-", max_size=6))
def test_any_text_is_refused_or_means_what_it_means_to_re(pattern, name):
    try:
        matched = ModulePattern(pattern).matches(name)
    except ValueError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert matched == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "[",
        "[]",
        "a**",
        "a*+",
        "*a",
        "^*",
        "(?i)a",
        "(?=a)*",
        "(?<=a)",
        "(?P<x>a)(?P<x>a)",
        "(?P=x)",
        r"\1",
        "a{3,2}",
        "a{999}",
        "a{",
        "\\",
    ]
    + [r"\Z", r"\B", "(" * 40 + ")" * 40, "a" * 3_000, "[[a]]", "[b-a]", r"[\d-a]", r"[\.-a]", "{}", "a{}"]
    + ["(?=a)*", "(?<=a)", "(?P<x>a)(?P<x>a)", "(?P=x)"],
)
def test_what_is_not_supported_is_refused(pattern):
    with pytest.raises(ValueError):
        ModulePattern(pattern)


def test_a_pattern_that_takes_re_forever_ends_within_its_steps():
    budget = StepBudget(100_000)
    assert not ModulePattern(r"((\w+)+)+!", budget).matches("a" * 200)


def test_patterns_share_a_budget():
    budget = StepBudget(1_000)
    with pytest.raises(ValueError, match="too many steps"):
        for _ in range(1_000):
            ModulePattern("a*b*", budget).matches("aabb")


def test_a_pattern_that_needs_too_many_steps_is_refused():
    costly = ModulePattern("(" + "|".join(["(.?){200}"] * 90) + ")*")
    with pytest.raises(ValueError, match="too many steps"):
        for _ in range(100):
            costly.matches("a" * 200)
