"""hotshoe token: what servers with --auth-keys ask of their callers."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.inputs import read_text
from hotshoe.clients.cli.options import Json

Issuer = Annotated[str, typer.Option(metavar="NAME", help="Whom it is from, as the server's --auth-issuer has it.")]
Audience = Annotated[str, typer.Option(metavar="NAME", help="Whom it is for, as --auth-audience has it.")]


def token() -> None:
    """Make tokens for a server that asks who calls, and read them."""


def new(
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key, as `hotshoe key new` makes it.")],
    subject: Annotated[str, typer.Option(metavar="NAME", help="Whose it is.")],
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            help="generate, read, publish, tag or admin; publish:team/* keeps publish, generate or tag to those names; "
            "may be repeated.",
        ),
    ],
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Whose share of the batch it uses.")] = None,
    hours: Annotated[float, typer.Option("--for", metavar="HOURS", min=0.001, max=24, help="How long it counts.")] = 1,
    issuer: Issuer = "hotshoe",
    audience: Audience = "hotshoe",
    json: Json = False,
) -> None:
    """Make a token and print it. It cannot be taken back, so it counts for a day at most."""
    import jwt

    from hotshoe.registry.signing.keys import read_private_key_file

    now = int(time.time())
    claims: dict[str, Any] = {"iss": issuer, "aud": audience, "sub": subject, "iat": now}
    claims |= {"exp": now + max(1, int(hours * 3600)), "scope": " ".join(_scope(one) for one in scope)}
    if tenant is not None:
        claims["tenant"] = tenant
    private = read_private_key_file(key)
    made = jwt.encode(claims, private.pem(), "ES256", {"kid": private.public.key_id})
    if json:
        return output.print_json({"token": made, "claims": claims})
    print(made)


def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file with a token in it; - for standard input.")] = "-",
    json: Json = False,
) -> None:
    """Tell what a token says. Whether it is right only the server knows."""
    import jwt

    text = sys.stdin.read() if file == "-" else read_text(Path(file))
    try:
        read = jwt.decode_complete(text.strip(), options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise ValueError(f"{file}: not a token: {error}") from None
    if json:
        return output.print_json({"header": read["header"], "claims": read["payload"]})
    claims = read["payload"]
    left = claims.get("exp", 0) - time.time()
    shown = {"subject": claims.get("sub"), "tenant": claims.get("tenant"), "scopes": claims.get("scope")}
    shown |= {"issuer": claims.get("iss"), "audience": claims.get("aud"), "key": read["header"].get("kid")}
    shown["counts"] = f"for {left / 60:.0f} minutes" if left > 0 else "no more"
    output.print_fields([(name, str(value)) for name, value in shown.items() if value is not None])


def _scope(text: str) -> str:
    action, _, names = text.partition(":")
    if action not in ("generate", "read", "publish", "tag", "admin") or " " in text or (":" in text and not names):
        raise ValueError(f"scope: expected generate, read, publish, tag or admin, perhaps with :PATTERN, not {text!r}")
    return text
