"""A session's figures as the tables that go into kernels/RESULTS.md."""

import csv
import json
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hotshoe.server.gpu_session.ours import Row

_ROUNDING = 0.2  # what bfloat16 may make of a deep random model's logits; a term that is wrong makes 1 of them


def read_rows(out: Path) -> list[Row]:
    """What the parts have written so far; a part that was ended may leave its last line unfinished."""
    lines = [line for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_results(out: Path, device: str) -> str:
    """Writes results.csv and results.md, and gives the latter's text."""
    rows = read_rows(out)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "bitsandbytes", "peft"))
    parts = (
        [f"{date.today()}. {device}; {versions}."],
        _kernels(rows),
        _tests(rows),
        _starts(rows),
        _apart(rows),
        _served(rows),
        _steps(rows),
    )
    text = "\n\n".join("\n".join(lines) for lines in parts if lines)
    (out / "results.md").write_text(text + "\n")
    return text


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is missing"


def _steps(rows: list[Row]) -> list[str]:
    """Milliseconds of each system's steps, side by side."""
    measured = [row for row in rows if row["what"] in ("decode", "prompt")]
    if not measured:
        return ["No step was measured."]
    systems = list(dict.fromkeys(row["system"] for row in measured))
    found = {(row["what"], row["rows"], row["adapters"], row["system"]): row for row in measured}
    lines = ["| ms a step, median (worst) | adapters | " + " | ".join(systems) + " | tokens/s, ours |"]
    lines.append("|---" * (len(systems) + 3) + "|")
    for what, count, adapters in sorted({key[:3] for key in found}):
        cells = [_cell(found.get((what, count, adapters, system))) for system in systems]
        ours = found.get((what, count, adapters, "ours"))
        speed = f"{1e3 * count / ours['ms']:,.0f}" if ours else ""
        name = f"decode, {count} rows" if what == "decode" else f"prompt of {count}"
        lines.append(f"| {name} | {adapters} | " + " | ".join(cells) + f" | {speed} |")
    return lines


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row['ms']:.2f} ({row['worst_ms']:.2f})"


def _kernels(rows: list[Row]) -> list[str]:
    limits = [row["what"] for row in rows if row["system"] == "limits"]
    return [*limits, "```", *(row["what"] for row in rows if row["system"] == "kernels"), "```"]


def _tests(rows: list[Row]) -> list[str]:
    found = [row for row in rows if row["system"] == "tests"]
    total = {word: sum(row[word] for row in found) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    bad = [row["what"] for row in found if row["FAILED"] or row["ERROR"] or not row["PASSED"]]
    counts = ", ".join(f"{count} {word.lower()}" for word, count in total.items())
    return [f"GPU tests: {counts}" + (f"; look at {', '.join(bad)}" if bad else "")]


def _apart(rows: list[Row]) -> list[str]:
    return [
        f"{row['system']}: {row['rows']} rows beside as many apart take {_cell(row)} ms; the logits of those are off by"
        f" {row['error']:.1e}{'' if row['error'] < _ROUNDING else ': WRONG'}"
        for row in rows
        if row["what"] == "apart"
    ]


def _served(rows: list[Row]) -> list[str]:
    """What clients of a server got, and what a cold adapter cost them."""
    lines = [
        f"{row['system']} by {row['backend']}: ready in {row['seconds']:.1f} s; the base is written in "
        f"{row['write_seconds']:.1f} s, an adapter published in {row['publish_seconds']:.2f} s"
        for row in rows
        if row["what"] == "ready"
    ]
    streams = [row for row in rows if row["what"] == "streams"]
    if streams:
        lines += [
            f"its cache holds {streams[0]['kv_tokens']:,} tokens",
            "",
            "| streams | adapters | tokens/s | first token, ms: p50; p99 | between tokens, ms: p50; p99 | failed |",
            "|---|---|---|---|---|---|",
        ]
    for row in streams:
        first, between = (f"{_ms(row[f'{x}_p50_ms'])}; {_ms(row[f'{x}_p99_ms'])}" for x in ("ttft", "inter_token"))
        speed = f"{row['tokens_per_second']:,.0f}"
        lines.append(f"| {row['rows']} | {row['adapters']} | {speed} | {first} | {between} | {row['errors']} |")
    swaps = {row["place"]: row for row in rows if row["what"] == "swap"}
    if "device" in swaps:
        warm = swaps["device"]["ms"]
        added = [f", on {place} {row['ms'] - warm:+.1f} ms" for place, row in swaps.items() if place != "device"]
        lines += ["", f"First token with its adapter on the device {_cell(swaps['device'])} ms{''.join(added)}"]
    return lines


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _starts(rows: list[Row]) -> list[str]:
    return [
        f"{row['system']}: ready in {row['seconds']:.1f} s with {row['recorded']} steps recorded;"
        f" an adapter is placed in {row['place_ms']:.1f} ms"
        for row in rows
        if row["what"] == "start"
    ]
