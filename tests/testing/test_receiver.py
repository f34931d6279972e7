"""testing/receiver.py: it records what came, byte for byte, and misbehaves as told."""

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from primeflowd.testing.answers import read_script
from primeflowd.testing.receiver import Answer, Receiver, open_receiver
from tests.network import Authority

REQUEST = (
    b"POST /hook?a=1 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: \xe9\r\nContent-Length: 2\r\n\r\n{}"
)


async def talk(receiver: Receiver, *requests: bytes) -> bytes:
    """All that comes back until the connection is closed, from our side if we are asked nothing.

    The last request should say `Connection: close` unless the answer closes.
    """
    stream = await trio.open_tcp_stream("127.0.0.1", receiver.port)
    async with stream:
        for request in requests:
            await stream.send_all(request)
        data = b""
        with trio.fail_after(5):
            async for piece in stream:
                data += piece
    return data


def closing(request: bytes = REQUEST) -> bytes:
    return request.replace(b"Host: h\r\n", b"Host: h\r\nConnection: close\r\n")


async def test_records_requests(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery) as receiver:
        answer = await talk(receiver, REQUEST, closing())
        assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 2
        first, second = receiver.requests
        assert (first.number, first.connection) == (1, 1)
        assert (second.number, second.connection) == (2, 1)
        assert (first.method, first.target, first.body) == ("POST", "/hook?a=1", b"{}")
        assert first.headers == (
            ("Host", "h"),
            ("X-A", "1"),
            ("x-a", "é"),
            ("Content-Length", "2"),
        )
        assert first.header("X-a") == "1"
        assert first.header("nope") is None
        assert first.arrived_at <= second.arrived_at


async def test_pipelined_and_split_requests(nursery: trio.Nursery) -> None:
    """However requests are cut, each is answered once, in order."""
    async with open_receiver(nursery, [Answer(body=b"1"), Answer(body=b"2")]) as receiver:
        data = REQUEST + closing()
        assert (await talk(receiver, data)).count(b"HTTP/1.1 200") == 2
        pieces = [data[n : n + 1] for n in range(len(data))]
        assert (await talk(receiver, *pieces)).count(b"HTTP/1.1 200") == 2
        assert [request.body for request in receiver.requests] == [b"{}"] * 4


async def test_large_and_chunked_bodies(nursery: trio.Nursery) -> None:
    body = bytes(range(256)) * 40_000
    async with open_receiver(nursery) as receiver, httpx.AsyncClient() as client:
        await client.post(receiver.url(), content=body)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100_000):
                yield body[start : start + 100_000]

        await client.post(receiver.url(), content=pieces())
        assert [request.body for request in receiver.requests] == [body, body]


async def test_scripts(nursery: trio.Nursery) -> None:
    """One answer, answers in turn with the last for all that follow, or a choice."""
    async with open_receiver(nursery) as receiver, httpx.AsyncClient() as client:

        async def statuses(count: int) -> list[int]:
            return [(await client.post(receiver.url())).status_code for _ in range(count)]

        receiver.script = Answer(status=418)
        assert await statuses(2) == [418, 418]
        receiver.script = [Answer(status=n) for n in (500, 501, 502, 503)]
        assert await statuses(3) == [502, 503, 503]
        receiver.script = lambda request: Answer(status=200 + request.number)
        assert await statuses(2) == [206, 207]


async def test_waiting_for_requests(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery) as receiver:
        waited = False

        async def wait() -> None:
            nonlocal waited
            await receiver.wait_requests(2)
            waited = True

        nursery.start_soon(wait)
        await talk(receiver, closing())
        await trio.testing.wait_all_tasks_blocked()
        assert not waited
        await talk(receiver, closing())
        await trio.testing.wait_all_tasks_blocked()
        assert waited


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            Answer(status=302, headers=(("Location", "/é"),), body=b"moved", close=True),
            b"HTTP/1.1 302 Found\r\nLocation: /\xe9\r\nContent-Length: 5\r\n"
            b"Connection: close\r\n\r\nmoved",
        ),
        (Answer(status=204, close=True), b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        (
            Answer(status=299, body=b"abc", chunked=True, close=True),
            b"HTTP/1.1 299 Scripted\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            Answer(interim=2, close=True),
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2
            + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        (Answer(raw=b"\x00garbage"), b"\x00garbage"),
        (Answer(raw=b"\x00garbage", cut=3), b"\x00ga"),
        (Answer(cut=8), b"HTTP/1.1"),
        (Answer(cut=0), b""),
        (Answer(drip=0.0001, cut=8), b"HTTP/1.1"),
    ],
)
async def test_bytes_on_the_wire(nursery: trio.Nursery, answer: Answer, expected: bytes) -> None:
    async with open_receiver(nursery, answer) as receiver:
        assert await talk(receiver, REQUEST) == expected


@pytest.mark.parametrize("chunked", [False, True])
async def test_generated_bodies(nursery: trio.Nursery, chunked: bool) -> None:
    answer = Answer(body_size=200_001, chunked=chunked)
    async with open_receiver(nursery, answer) as receiver, httpx.AsyncClient() as client:
        assert (await client.post(receiver.url())).content == bytes(200_001)


@pytest.mark.parametrize("cut", [0, 8])
async def test_reset(nursery: trio.Nursery, cut: int) -> None:
    async with open_receiver(nursery, Answer(cut=cut, reset=True)) as receiver:
        with pytest.raises(trio.BrokenResourceError):
            await talk(receiver, REQUEST)
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("answer", "expected"), [(Answer(hang=True), b""), (Answer(hang=True, cut=8), b"HTTP/1.1")]
)
async def test_hang(nursery: trio.Nursery, answer: Answer, expected: bytes) -> None:
    """Silent, but open, until the client closes."""
    async with open_receiver(nursery, answer) as receiver:
        stream = await trio.open_tcp_stream("127.0.0.1", receiver.port)
        async with stream:
            await stream.send_all(REQUEST)
            data = b""
            with trio.move_on_after(0.1) as waiting:
                async for piece in stream:
                    data += piece
            assert waiting.cancelled_caught
            assert data == expected


async def test_endless_head(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery, Answer(endless_head=True)) as receiver:
        stream = await trio.open_tcp_stream("127.0.0.1", receiver.port)
        async with stream:
            await stream.send_all(REQUEST)
            size = 0
            while size < 1_000_000:
                piece = await stream.receive_some()
                assert b"\r\n\r\n" not in piece
                size += len(piece)


async def test_answering_without_reading_bodies(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery, Answer(status=413), read_bodies=False) as receiver:
        head = REQUEST.replace(b"Length: 2\r\n\r\n{}", b"Length: 1000000\r\n\r\n")
        assert (await talk(receiver, head)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "client",
    [
        b"",
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        REQUEST[:-1],
    ],
)
async def test_odd_clients_do_no_harm(nursery: trio.Nursery, client: bytes) -> None:
    async with open_receiver(nursery, Answer(close=True)) as receiver:
        stream = await trio.open_tcp_stream("127.0.0.1", receiver.port)
        await stream.send_all(client)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await talk(receiver, REQUEST)).startswith(b"HTTP/1.1 200")


async def test_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.server("127.0.0.1")
    trust = ssl.create_default_context(cafile=str(authority.ca_file))
    async with (
        open_receiver(nursery, tls=tls) as receiver,
        httpx.AsyncClient(verify=trust) as client,
    ):
        assert receiver.url().startswith("https://")
        assert (await client.post(receiver.url(), content=b"{}")).status_code == 200
        assert receiver.requests[0].body == b"{}"


async def test_the_port_is_free_afterwards(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery, Answer(hang=True)) as receiver:
        stream = await trio.open_tcp_stream("127.0.0.1", receiver.port)
        await stream.send_all(REQUEST)
        await receiver.wait_requests(1)
    assert await stream.receive_some() == b""
    await stream.aclose()
    async with open_receiver(nursery, port=receiver.port) as again:
        assert again.port == receiver.port


def test_read_script() -> None:
    assert read_script('{"status": 500, "body": "é"}') == (Answer(status=500, body="é".encode()),)
    assert read_script('[{"raw": "x"}, {"headers": [["A", "b"]], "hang": true}]') == (
        Answer(raw=b"x"),
        Answer(headers=(("A", "b"),), hang=True),
    )
    for bad in ("", "[1]", '{"stauts": 500}', '{"status": "500"}'):
        with pytest.raises(ValueError, match=r"."):
            read_script(bad)


@contextmanager
def process(*options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "primeflowd.testing.receiver", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_as_a_process(end: signal.Signals) -> None:
    """The port as the first line, then a line for each request; a signal ends it in silence."""
    with process("--script", '[{"status": 503}, {"body": "ok"}]') as running:
        assert running.stdout is not None
        port = int(running.stdout.readline())
        assert httpx.post(f"http://127.0.0.1:{port}/a", content=b'{"x":1}').status_code == 503
        assert httpx.post(f"http://127.0.0.1:{port}/b", content=b"\xff").text == "ok"
        first = json.loads(running.stdout.readline())
        assert (first["number"], first["target"], first["body"]) == (1, "/a", '{"x":1}')
        assert ["content-length", "7"] in [[k.lower(), v] for k, v in first["headers"]]
        second = json.loads(running.stdout.readline())
        assert second["body_base64"] == "/w=="
        assert "body" not in second
        running.send_signal(end)
        assert running.wait(10) == 0


def test_as_a_process_by_attempt() -> None:
    """Each delivery meets the script from its beginning."""
    script = '[{"status": 503}, {"status": 500}, {}]'
    with process("--script", script, "--by-attempt") as running:
        assert running.stdout is not None
        url = f"http://127.0.0.1:{int(running.stdout.readline())}/"

        def status(attempt: str) -> int:
            return httpx.post(url, headers={"Primeflow-Attempt": attempt}).status_code

        assert [status(number) for number in ("2", "1", "1", "3", "9")] == [500, 503, 503, 200, 200]
        assert httpx.post(url).status_code == 503


def test_as_a_process_with_a_log(tmp_path: Path) -> None:
    """With --log the requests are in the file by the time that they are answered."""
    authority = Authority(tmp_path)
    bundle = tmp_path / "server.pem"
    authority.write_server(bundle, "127.0.0.1")
    log = tmp_path / "requests.log"
    with process("--log", str(log), "--tls", str(bundle)) as running:
        assert running.stdout is not None
        port = int(running.stdout.readline())
        trust = ssl.create_default_context(cafile=str(authority.ca_file))
        with httpx.Client(verify=trust) as client:
            for n in range(3):
                client.post(f"https://127.0.0.1:{port}/", content=b"%d" % n)
        bodies = [json.loads(entry)["body"] for entry in log.read_text().splitlines()]
        assert bodies == ["0", "1", "2"]


def test_as_a_process_with_a_bad_script() -> None:
    command = [sys.executable, "-m", "primeflowd.testing.receiver", "--script", "{"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--script" in done.stderr
