import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotshoe.server.services.health import Health, HealthServicer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Engine:
    def __init__(self) -> None:
        self.alive = True
        self.age = 0.0

    def heartbeat_age_seconds(self) -> float:
        return self.age


def test_health_follows_the_engine() -> None:
    health, engine = Health(), Engine()
    assert health.state == "loading"
    health.ready(engine)
    assert health.state == "serving"
    engine.age = 2.9
    assert health.serving
    engine.age = 3.1
    assert health.state == "stuck"
    engine.age = 0.1
    assert health.state == "serving"
    engine.alive = False
    assert health.state == "dead"


def test_draining_hides_everything_else() -> None:
    health, engine = Health(), Engine()
    health.ready(engine)
    health.begin_drain()
    assert health.state == "draining"
    assert not health.serving


def test_the_report_says_what_the_state_is() -> None:
    health = Health()
    serving, details = health.report()
    assert not serving
    assert details["status"] == "loading"
    health.ready(Engine())
    assert health.report()[0]


def test_each_service_has_the_status_and_watchers_hear_of_changes() -> None:
    async def main() -> None:
        health, engine = Health(), Engine()
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health, ["a.B"]), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "a.B", "x")]
            assert [(await watch.read()).status for watch in watches] == [NOT_SERVING, NOT_SERVING, SERVICE_UNKNOWN]
            health.ready(engine)
            assert [(await watch.read()).status for watch in watches[:2]] == [SERVING, SERVING]
            watches[0].cancel()
            engine.age = 60
            assert (await watches[1].read()).status == NOT_SERVING
            for name in ("", "a.B"):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="x"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await server.stop(0)

    asyncio.run(asyncio.wait_for(main(), 100))
