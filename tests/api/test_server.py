"""Serving over real sockets: binding, shutting down, and bodies as they come off the wire.

Every test is run for both servers.
"""

import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from primeflowd.config import Api as ApiSettings
from primeflowd.config import Config
from primeflowd.errors import OperatorError
from tests.api.harness import Api, open_api
from tests.api.wire import SERVERS, Serve, serving


@pytest.fixture(params=SERVERS)
def serve(request: pytest.FixtureRequest) -> Serve:
    """Each of the servers."""
    return SERVERS[request.param]


@asynccontextmanager
async def served(
    api: Api, serve: Serve, idle_timeout: float = 60.0
) -> AsyncIterator[tuple[str, trio.Event]]:
    """The URL that the API is served at, and the event that ends it."""
    async with serving(serve, api, idle_timeout=idle_timeout) as ((host, port), shutdown):
        yield f"http://{host}:{port}", shutdown


async def _connect(url: str) -> trio.SocketStream:
    host, port = url.removeprefix("http://").split(":")
    return await trio.open_tcp_stream(host, int(port))


async def test_port_0_and_back(api: Api, serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    """The URL that is reported can be asked; nothing is written beside the log."""
    with structlog.testing.capture_logs():
        async with served(api, serve) as (url, _), httpx.AsyncClient() as client:
            assert url.startswith("http://127.0.0.1:")
            response = await client.get(f"{url}/healthz")
    assert response.json() == {"status": "ok"}
    assert response.headers["x-request-id"]
    assert "server" not in response.headers
    assert capfd.readouterr() == ("", "")


async def test_v6(api: Api, serve: Serve) -> None:
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(serve, api.app, ("::1", 0), shutdown)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
        shutdown.set()


async def test_an_address_in_use_is_one_line_for_the_operator(api: Api, serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OperatorError) as caught:
            await serve(api.app, ("127.0.0.1", port), trio.Event())
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"


async def test_a_name_that_does_not_resolve(api: Api, serve: Serve) -> None:
    with pytest.raises(OperatorError, match=r"^cannot listen on no\.such\.invalid:1: \w"):
        await serve(api.app, ("no.such.invalid", 1), trio.Event())


async def test_shutdown_lets_a_request_finish(api: Api, serve: Serve) -> None:
    """8: stop accepting; what is under way is answered; idle connections do not hold it up."""
    entered, go = trio.Event(), trio.Event()

    class Slow:
        async def perform(self, operation: object) -> object:
            entered.set()
            await go.wait()
            return await api.node.intake.perform(operation)  # type: ignore[arg-type]

    api.serve(api.services(intake=Slow()))  # type: ignore[arg-type]
    answers: list[httpx.Response] = []
    shutdown = trio.Event()
    started = trio.current_time()
    async with trio.open_nursery() as nursery, httpx.AsyncClient() as idle:
        [url] = await nursery.start(serve, api.app, ("127.0.0.1", 0), shutdown)
        await idle.get(f"{url}/healthz")

        async def post() -> None:
            async with httpx.AsyncClient() as client:
                headers = {"X-Reevit-Key": api.key}
                answers.append(await client.post(f"{url}/v1/batches", json={}, headers=headers))

        nursery.start_soon(post)
        await entered.wait()
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        go.set()
    assert answers[0].status_code == 201
    assert trio.current_time() - started < 2.5


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [10_001, 90_000, 5_000_000])
async def test_a_body_over_the_limit_is_answered_not_reset(
    serve: Serve, size: int, chunked: bool
) -> None:
    """2.10: 413 without reading on, also for a client that sends first and reads then."""
    settings = ApiSettings(max_body=10_000, max_bulk_body=100_000)
    async with (
        open_api(msgspec.structs.replace(Config(), api=settings)) as api,
        served(api, serve) as (url, _),
    ):
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        head = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n"
            f"Content-Type: application/json\r\n{length}\r\n\r\n"
        )
        body = b" " * size
        stream = await _connect(url)
        await stream.send_all(head.encode())
        # The server may have closed before all was sent; what counts is that its answer is there.
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body)
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413")
        await stream.aclose()


async def test_a_body_a_little_over_the_limit_does_not_cost_the_connection(serve: Serve) -> None:
    """2.10: it is read to its end and thrown away."""
    settings = ApiSettings(max_body=10_000, max_bulk_body=100_000)
    async with (
        open_api(msgspec.structs.replace(Config(), api=settings)) as api,
        served(api, serve) as (url, _),
    ):
        head = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 90000\r\n\r\n"
        )
        stream = await _connect(url)
        await stream.send_all(head.encode())
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_all(b" " * 90_000)
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413")
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        rest = b"".join([part async for part in stream])
        assert b"HTTP/1.1 200" in rest
        await stream.aclose()


async def test_a_declared_length_is_believed_before_a_byte_is_read(api: Api, serve: Serve) -> None:
    """2.10: two gigabytes are refused by the number alone."""
    async with served(api, serve) as (url, _):
        stream = await _connect(url)
        head = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 2000000000\r\n\r\n"
        )
        await stream.send_all(head.encode())
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413")
        await stream.aclose()


async def test_keep_alive_serves_many_requests_on_one_connection(api: Api, serve: Serve) -> None:
    """A refusal does not cost a client its connection, nor does a 204."""
    ports: set[int] = set()
    requests = [("GET", "/healthz", 200), ("GET", "/nowhere", 404), ("GET", "/v1/batches", 401)]
    async with served(api, serve) as (url, _), httpx.AsyncClient() as client:
        for method, path, status in [*requests * 3, ("OPTIONS", "/healthz", 204), *requests]:
            async with client.stream(method, url + path) as response:
                await response.aread()
                assert response.status_code == status
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])
    assert len(ports) == 1


async def test_an_idle_connection_is_closed(api: Api, serve: Serve) -> None:
    """Also after a request: or clients could hold connections for good."""
    async with served(api, serve, idle_timeout=0.2) as (url, _):
        for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            stream = await _connect(url)
            await stream.send_all(first)
            received = b"".join([part async for part in stream])
            assert received.startswith(b"HTTP/1.1 200") == bool(first)
            await stream.aclose()


async def test_a_client_that_hangs_up_is_no_reason_to_log(
    api: Api, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a head, half a body, and an answer nobody reads."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logged:
        await _hang_up_everywhere(api, serve)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert [entry for entry in logged if entry["log_level"] not in ("debug", "info")] == []


async def _hang_up_everywhere(api: Api, serve: Serve) -> None:
    async with served(api, serve) as (url, _):
        whole = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        ).encode()
        for cut in (0, 1, 30, len(whole) - 1, len(whole)):
            stream = await _connect(url)
            await stream.send_all(whole[:cut])
            await stream.aclose()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
