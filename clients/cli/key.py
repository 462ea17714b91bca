"""hotshoe key: the keys that sign adapters."""

import os
from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import Json


def key() -> None:
    """Make keys that sign adapters, and tell their ids."""


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The private key; FILE.pub becomes the public one.")],
    json: Json = False,
) -> None:
    """Make an ECDSA P-256 key pair. The private half is for you alone, and not encrypted."""
    from hotshoe.registry.signing.keys import PrivateKey

    if not file.name:
        raise ValueError(f"FILE: expected the name of a file, not '{file}'")
    made = PrivateKey.new()
    public = file.with_name(file.name + ".pub")
    _write_new(public, made.public.pem(), mode=0o644)
    try:
        _write_new(file, made.pem(), mode=0o600)
    except BaseException:
        public.unlink()
        raise
    if json:
        return output.print_json({"key_id": made.public.key_id, "private": str(file), "public": str(public)})
    print(f"{file}  private, keep it\n{public}  public\n{made.public.key_id}")


def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Public or private keys, in PEM.")],
    json: Json = False,
) -> None:
    """Tell the ids of keys, as policies name them."""
    from hotshoe.registry.signing.keys import read_key_file, read_private_key_file, read_public_keys

    rows = {}
    for file in files:
        if b"PRIVATE KEY" in read_key_file(file):
            rows[str(file)] = read_private_key_file(file).public.key_id
        else:
            [rows[str(file)]] = read_public_keys([file])
    if json:
        return output.print_json(rows)
    output.print_fields(rows.items())


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Never over another file: what a lost key has signed cannot be signed again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
