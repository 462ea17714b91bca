"""A fine-tune of a tiny base, as files: what is extracted answers as it does, and what would be lost is named."""

from pathlib import Path

import pytest
import torch
from model_directories import tiny_tokenizer, write_tiny_model
from safetensors.torch import load_file, save_file

from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.kind import lower_adapter
from hotshoe.registry.recipes.extract import Cut
from hotshoe.registry.recipes.factors import Factors
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.extract import PROBE, Options, Refused, _Adapted, changed_tensors, parse, run
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.loader import OpenBase, open_base
from hotshoe.server.probe import probe_logits

CHANGED = (LinearId(0, "v_proj"), LinearId(1, "down_proj"), LinearId(1, "o_proj"))


class House:
    """A base, and fine-tunes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_tiny_model(root / "base", "qwen2")
        self.base: OpenBase = open_base(str(root / "base"), cache=root / "bases")

    def fine_tune(self, name: str, *, of: str, change: dict[str, torch.Tensor] | None = None) -> Path:
        """A fine-tune by updates of rank 3: of the weights as they are served, or of the original ones."""
        directory = self.root / name
        write_tiny_model(directory, "qwen2")
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
        given = {"cut": Cut(energy=0.999), "against": "served", "ignores": False, "takes_flat": False, "probe": PROBE}
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


def test_what_low_rank_cannot_express_is_named_and_may_be_left_out(house: House) -> None:
    change = {"model.norm.weight": torch.tensor(0.5), "model.layers.1.self_attn.q_proj.bias": torch.tensor(0.5)}
    tuned = house.fine_tune("norms", of="served", change=change)
    assert changed_tensors(DirectoryCheckpoint(tuned), house.base) == list(change)
    with pytest.raises(Refused, match=r"model\.norm\.weight, model\.layers\.1\.self_attn\.q_proj\.bias; --ignore"):
        run(house.options(tuned))
    report = run(house.options(tuned, ignores=True))
    assert report["ignored"] == list(change)
    assert abs(report["probe"]["extracted"] - report["probe"]["full"]) > 1e-4


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
