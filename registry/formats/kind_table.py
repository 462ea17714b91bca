"""The README's table of kinds: `python -m hotshoe.registry.formats.kind_table` prints it."""

from hotshoe.registry.formats.kind import ADAPTER_KINDS, AdapterKind


def kind_table() -> str:
    """One line for each kind that is served, in Markdown."""
    lines = ["| PEFT kind | lowered to | rank | differs from PEFT by | |", "|---|---|---|---|---|"]
    lines += [_line(name, kind) for name, kind in sorted(ADAPTER_KINDS.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, kind: AdapterKind) -> str:
    error = f"{kind.error:.0e}" if kind.error else "0"
    return f"| `{name}` | {kind.lowered_to} | {kind.rank} | {error} | {kind.note} |"


if __name__ == "__main__":
    print(kind_table(), end="")
