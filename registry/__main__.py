"""`python -m hotshoe.registry`: a registry alone, served to OCI clients or checked, without a base model or a GPU."""

import argparse
import getpass
import ipaddress
import json
import signal
import sys
import threading
from pathlib import Path

from hotshoe.registry.errors import InvalidReference, RemoteError, StoreUnavailable
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.http.threads import tls_context
from hotshoe.registry.http.users import HttpUsers, InvalidUsers, user_line
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.blob_source import BlobsOfRemotes


def main() -> int:
    """Does what is asked; gives the exit code."""
    arguments = _parser().parse_args()
    if arguments.verb == "password":
        return _password(arguments.name)
    return _check(arguments) if arguments.verb == "fsck" else _serve(arguments)


def _check(arguments: argparse.Namespace) -> int:
    """Hashes every blob, and fetches what is damaged or lost from remotes; 1 if that does not heal all."""
    if not (arguments.registry / "oci-layout").is_file():
        return _fail(f"--registry: {arguments.registry} holds no registry")
    try:
        with Registry(arguments.registry) as registry:
            if arguments.remote:
                registry.check_writable()
            source = BlobsOfRemotes(registry, arguments.remote, docker_config=arguments.docker_config)
            registry.heal_from(source)
            report = registry.fsck(heal=bool(arguments.remote))
    except (InvalidReference, RemoteError, StoreUnavailable) as error:
        return _fail(str(error))
    for failure in source.failures:
        print(f"hotshoe registry: {failure}", file=sys.stderr)
    for word, digests in (("damaged", report.corrupt), ("missing", report.missing)):
        for digest in digests:
            print(f"{word}  {digest}" + ("" if digest in report.unhealed else "  fetched again"))
    print(f"{report.blobs} blobs are sound, {report.blob_bytes} bytes")
    if report.quarantine:
        kept = f"{len(report.quarantine)} damaged files, {sum(file.size_bytes for file in report.quarantine)} bytes"
        print(f"in quarantine {kept}; the only copies of {len(report.only_damaged)} blobs")
    return 1 if report.unhealed else 0


def _password(name: str) -> int:
    """Prints a line for --users; the password comes from the terminal, or from the first line of standard input."""
    password = getpass.getpass(f"password of {name}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    try:
        print(user_line(name, password))
    except ValueError as error:
        return _fail(str(error))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end."""
    host, _, port = arguments.http.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65_536):
        return _fail(f"--http: {arguments.http!r} is not HOST:PORT")
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        return _fail("--tls-cert and --tls-key go together")
    if not (arguments.insecure_bind or arguments.tls_cert or _is_loopback(host)):
        return _fail(f"--http: other machines can reach {host}; give --tls-cert and --tls-key, or say --insecure-bind")
    try:
        tls = tls_context(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
        users = HttpUsers(arguments.users) if arguments.users else None
        registry = Registry(arguments.registry)
    except (StoreUnavailable, InvalidUsers) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    with registry:
        try:
            server = registry_http_server(host.strip("[]"), int(port), Distribution(registry), tls=tls, users=users)
        except OSError as error:
            return _fail(f"--http: cannot listen on {arguments.http}: {error.strerror or error}")
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        server.start()
        print(json.dumps({"registry_http": f"{host}:{server.port}"}), flush=True)
        ended.wait()
        server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hotshoe registry", allow_abbrev=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB", dest="verb")
    serve = verbs.add_parser(
        "serve", help="let OCI clients read a registry; others may publish to it meanwhile", allow_abbrev=False
    )
    serve.add_argument(
        "--registry",
        type=Path,
        required=True,
        metavar="DIR",
        help="the registry; made if missing, only read if it cannot be written",
    )
    serve.add_argument(
        "--http", default="127.0.0.1:5000", metavar="HOST:PORT", help="port 0 takes a free one (default: %(default)s)"
    )
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate chain; needs --tls-key")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM private key; needs --tls-cert")
    serve.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="who may read, with a password; `hotshoe registry password` makes lines, or htpasswd -B",
    )
    serve.add_argument(
        "--insecure-bind", action="store_true", help="allow plain text on an address that other machines can reach"
    )
    fsck = verbs.add_parser(
        "fsck", help="hash all that a registry has; exit code 1: something is damaged or lost", allow_abbrev=False
    )
    fsck.add_argument("--registry", type=Path, required=True, metavar="DIR", help="the registry")
    fsck.add_argument(
        "--remote", action="append", default=[], metavar="URL", help="fetch what is damaged from there; may be repeated"
    )
    fsck.add_argument("--docker-config", type=Path, metavar="FILE", help="docker's config.json, with passwords")
    password = verbs.add_parser("password", help="print a line for --users", allow_abbrev=False)
    password.add_argument("name", metavar="NAME", help="the user; the password is read from the terminal or a pipe")
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
