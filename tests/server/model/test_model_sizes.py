"""What a config claims is held against the files before anything of that size is made, and refused by its field."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_directories import write_tiny_model

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.loader import load_base
from hotshoe.server.model.model_sizes import read_spec

HUGE = (10**9, 2**31, 2**40, 2**60, 10**30)
STRANGE = (True, 0, -1, 2.5, float("nan"), 1e308, 5e-324, "64", [], [[]], {"a": 1}, "\x1b[2J")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
OTHERS = (
    "architectures",
    "attention_bias",
    "auto_map",
    "hidden_act",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)
ROPES = (
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0, "high_freq_factor": 4.0},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "linear", "factor": 5e-324},
    {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 0},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 1e308},
    {"rope_type": "yarn", "factor": 8.0, "mscale": "x", "mscale_all_dim": 1.0},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 5e-324},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 5e-324},
    {"rope_type": ["yarn"]},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3, which reads the most fields; the others' are a part of them."""
    directory = tmp_path_factory.mktemp("qwen3") / "model"
    write_tiny_model(directory, "qwen3")
    good = json.loads((directory / "config.json").read_text())
    good.pop("layer_types")  # else it is the first that knows of a wrong number of layers
    (directory / "good.json").write_text(json.dumps(good))
    return directory


def with_config(model: Path, **changes: Any) -> DirectoryCheckpoint:
    good = json.loads((model / "good.json").read_text())
    (model / "config.json").write_text(json.dumps({**good, **changes}))
    return DirectoryCheckpoint(model)


def refusal(model: Path, **changes: Any) -> str:
    with pytest.raises(UnsupportedModel) as refused:
        read_spec(with_config(model, **changes))
    return str(refused.value)


@pytest.mark.parametrize("field", SIZES)
def test_a_size_that_the_files_do_not_have_is_refused_by_its_field(field: str, model: Path) -> None:
    for value in HUGE:
        assert field in refusal(model, **{field: value})


def test_sizes_that_are_huge_together_are_refused(model: Path) -> None:
    heads = {"num_attention_heads": 2**30, "num_key_value_heads": 2**30, "head_dim": 2}
    assert "num_attention_heads times head_dim: the config says 2147483648" in refusal(model, **heads)
    assert "hidden_size" in refusal(model, hidden_size=2**30, **heads)


def test_the_refusal_says_what_the_files_have(model: Path) -> None:
    assert refusal(model, num_hidden_layers=9999) == "num_hidden_layers: the config says 9999, but the files have 2"
    assert refusal(model, vocab_size=301) == ("vocab_size: the config says 301, but model.embed_tokens.weight has 300")


@pytest.mark.parametrize("field", SIZES + OTHERS)
def test_any_value_of_a_field_is_understood_or_refused_in_one_line_that_names_it(field: str, model: Path) -> None:
    for value in (*STRANGE, HUGE[0], HUGE[-1]):
        try:
            spec = read_spec(with_config(model, **{field: value}))
        except UnsupportedModel as error:
            message = str(error)
            assert field.removesuffix("_scaling").removesuffix("_parameters") in message or "tensors missing" in message
            assert message.isprintable()
            assert len(message) < 300
        else:
            assert (spec.num_layers, spec.hidden_size, spec.vocab_size) == (2, 64, 300)


@pytest.mark.parametrize("parameters", ROPES, ids=str)
def test_rotary_parameters_that_give_no_finite_angles_are_refused(parameters: dict[str, Any], model: Path) -> None:
    assert refusal(model, rope_parameters=parameters).partition(":")[0] in {*parameters, "rope_parameters"}


def test_a_base_that_claims_too_much_is_refused_before_its_weights_are_hashed(model: Path, tmp_path: Path) -> None:
    with_config(model, num_hidden_layers=10**9)
    with pytest.raises(UnsupportedModel, match="num_hidden_layers: expected an integer from 1 to 10000"):
        load_base(str(model), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", '{"a": "\ud800"}'])
def test_a_config_that_no_parser_takes_is_refused(text: str, model: Path) -> None:
    (model / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UnsupportedModel, match=r"config\.json: is not JSON"):
        DirectoryCheckpoint(model)
