"""`python -m hotshoe.registry serve`: a registry alone, read by OCI clients, without a base model or a GPU."""

import argparse
import ipaddress
import json
import signal
import sys
import threading
from pathlib import Path

from hotshoe.registry.distribution import Distribution
from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.http_server import registry_http_server
from hotshoe.registry.registry import Registry


def main() -> int:
    """Serves until it is told to end; gives the exit code."""
    arguments = _parser().parse_args()
    host, _, port = arguments.http.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65_536):
        return _fail(f"--http: {arguments.http!r} is not HOST:PORT")
    if not (arguments.insecure_bind or _is_loopback(host)):
        return _fail(
            f"--http: other machines can reach {host}, and there is no TLS; say --insecure-bind if that is meant"
        )
    try:
        registry = Registry(arguments.registry)
    except StoreUnavailable as error:
        return _fail(str(error))
    try:
        server = registry_http_server(host.strip("[]"), int(port), Distribution(registry))
    except OSError as error:
        return _fail(f"--http: cannot listen on {arguments.http}: {error.strerror or error}")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server.start()
    print(json.dumps({"registry_http": f"{host}:{server.port}"}), flush=True)
    ended.wait()
    server.stop()
    registry.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hotshoe registry", allow_abbrev=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    serve = verbs.add_parser(
        "serve", help="let OCI clients read a registry; others may publish to it meanwhile", allow_abbrev=False
    )
    serve.add_argument("--registry", type=Path, required=True, metavar="DIR", help="the registry; made if missing")
    serve.add_argument(
        "--http", default="127.0.0.1:5000", metavar="HOST:PORT", help="port 0 takes a free one (default: %(default)s)"
    )
    serve.add_argument("--insecure-bind", action="store_true", help="allow an address that other machines can reach")
    return parser


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _fail(message: str) -> int:
    print(f"hotshoe registry: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
