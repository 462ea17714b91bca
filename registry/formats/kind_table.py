"""The README's tables of kinds: `python -m hotshoe.registry.formats.kind_table` prints them."""

from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS, DENSE_KINDS, AdapterKind


def kind_table() -> str:
    """One line for each kind that is served, in Markdown."""
    lines = ["| PEFT kind | lowered to | rank | differs from PEFT by | |", "|---|---|---|---|---|"]
    lines += [_line(name, kind) for name, kind in sorted(ADAPTER_KINDS.items())]
    return "\n".join(lines) + "\n"


def adapterhub_table() -> str:
    """One line for each kind of AdapterHub's package that is served."""
    lines = ["| AdapterHub kind | lowered to | rank | differs from `adapters` by | |", "|---|---|---|---|---|"]
    lines += [_line(name, kind) for name, kind in sorted(ADAPTERHUB_KINDS.items())]
    return "\n".join(lines) + "\n"


def dense_table() -> str:
    """One line for each kind that is served approximately, on request."""
    lines = ["| PEFT kind | its update, of full rank |", "|---|---|"]
    lines += [f"| `{name}` | {kind.update} |" for name, kind in sorted(DENSE_KINDS.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, kind: AdapterKind) -> str:
    error = f"{kind.error:.0e}" if kind.error else "0"
    return f"| `{name}` | {kind.lowered_to} | {kind.rank} | {error} | {kind.note} |"


if __name__ == "__main__":
    print(kind_table())
    print(adapterhub_table())
    print(dense_table(), end="")
