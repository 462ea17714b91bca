"""A fine-tune of a tiny base, as files: what is extracted answers as it does, and what would be lost is named."""

from pathlib import Path

import pytest
import torch
from model_directories import tiny_tokenizer, write_tiny_model
from safetensors.torch import load_file, save_file

from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes.extract import Cut
from hotshoe.registry.recipes.factors import Factors
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.extract import PROBE, Options, Refused, _Adapted, changed_tensors, main, parse, run
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.loader import OpenBase, open_base
from hotshoe.server.probe import probe_logits

CHANGED = (LinearId(0, "v_proj"), LinearId(1, "down_proj"), LinearId(1, "o_proj"))


class House:
    """A base, and fine-tunes of it."""

    def __init__(self, root: Path, **config) -> None:
        self.root = root
        self.config = config
        write_tiny_model(root / "base", "qwen2", **config)
        self.base: OpenBase = open_base(str(root / "base"), cache=root / "bases")

    def fine_tune(self, name: str, *, of: str, change: dict[str, torch.Tensor] | None = None) -> Path:
        """A fine-tune by updates of rank 3: of the weights as they are served, or of the original ones."""
        directory = self.root / name
        write_tiny_model(directory, "qwen2", **self.config)
        generator = torch.Generator().manual_seed(6)
        tensors = load_file(directory / "model.safetensors")
        modules = {f"{shape.module}.weight" for shape in self.base.weights.shape.linears.values()}
        for other in tensors.keys() - modules:
            tensors[other] = tensors[other].bfloat16().float()  # as they are served
        for linear, shape in self.base.weights.shape.linears.items():
            if of == "served":
                tensors[f"{shape.module}.weight"] = self.base.weights.weight(linear).clone()
            if linear in CHANGED:
                b, a = (
                    torch.randn(*size, generator=generator)
                    for size in ((shape.out_features, 3), (3, shape.in_features))
                )
                tensors[f"{shape.module}.weight"] += 0.02 * b @ a
        for changed, tensor in (change or {}).items():
            tensors[changed] = tensors[changed] + tensor
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    def options(self, tuned: Path, **fields) -> Options:
        given = {
            "cut": Cut(energy=0.999),
            "against": "served",
            "keeps_whole": False,
            "ignores": False,
            "takes_flat": False,
            "probe": PROBE,
        }
        return Options(
            tuned=tuned,
            to=self.root / "out",
            base=str(self.root / "base"),
            base_cache=self.root / "bases",
            **given | fields,
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def test_what_is_extracted_gives_the_fine_tune_s_logits(house: House) -> None:
    tuned = house.fine_tune("tuned", of="served")
    report = run(house.options(tuned))
    assert {row["linear"]: row["rank"] for row in report["linears"] if row["rank"]} == {str(x): 3 for x in CHANGED}
    assert report["energy"] == pytest.approx(1, abs=1e-6)
    lowered = lower_adapter({path.name: path for path in (house.root / "out").iterdir()}, house.base.weights)
    assert set(lowered.linears) == set(CHANGED)
    updates = {linear: Factors(part.a, part.b) for linear, part in lowered.linears.items()}
    tokens = house.base.tokenizer.encode(PROBE)
    full = probe_logits(DirectoryCheckpoint(tuned), house.base.spec, tokens)
    alone = probe_logits(house.base.checkpoint, house.base.spec, tokens)
    ours = probe_logits(_Adapted(house.base, updates), house.base.spec, tokens)
    assert (ours - full).abs().max() <= 2e-5
    assert (alone - full).abs().max() > 0.1
    probe = report["probe"]
    assert probe["extracted"] == pytest.approx(probe["full"], abs=1e-5) != pytest.approx(probe["base"], abs=1e-3)
    assert probe["divergence"] == pytest.approx(0, abs=1e-6)
    card = (house.root / "out" / "README.md").read_text()
    assert house.base.digest in card and "| layers.1.down_proj | 3 | 100.00% |" in card


def test_the_loss_is_that_of_transformers(house: House) -> None:
    from transformers import AutoModelForCausalLM

    tuned = house.fine_tune("again", of="served")
    report = run(house.options(tuned))
    tokens = torch.tensor([tiny_tokenizer()(PROBE)["input_ids"]])
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(tuned)(input_ids=tokens, labels=tokens).loss
    assert report["probe"]["tokens"] == tokens.shape[1]
    assert report["probe"]["full"] == pytest.approx(loss.item(), abs=1e-5)


def test_what_nf4_lost_is_flat_and_left_out_against_the_original(house: House) -> None:
    tuned = house.fine_tune("of-original", of="original")
    with pytest.raises(Refused, match="flat.*--against original"):
        run(house.options(tuned))
    against = run(house.options(tuned, against="original"))
    assert {row["linear"] for row in against["linears"] if row["relative_norm"] > 0.01} == {str(x) for x in CHANGED}
    assert max(row["rank"] for row in against["linears"]) == 3
    told = run(house.options(tuned, takes_flat=True, cut=Cut(rank=8)))
    assert told["energy"] < 0.9 and {row["rank"] for row in told["linears"]} == {8}


def test_norms_go_along_whole(house: House) -> None:
    change = {"model.norm.weight": torch.tensor(0.5), "model.layers.1.input_layernorm.weight": torch.tensor(0.25)}
    tuned = house.fine_tune("norms", of="served", change=change)
    report = run(house.options(tuned))
    assert sorted(report["whole"]) == ["model.layers.1.input_layernorm", "model.norm"] and report["ignored"] == []
    assert report["probe"]["divergence"] == pytest.approx(0, abs=1e-6)
    lowered = lower_adapter({path.name: path for path in (house.root / "out").iterdir()}, house.base.weights)
    assert {str(norm): float(delta.mean()) for norm, delta in lowered.norms.items()} == pytest.approx(
        {"layers.1.input_layernorm": 0.25, "norm": 0.5}, abs=1e-3
    )


def test_what_is_not_expressed_is_named_and_kept_whole_or_left_out(house: House) -> None:
    bias, embedding = "model.layers.1.self_attn.q_proj.bias", "model.embed_tokens.weight"
    rows = torch.zeros(300, 64)
    rows[[7, 200]] = 0.5
    change = {embedding: rows, bias: torch.tensor(0.5)}
    tuned = house.fine_tune("embeddings", of="served", change=change)
    assert changed_tensors(DirectoryCheckpoint(tuned), house.base) == list(change)
    with pytest.raises(Refused, match=rf"{embedding}, {bias}; --whole .*--ignore"):
        run(house.options(tuned))
    with pytest.raises(Refused, match=rf"express: {bias}; "):
        run(house.options(tuned, keeps_whole=True))
    left = run(house.options(tuned, ignores=True))
    assert left["ignored"] == list(change) and left["whole"] == []
    kept = run(house.options(tuned, keeps_whole=True, ignores=True))
    assert kept["ignored"] == [bias] and kept["whole"] == ["model.embed_tokens"]
    lowered = lower_adapter({path.name: path for path in (house.root / "out").iterdir()}, house.base.weights)
    assert lowered.embedding_rows is not None and lowered.embedding_rows.token_ids.tolist() == [7, 200]
    assert abs(left["probe"]["extracted"] - left["probe"]["full"]) > 1e-4


def test_the_embedding_of_a_tied_model_is_its_head_too(tmp_path: Path) -> None:
    house = House(tmp_path, tie_word_embeddings=True)
    rows = torch.zeros(300, 64)
    rows[[32, 101]] = 0.5  # a space, and e
    tuned = house.fine_tune("tied", of="served", change={"model.embed_tokens.weight": rows})
    report = run(house.options(tuned, keeps_whole=True))
    assert report["whole"] == ["model.embed_tokens", "lm_head"]
    assert report["probe"]["divergence"] == pytest.approx(0, abs=1e-5)  # rows are rounded to bfloat16
    lowered = lower_adapter({path.name: path for path in (house.root / "out").iterdir()}, house.base.weights)
    assert lowered.embedding_rows is not None and lowered.head_rows is not None
    assert lowered.embedding_rows.token_ids.tolist() == lowered.head_rows.token_ids.tolist() == [32, 101]


def test_a_model_of_another_shape_is_refused_by_the_field(house: House) -> None:
    write_tiny_model(house.root / "wide", "qwen2", intermediate_size=192)
    with pytest.raises(UnsupportedModel, match="intermediate_size is 192, the base's 128"):
        run(house.options(house.root / "wide"))


def test_the_base_itself_has_nothing_to_extract(house: House) -> None:
    with pytest.raises(Refused, match="nothing to extract"):
        run(house.options(house.root / "base", against="original"))


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--from", "a", "--to", "b", "--rank", "4", "--rank-energy", "0.9"], {})
    assert exit_.value.code == 2 and "not both" in capsys.readouterr().err
    options = parse(["--from", "a", "--to", "b", "--rank-energy", "0.9"], {"XDG_DATA_HOME": "/data"})
    assert options.cut == Cut(energy=0.9) and options.base_cache == Path("/data/hotshoe/registry.bases")
    assert options.probe == PROBE


def test_a_file_that_cannot_be_read_is_told_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    required = ["--from", "a", "--to", "b", "--rank", "4"]
    with pytest.raises(SystemExit) as exit_:
        parse([*required, "--probe", f"{tmp_path}/none"], {})
    assert exit_.value.code == 2
    assert f"error: --probe: {tmp_path}/none: No such file or directory\n" in capsys.readouterr().err
    write_tiny_model(tmp_path / "base")
    (tmp_path / "file").touch()
    chosen = ["--base", f"{tmp_path}/base", "--base-cache", f"{tmp_path}/bases", "--from", f"{tmp_path}/file"]
    monkeypatch.setattr("sys.argv", ["extract", *required, *chosen])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert told.endswith(f"hotshoe: {tmp_path}/file/config.json: Not a directory\n")
