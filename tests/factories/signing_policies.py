"""Policies on disk, for tests."""

from pathlib import Path

from hotshoe.registry.signing.keys import PrivateKey


def write_policy(directory: Path, text: str, *keys: PrivateKey) -> Path:
    """A policy file with the public halves of `keys` in keys.d beside it. Writing it again replaces all of it."""
    (directory / "keys.d").mkdir(parents=True, exist_ok=True)
    for old in (directory / "keys.d").iterdir():
        old.unlink()
    for number, key in enumerate(keys):
        (directory / "keys.d" / f"{number}.pem").write_bytes(key.public.pem())
    path = directory / "policy.toml"
    path.write_text(text)
    return path


def rule(names: str, mode: str, **fields: object) -> str:
    """One [[rule]]; lists and numbers are written alike in JSON and TOML."""
    lines = [f"{key} = {value}" for key, value in fields.items()]
    return "\n".join(["[[rule]]", f'names = "{names}"', f'mode = "{mode}"', *lines, ""])
