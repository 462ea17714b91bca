"""Starting, health, metrics, draining and ending of real server processes."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from model_directories import tiny_model
from peft_adapters import write_lora
from prometheus_client.parser import text_string_to_metric_families
from server_process import END_SECONDS, ServerProcess, command, publish, until

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc, registry_pb2, residency_pb2
from hotshoe.registry.http.users import user_line
from hotshoe.server.metric_table import METRICS, Kind

StartServer = Callable[..., ServerProcess]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
CUT_OFF = ("SHUTTING_DOWN", "UNAVAILABLE", "CANCELLED")  # a busy server may not get to tell everybody why
SERVICES = ("", "hotshoe.v1.GenerationService", "hotshoe.v1.RegistryService", "hotshoe.v1.ResidencyService")


def _request(tokens: int, text: str = "hello") -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(text=text, stopping={"max_new_tokens": tokens, "ignore_eos": True})


def _fails(arguments: list[str], directory: Path) -> tuple[int, str]:
    """Exit code and standard error of a server that does not start."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=250, env=environment, cwd=directory)
    assert done.stdout == ""
    return done.returncode, done.stderr


def _end(call: grpc.Call) -> str:
    """ "OK", or the reason that the error names, or its code if it names none."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return _reason(error) if rpc_status.from_call(error) else error.code().name
    return "OK"


def _reason(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    return info.reason


# One server that the tests only talk to.


def test_the_ready_line_says_where_and_what(server: ServerProcess, tiny_base: Path) -> None:
    ready = server.ready
    assert ready["event"] == "ready"
    assert ready["grpc"].startswith("127.0.0.1:") and not ready["grpc"].endswith(":0")
    assert ready["http"].startswith("127.0.0.1:") and not ready["http"].endswith(":0")
    assert ready["base_model"] == tiny_base.name
    assert ready["base_digest"].startswith("sha256:")
    assert (ready["device"], ready["backend"]) == ("cpu", "reference")


def test_every_service_is_serving_and_http_agrees(server: ServerProcess) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel())
    for service in SERVICES:
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
    status, body = server.get("/health")
    assert (status, json.loads(body)["status"]) == (200, "serving")


def test_reflection_names_the_services_when_it_is_on(server: ServerProcess) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel())
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    response = next(stub.ServerReflectionInfo(iter([request])))
    names = {service.name for service in response.list_services_response.service}
    assert set(SERVICES[1:]) <= names


def test_unknown_methods_are_unimplemented_and_make_no_series(server: ServerProcess) -> None:
    call = server.channel().unary_unary("/hotshoe.v1.GenerationService/Nonsense")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Nonsense" not in server.get("/metrics")[1]


def test_malformed_messages_are_refused_and_leak_nothing(server: ServerProcess) -> None:
    for method in ("GenerationService/Generate", "RegistryService/PublishAdapter", "ResidencyService/UnloadAdapter"):
        with pytest.raises(grpc.RpcError) as caught:
            server.channel().unary_unary(f"/hotshoe.v1.{method}")(b"\xff" * 64)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "message: is not a message of this method's request type"
    assert server.generation.Generate(_request(2)).completions


def test_every_documented_metric_is_there_after_a_request(server: ServerProcess, tmp_path: Path) -> None:
    # Bytes that no other test publishes: residents are told under the name that first loaded their digest.
    publish(server, "measured", write_lora(tmp_path / "measured", tiny_model(), seed=410_101))
    request = _request(4)
    request.adapters.add(reference="measured")
    server.generation.Generate(request)
    status, text = server.get("/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    sample_lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sum(len(family.samples) for family in families) == len(sample_lines)
    samples = {sample.name for family in families for sample in family.samples}
    for spec in METRICS:
        name = spec.name + "_count" if spec.kind is Kind.HISTOGRAM else spec.name
        # Nothing was evicted yet or is damaged, and the server has no remotes.
        if spec.name.startswith(
            ("hotshoe_adapter_evictions", "hotshoe_remote_", "hotshoe_pull_through", "hotshoe_registry_damaged")
        ):
            assert f"# TYPE {spec.name} {spec.kind.value}" in text
        else:
            assert name in samples, spec.name
    assert 'hotshoe_adapter_requests_total{adapter="measured",code="OK"} 1.0' in text
    residents = text.partition('running_lora_adapters="')[2].partition('"')[0]
    assert "measured" in residents.split(",")


def test_prompts_and_answers_are_not_in_logs_or_metrics(server: ServerProcess) -> None:
    text = server.generation.Generate(_request(8, text="canary-4711")).completions[0].text
    everything = server.log + server.get("/metrics")[1]
    assert "canary" not in everything
    assert text not in everything


# Servers that do not start.


def test_a_second_server_on_the_same_ports_fails_with_one_line(
    server: ServerProcess, tiny_base: Path, tmp_path: Path
) -> None:
    for flag, port in (("--listen", server.ready["grpc"]), ("--http", server.ready["http"])):
        code, error = _fails([*command(tiny_base, tmp_path / "registry"), flag, port], tmp_path)
        assert code == 1
        [line] = error.splitlines()
        assert f"{flag}: cannot listen on {port}: Address already in use" in line
    assert server.generation.Generate(_request(2)).completions


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "0.0.0.0:0"], "say --insecure-bind"),
        (["--listen", "127.0.0.1:0", "--kv-tokens", "-3"], "--kv-tokens: must be at least 1"),
    ],
)
def test_bad_arguments_end_with_2(tiny_base: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    code, error = _fails([*command(tiny_base, tmp_path / "registry"), *arguments], tmp_path)
    assert code == 2
    assert says in error.splitlines()[-1]


def test_a_base_or_registry_that_cannot_be_opened_is_one_clear_line(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    for base, registry in ((tmp_path / "nowhere", tmp_path / "registry"), (tiny_base, tmp_path / "file")):
        code, error = _fails(command(base, registry), tmp_path)
        assert code == 1
        line = next(line for line in error.splitlines() if "cannot_start" in line)
        assert str(base if base != tiny_base else registry) in line
        assert "Traceback" not in error


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_serves_only_those_who_trust_it(start_server: StartServer, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(
        [*make, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    swapped = ["--tls-cert", str(key), "--tls-key", str(cert)]
    code, error = _fails([*command(tmp_path / "base", tmp_path / "registry"), *swapped], tmp_path)
    assert code == 1 and f"cannot read the certificate {key} with the key {cert}" in error
    (tmp_path / "users").write_text(user_line("reader", "secret"))
    pair = ("--tls-cert", str(cert), "--tls-key", str(key))
    registry_pair = [option.replace("--tls", "--registry-http-tls") for option in pair]
    registry = ["--registry-http", "127.0.0.1:0", "--registry-http-users", str(tmp_path / "users"), *registry_pair]
    server = start_server(*pair, "--http", "", *registry)
    assert server.ready["http"] == ""
    with httpx.Client(verify=ssl.create_default_context(cafile=str(cert)), trust_env=False) as http:
        url = f"https://{server.ready['registry_http']}/v2/"
        assert [http.get(url, auth=auth).status_code for auth in (None, ("reader", "secret"))] == [401, 200]
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(server.ready["grpc"], credentials) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        assert stub.Generate(_request(2), timeout=100).completions
    with grpc.secure_channel(server.ready["grpc"], grpc.ssl_channel_credentials()) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            generation_pb2_grpc.GenerationServiceStub(channel).Generate(_request(2), timeout=100)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError):
        server.generation.Generate(_request(2), timeout=100)
    # The roots are read once a process, so the command line has one of its own.
    ask = [sys.executable, "-P", "-m", "hotshoe.clients.cli", "run", "base", "hi", "--raw", "--max-new-tokens", "2"]
    trusting = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(cert)}
    subprocess.run([*ask, "--server", f"tls://{server.ready['grpc']}"], env=trusting, check=True, timeout=250)


# Servers under more than they take.


def test_a_full_queue_refuses_with_a_hint_and_stays_healthy(start_server: StartServer) -> None:
    server = start_server("--max-running-requests", "1", "--max-waiting-requests", "1")
    stub = server.generation
    long = generation_pb2.StreamGenerateRequest(request=_request(500))
    calls = [stub.StreamGenerate(long) for _ in range(12)]  # more than could come one by one, two at a time
    ends = list(map(_end, calls))
    assert server.get("/health")[0] == 200
    assert set(ends) == {"OK", "QUEUE_FULL"} and ends.count("OK") >= 2
    for call, end in zip(calls, ends, strict=True):
        if end == "QUEUE_FULL":
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in rpc_status.from_call(call).details)
            assert retry.retry_delay.ToMilliseconds() > 0


def test_a_client_that_does_not_read_is_cut_and_others_are_served(start_server: StartServer) -> None:
    server = start_server("--stream-buffer-tokens", "32")
    channel = server.channel(grpc__http2__lookahead_bytes=1024, grpc__http2__bdp_probe=0)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = _request(450)
    request.logprobs = 20
    lazy = stub.StreamGenerate(generation_pb2.StreamGenerateRequest(request=request))
    next(lazy)
    assert len(server.generation.Generate(_request(100)).completions[0].tokens) == 100
    watch = server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=200)
    assert any(not status.running_requests for status in watch)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in lazy:
            pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _reason(caught.value) == "SLOW_READER"


# Servers that end.


def test_sigterm_lets_running_and_queued_requests_finish_and_refuses_new_ones(start_server: StartServer) -> None:
    server = start_server("--max-running-requests", "2", "--grace", "200")
    health = health_pb2_grpc.HealthStub(server.channel())
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == SERVING
    late, stub = server.generation, server.generation
    late.GetModelInfo(generation_pb2.GetModelInfoRequest())
    calls = [stub.StreamGenerate(generation_pb2.StreamGenerateRequest(request=_request(450))) for _ in range(5)]
    release = threading.Event()  # of an upload, which keeps the server draining while it is looked at
    upload = server.registry.UploadBlob.future(_held_upload(release))
    until(lambda: server.taken() == 5 and server.metric("grpc_server_started_total", "UploadBlob"))
    server.terminate()
    assert next(watch).status == NOT_SERVING
    assert health.Check(health_pb2.HealthCheckRequest(service=SERVICES[1])).status == NOT_SERVING
    assert server.get("/health")[0] == 503
    with pytest.raises(grpc.RpcError) as caught:
        late.Generate(_request(2))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _reason(caught.value) == "SHUTTING_DOWN"
    release.set()
    assert upload.result().committed_bytes == 0
    for number, call in enumerate(calls):
        messages = list(call)
        assert messages[-1].final.usage.completion_tokens == 450, number
    assert server.wait() == 0
    assert "grace_exceeded" not in server.log
    assert "internal_error" not in server.log


def test_past_the_grace_the_rest_is_told_and_the_server_ends(start_server: StartServer) -> None:
    server = start_server("--grace", "0.5", "--max-running-requests", "1")
    calls = _twenty_long(server)
    server.terminate()
    ends = list(map(_end, calls))
    assert "SHUTTING_DOWN" in ends and set(ends) <= {"OK", *CUT_OFF}
    assert server.wait() == 0
    assert "grace_exceeded" in server.log


def test_a_second_signal_ends_at_once(start_server: StartServer) -> None:
    server = start_server("--grace", "200", "--max-running-requests", "1")
    calls = _twenty_long(server)
    server.terminate()
    until(lambda: "draining" in server.log)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "at_once=true" in server.log.lower()
    ends = list(map(_end, calls))
    assert ends.count("OK") < 20 and set(ends) <= {"OK", *CUT_OFF}


def test_a_server_whose_ready_line_nobody_reads_serves_and_ends_well(tiny_base: Path, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command(tiny_base, tmp_path / "registry"), stdout=write_end, stderr=errors)
    os.close(write_end)
    try:
        until(lambda: " ready " in log.read_text() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_an_idle_server_ends_soon_though_someone_watches_it(start_server: StartServer) -> None:
    server = start_server()
    watches = [
        server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=60_000)),
        health_pb2_grpc.HealthStub(server.channel()).Watch(health_pb2.HealthCheckRequest()),
    ]
    for watch in watches:
        next(watch)
    server.terminate()
    assert server.wait() == 0
    assert "grace_exceeded" not in server.log
    assert list(watches[0]) == []


def test_what_was_published_is_there_after_a_restart_and_the_log_has_one_line_an_event(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("--log-json")
    adapter = publish(server, "poet", write_lora(tmp_path / "poet", tiny_model()))
    request = _request(8)
    request.adapters.add(reference="poet")
    before = server.generation.Generate(request)
    server.terminate()
    assert server.wait() == 0
    events = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    assert {"ready", "request", "draining", "stopped"} <= {event["event"] for event in events}
    again = start_server().generation.Generate(request)
    assert again.adapters[0].digest == adapter.digest
    assert [token.token_id for token in again.completions[0].tokens] == [
        token.token_id for token in before.completions[0].tokens
    ]


def test_clients_that_vanish_leave_nothing_running(start_server: StartServer) -> None:
    server = start_server()
    code = (
        "import sys, grpc\n"
        "from hotshoe.protos.v1 import generation_pb2 as pb, generation_pb2_grpc as stubs\n"
        "stub = stubs.GenerationServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        "request = pb.GenerateRequest(text='x', stopping={'max_new_tokens': 480, 'ignore_eos': True})\n"
        "for message in stub.StreamGenerate(pb.StreamGenerateRequest(request=request)):\n"
        "    print('token', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    client = subprocess.Popen(
        [sys.executable, "-c", code, server.ready["grpc"]], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert client.stdout is not None
    client.stdout.readline()
    client.kill()
    client.wait()
    assert any(not status.running_requests and not status.kv_cache_usage for status in _watch(server))


def _watch(server: ServerProcess) -> grpc.Call:
    return server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=200)


def _twenty_long(server: ServerProcess) -> list[grpc.Call]:
    """Streams that the server has been given and that take it seconds, one after the other."""
    stub, request = server.generation, generation_pb2.StreamGenerateRequest(request=_request(490))
    calls = [stub.StreamGenerate(request) for _ in range(20)]
    until(lambda: server.taken() == 20)
    return calls


def _held_upload(release: threading.Event) -> Iterator[registry_pb2.UploadBlobRequest]:
    yield registry_pb2.UploadBlobRequest(blob={"digest": f"sha256:{'1' * 64}", "size_bytes": 1, "file_name": "x"})
    release.wait(200)
