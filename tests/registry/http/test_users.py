"""A registry behind TLS and a login: who is let in, by which tools, and what clients that misbehave cost."""

import base64
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from certificates import needs_openssl, self_signed
from store_adapters import lora_files, publish

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import RemoteRefused, RemoteUnavailable
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.passwords import BcryptPassword
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.http.threads import HttpThreads, tls_context
from hotshoe.registry.http.users import HttpUsers, InvalidUsers, user_line
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.remote import parse_remote

USER, PASSWORD = "reader", "pässword: with a colon"
LINE = user_line(USER, PASSWORD)
# Of "U*U*", from crypt_blowfish's own tests.
BCRYPT = "other:$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"# who may read\n\n{LINE}\n{user_line('other', 'x')}\n")
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def sql(registry: Registry) -> AdapterRecord:
    return publish(registry, "team/sql", lora_files(), tags=["v1"])[0]


@pytest.fixture
def serve(registry: Registry) -> Iterator[Callable[..., HttpThreads]]:
    started: list[HttpThreads] = []

    def start(**options: object) -> HttpThreads:
        server = registry_http_server("127.0.0.1", 0, Distribution(registry), **options)  # type: ignore[arg-type]
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What each hash of a password cost, in scrypt's terms."""
    scrypt, costs = hashlib.scrypt, []

    def counted(password: bytes, *, salt: bytes, n: int, r: int, p: int, **more: int) -> bytes:
        costs.append((n, r, p))
        return scrypt(password, salt=salt, n=n, r=r, p=p, **more)

    monkeypatch.setattr(hashlib, "scrypt", counted)
    return costs


def test_only_a_users_own_password_lets_in(users: Path, hashed: list[tuple[int, int, int]]) -> None:
    known = HttpUsers(users)
    assert known.admits(basic(USER, PASSWORD)) and known.admits(basic("other", "x"))
    hashed.clear()
    assert known.admits(basic(USER, PASSWORD)) and known.admits(basic("other", "x"))
    assert hashed == [], "who was let in is not hashed again"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for wrong in (
        *("", "Basic", "Basic ?", f"Bearer {encoded}", f"Basic {encoded}!", f"Basic {encoded * 100}", "Basic /w=="),
        *(basic(USER, ""), basic(USER, PASSWORD + " "), basic("other", PASSWORD), basic("nobody", PASSWORD)),
        *(basic("", PASSWORD), "Basic " + base64.b64encode(USER.encode()).decode()),
    ):
        assert not known.admits(wrong), wrong


def test_users_of_bcrypt_are_let_in_beside_ours(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users.write_text(f"{LINE}\n{BCRYPT}\n{BCRYPT.replace('2y', '2b').replace('other', 'third')}\n")
    known = HttpUsers(users)
    for name in ("other", "third"):
        assert known.admits(basic(name, "U*U*")) and not known.admits(basic(name, "U*U"))
        assert not known.admits(basic(name, "U*U*\0"))
    assert known.admits(basic(USER, PASSWORD)) and not known.admits(basic(USER, "U*U*"))
    with monkeypatch.context() as patch:
        patch.setattr(BcryptPassword, "is_password", None)  # who was let in is not hashed again
        assert known.admits(basic("other", "U*U*"))
        users.write_text(BCRYPT.replace("/", "."))  # another hash of the same name, followed at once
        with pytest.raises(TypeError):
            known.admits(basic("other", "U*U*"))
    assert not known.admits(basic("other", "U*U*"))


def test_without_the_package_bcrypt_the_file_says_what_to_install(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert HttpUsers(users).admits(basic(USER, PASSWORD))
    users.write_text(BCRYPT)
    with pytest.raises(InvalidUsers, match=r"line 1: bcrypt.* needs a package: pip install 'hotshoe\[htpasswd\]'"):
        HttpUsers(users)


@pytest.mark.skipif(shutil.which("htpasswd") is None, reason="htpasswd is not installed (apt: apache2-utils)")
def test_what_htpasswd_writes_lets_in(users: Path) -> None:
    long = "ä" * 50  # 100 bytes: of those after the 72nd none knows anything
    for options, name, password in ((["-cbB"], "a", PASSWORD), (["-bB", "-C", "7"], "b", long)):
        subprocess.run(["htpasswd", *options, users, name, password], check=True, capture_output=True)
    known = HttpUsers(users)
    assert known.admits(basic("a", PASSWORD)) and known.admits(basic("b", long))
    for name, password in (("a", long), ("b", "ä" * 35), ("c", long)):
        assert not known.admits(basic(name, password))


def test_a_guess_costs_as_much_for_a_user_as_for_nobody(users: Path, hashed: list[tuple[int, int, int]]) -> None:
    known = HttpUsers(users)
    hashed.clear()
    for user in (USER, "nobody", USER, "nobody"):
        assert not known.admits(basic(user, "a guess"))
    assert hashed == [(1 << 14, 8, 1)] * 4


def test_a_changed_file_holds_at_once_and_a_wrong_one_lets_nobody_in(users: Path) -> None:
    known = HttpUsers(users)
    assert known.admits(basic(USER, PASSWORD))
    users.write_text(user_line(USER, "another") + "\n")
    assert not known.admits(basic(USER, PASSWORD)) and known.admits(basic(USER, "another"))
    users.write_text("nonsense\n")
    assert not known.admits(basic(USER, "another"))
    users.unlink()
    assert not known.admits(basic(USER, "another"))
    users.write_text(LINE)
    assert known.admits(basic(USER, PASSWORD))


@pytest.mark.parametrize(
    "text",
    [f"{USER}:{PASSWORD}", f"{USER}:$apr1$abcdefgh$0mi1dQZ0YjMqGqJvoRzKE.", f"{USER}:{{SHA}}2jmj7l5rSw0yVb=", LINE[:-8]]
    + [
        BCRYPT.replace("$05$", "$03$"),
        BCRYPT.replace("$05$", "$15$"),
        BCRYPT[:-1],
        BCRYPT + "x",
        f"{LINE}\n{USER}:{BCRYPT}",
    ]
    + [
        LINE.replace("$14$", "$30$"),
        LINE.replace("$14$8$", "$14$99$"),
        LINE[:-4] + "====",
        f"{LINE}\n{LINE}",
        ":" + LINE,
    ],
)
def test_a_file_of_something_else_is_refused_by_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "users").write_text("# one\n" + text)
    with pytest.raises(InvalidUsers, match=r"users: line [23]: ") as caught:
        HttpUsers(tmp_path / "users")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(("name", "password"), [("", "x"), ("a:b", "x"), ("a b", "x"), ("#a", "x"), ("a", "")])
def test_what_is_no_user_makes_no_line(name: str, password: str) -> None:
    with pytest.raises(ValueError, match="user "):
        user_line(name, password)


def test_whoever_is_no_user_is_told_nothing(serve: Callable[..., HttpThreads], users: Path, sql: AdapterRecord) -> None:
    server = serve(users=HttpUsers(users))
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=100) as http:
        for path in ("/v2/", "/v2/_catalog", "/v2/team/sql/tags/list", "/v2/team/none/tags/list", "/etc/passwd"):
            for method in ("GET", "HEAD", "PUT"):
                refused = http.request(method, path, auth=(USER, "guess"))
                assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Basic realm=")
        [error] = http.get("/v2/").json()["errors"]
        assert error["code"] == "UNAUTHORIZED"
        assert http.get("/v2/team/sql/tags/list", auth=(USER, PASSWORD)).json()["tags"] == ["v1"]
        assert http.get("/v2/team/none/tags/list", auth=(USER, PASSWORD)).status_code == 404


@needs_openssl
def test_our_client_pulls_by_tls_with_a_password(
    serve: Callable[..., HttpThreads],
    users: Path,
    certificate: tuple[Path, Path],
    sql: AdapterRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    server = serve(users=HttpUsers(users), tls=tls_context(*certificate))
    host = f"127.0.0.1:{server.port}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {host: {"auth": basic(USER, PASSWORD).removeprefix("Basic ")}}}))
    other = Registry(tmp_path / "other")
    remote = parse_remote(f"oci+https://{host}", docker_config=config)
    assert pull(other, remote, "v1", name="team/sql", tags=["v1"]).record.digest == sql.digest
    remote.close()
    once = Patience(attempts=1)
    for stranger, error in ((f"oci+https://{host}", RemoteRefused), (f"oci://{host}", RemoteUnavailable)):
        with pytest.raises(error):
            parse_remote(stranger, docker_config=tmp_path / "none.json", patience=once).resolve("team/sql", "v1")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RemoteUnavailable, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        parse_remote(f"oci+https://{host}", docker_config=config, patience=once).resolve("team/sql", "v1")
    assert other.fsck().is_clean
    other.close()


@needs_openssl
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")
def test_skopeo_pulls_by_tls_with_a_password(
    root: Path, certificate: tuple[Path, Path], sql: AdapterRecord, tmp_path: Path
) -> None:
    registry = [sys.executable, "-P", "-m", "hotshoe.registry"]
    made = subprocess.run([*registry, "password", USER], input=PASSWORD + "\n", capture_output=True, text=True)
    (tmp_path / "users").write_text(made.stdout)
    (tmp_path / "trusted").mkdir()
    shutil.copy(certificate[0], tmp_path / "trusted" / "ca.crt")
    command = [*registry, "serve", "--registry", root, "--http", "127.0.0.1:0", "--users", tmp_path / "users"]
    tls = ["--tls-cert", certificate[0], "--tls-key", certificate[1]]
    with subprocess.Popen([*command, *tls], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        address = json.loads(served.stdout.readline())["registry_http"]

        def copy(*options: str) -> "subprocess.CompletedProcess[bytes]":
            arguments = ["skopeo", "copy", "--insecure-policy", *options, f"docker://{address}/team/sql:v1"]
            return subprocess.run([*arguments, f"dir:{tmp_path / 'copy'}"], capture_output=True, timeout=200)

        trusting = f"--src-cert-dir={tmp_path / 'trusted'}"
        assert copy(trusting, f"--src-creds={USER}:guess").returncode != 0
        assert copy(f"--src-creds={USER}:{PASSWORD}").returncode != 0, "it does not know the certificate"
        assert not (tmp_path / "copy" / "manifest.json").exists()
        done = copy(trusting, f"--src-creds={USER}:{PASSWORD}")
        assert done.returncode == 0, done.stderr
        served.terminate()
        assert served.wait(200) == 0
    assert digest_of((tmp_path / "copy" / "manifest.json").read_bytes()) == sql.digest


@needs_openssl
def test_a_client_that_does_not_finish_its_handshake_keeps_no_one_waiting(
    serve: Callable[..., HttpThreads],
    certificate: tuple[Path, Path],
    sql: AdapterRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hotshoe.registry.http.threads._HANDSHAKE_SECONDS", 100.0)
    server = serve(tls=tls_context(*certificate))
    address = ("127.0.0.1", server.port)
    silent = [socket.create_connection(address) for _ in range(8)]
    for sock in silent[4:]:
        sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")  # in the clear
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    with httpx.Client(verify=trusting, trust_env=False, timeout=50) as http:
        assert http.get(f"https://127.0.0.1:{server.port}/v2/").status_code == 200
    for sock in silent[4:]:
        with suppress(ConnectionResetError):
            assert b"HTTP/1.1 200" not in sock.recv(100)
    for sock in silent:
        sock.close()


@needs_openssl
def test_what_is_no_certificate_is_told_in_one_line(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none").write_text("nothing")
    serve = [sys.executable, "-P", "-m", "hotshoe.registry", "serve", "--registry", str(tmp_path / "r"), "--http"]
    cert, key, none = str(certificate[0]), str(certificate[1]), str(tmp_path / "none")
    for arguments, words in (
        (["127.0.0.1:0", "--tls-cert", cert], "go together"),
        (["127.0.0.1:0", "--tls-cert", none, "--tls-key", key], "cannot read the certificate"),
        (["127.0.0.1:0", "--tls-cert", cert, "--tls-key", str(tmp_path / "missing")], "No such file"),
        (["127.0.0.1:0", "--users", none], "line 1: expected NAME:$scrypt$"),
        (["127.0.0.1:0", "--users", str(tmp_path / "missing")], f": {tmp_path}/missing: No such file or directory"),
        (["0.0.0.0:0"], "give --tls-cert and --tls-key, or say --insecure-bind"),
    ):
        done = subprocess.run([*serve, *arguments], capture_output=True, text=True, timeout=200)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
