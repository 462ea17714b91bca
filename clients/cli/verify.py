"""hotshoe verify: whose signatures an adapter has, checked here."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Reference, Server


def verify(
    reference: Reference,
    key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A public key whose signature counts; may be repeated.")
    ] = None,
    threshold: Annotated[int, typer.Option(metavar="N", help="Of the keys, how many must have signed.")] = 1,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="A policy, as the server has one.")] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Verify an adapter's signatures, by keys or by a policy.

    Nothing that the server says of them is believed: manifest and signatures are fetched and checked here.
    """
    from hotshoe.clients import Client, NotVerified
    from hotshoe.registry.signing.keys import read_public_keys
    from hotshoe.registry.signing.policy import Policy

    if (key is None) == (policy is None):
        raise ValueError("expected --key, once or more, or --policy")
    rules = Policy.read(policy) if policy else Policy.of_keys(read_public_keys(key or ()), threshold=threshold)
    with Client(server) as client:
        verdict = client.verify(reference, rules)
    problem = verdict.problem
    if problem and policy is None:  # no rule of theirs: their own keys
        problem = f"{verdict.name}@{verdict.digest}: expected {verdict.missing}"
    if json:
        fields = {"name": verdict.name, "digest": verdict.digest, "mode": verdict.rule.mode, "verified": verdict.is_met}
        output.print_json({**fields, "key_ids": verdict.key_ids, "problem": problem})
    if not verdict.is_met:
        raise NotVerified(problem)
    if not json:
        word = "verified" if verdict.key_ids else "no signature asked for"
        print(f"{word} {verdict.name}@{verdict.digest}")
        for key_id in verdict.key_ids:
            print(f"signed by {key_id}")
