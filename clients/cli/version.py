"""hotshoe version: of this client, and what the server serves."""

from hotshoe.clients.cli import output
from hotshoe.clients.cli.options import DEFAULT_SERVER, Json, Server

PATIENCE_SECONDS = 2.0


def version(server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Print the version, and what the server serves."""
    from importlib.metadata import version as installed_version

    from hotshoe.clients import NO_RETRY, CallError, Client
    from hotshoe.clients.cli.failures import describe

    client_version = installed_version("hotshoe")
    with Client(server, retry=NO_RETRY) as client:
        try:
            info = client.model_info(timeout=PATIENCE_SECONDS)
        except CallError as error:
            if json:
                return output.print_json({"client": client_version, "server": None})
            print(f"hotshoe {client_version}\nno server at {server}: {' '.join(describe(error).split())}")
            return
    if json:
        return output.print_json({"client": client_version, "server": info})
    print(f"hotshoe {client_version}")
    print(f"{info.base_model} ({info.quantization}, {info.device}) at {server}\n{info.base_digest}")
    print(f"{info.max_sequence_length:,} tokens a request, {info.kv_cache_tokens:,} in the key-value cache")
    if info.HasField("merged"):
        merged = info.merged
        print(
            f"merged {merged.name}@{merged.digest}\nbfloat16 keeps {merged.kept:.0%} of its updates; "
            f"NF4 would have kept {merged.nf4_kept:.0%}"
        )
