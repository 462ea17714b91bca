"""hotshoe sign: a key's signature over an adapter's digest."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server


def sign(
    reference: Reference,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Your private key, as `hotshoe key new` makes it.")],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Sign an adapter, and attach the signature to it.

    It is made here: the key does not leave this machine. It vouches for the bytes, under whatever name.
    """
    from hotshoe.clients import Client
    from hotshoe.registry.signing.keys import read_private_key_file

    private = read_private_key_file(key)
    with Client(server) as client:
        signed = client.sign(reference, private)
    if json:
        return output.print_json({"subject": signed.subject, "key_id": private.public.key_id, **output.to_data(signed)})
    print(f"signed {signed.subject}\nby {private.public.key_id}")
