import pytest

from hotshoe.server.config import Address, EngineConfig, ResidencyConfig, ServerConfig


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("localhost:65535", "localhost", 65535), ("[::1]:80", "::1", 80)],
)
def test_an_address_reads_and_writes_the_same(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:-1", "host:x", "[::1:80", "[nonsense]:80", "::1:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [("127.0.0.1:1", True), ("127.8.8.8:1", True), ("[::1]:1", True), ("localhost:1", True)]
    + [("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False), ("localhost.example.org:1", False)],
)
def test_only_addresses_of_this_machine_are_loopback(text: str, is_loopback: bool) -> None:
    assert Address.parse(text).is_loopback is is_loopback


@pytest.mark.parametrize(
    "name",
    ["max_running_requests", "max_waiting_requests", "max_prefill_tokens_with_decodes", "kv_tokens", "page_tokens"],
)
def test_engine_limits_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EngineConfig(**{name: 0})


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_only_a_part_of_what_a_gpu_has_free_may_be_taken(fraction: float) -> None:
    with pytest.raises(ValueError, match="free_gpu_memory_fraction: must be above 0, up to 1"):
        EngineConfig(free_gpu_memory_fraction=fraction)


def test_no_overtaking_may_be_asked_for_but_not_less() -> None:
    assert EngineConfig(max_overtakes=0).max_overtakes == 0
    with pytest.raises(ValueError, match="max_overtakes: must be at least 0"):
        EngineConfig(max_overtakes=-1)


@pytest.mark.parametrize("name", ["adapter_slots", "device_bytes", "host_bytes", "max_rank", "loader_threads"])
def test_residency_limits_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ResidencyConfig(**{name: 0})


def test_tls_does_not_open_the_http_port() -> None:
    from pathlib import Path

    with pytest.raises(ValueError, match="http"):
        ServerConfig(http=Address("0.0.0.0", 0), tls_cert=Path("c.pem"), tls_key=Path("k.pem"))
